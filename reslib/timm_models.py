"""An exported network in timm, whatever it is:

    import timm, reslib.timm_models  # which tells timm of reslib's networks
    model = timm.create_model("local-dir:OUT_FOLDER", pretrained=True)

timm itself has no CIFAR nets of the paper, no plain nets and no shortcuts of option A. For these the config.json of
`python -m reslib.export` names the architecture `reslib`, which timm looks for among the functions registered with it.
"""

from __future__ import annotations

from timm.models import load_pretrained, register_model
from torch import nn

from .errors import UserError
from .models import build_model
from .recipe import parse_options

__all__ = ["reslib"]


@register_model
def reslib(
    pretrained: bool = False,
    pretrained_cfg=None,
    pretrained_cfg_overlay=None,
    cache_dir=None,
    num_classes: int | None = None,
    model: str = "",
    shortcut: str | None = None,
    options: str = "",
    pretrained_model_args: dict | None = None,
) -> nn.Module:
    """The network that `model_args` of a config.json describe: normalised images (N, 3, H, W) -> logits.

    The first four arguments are timm's. num_classes: the export's own unless given; with another number timm leaves
    the classifier as it is drawn. Raises UserError when the network is not that of an exported folder.
    """
    if not pretrained_cfg or not model:
        raise UserError('timm knows reslib\'s networks by their folder: timm.create_model("local-dir:OUT_FOLDER")')
    known = {**pretrained_cfg, **(pretrained_cfg_overlay or {})}
    classes = known["num_classes"] if num_classes is None else num_classes
    network = build_model(model, classes, shortcut, **parse_options(options))
    network.pretrained_cfg = network.default_cfg = known  # where timm.data looks for sizes and means
    network.num_classes = classes
    if pretrained:
        load_pretrained(network, known, num_classes=classes, cache_dir=cache_dir)
    return network
