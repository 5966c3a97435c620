"""Every network of the study by name: `build_model("resnet20")`, or your own as `"package.module:Factory"`."""

from __future__ import annotations

from torch import nn

from ..errors import UserError, choose, shown
from ..names import CIFAR_DEPTHS, family_and_depth, is_imagenet
from ..own_network import look_in_current_folder
from . import own_factory
from .baselines import BASELINE_RECIPES, BASELINES
from .own_factory import accepted
from .resnet import IMAGENET_BLOCKS, OPTIONS, ResNet, cifar_resnet, imagenet_resnet

__all__ = [
    "BASELINES", "BASELINE_RECIPES", "ResNet", "build_model", "family_and_depth", "is_imagenet",
    "look_in_current_folder", "model_names",
]  # fmt: skip


def model_names() -> list[str]:
    """The names of the paper; any other CIFAR depth 6n+2 works as well."""
    depths = CIFAR_DEPTHS + tuple(IMAGENET_BLOCKS)
    return [f"{kind}{depth}" for kind in ("plain", "resnet") for depth in depths] + list(BASELINES)


def build_model(name: str, num_classes: int = 10, shortcut: str | None = None, **options) -> nn.Module:
    """Build a network: (N, 3, H, W) float images -> (N, num_classes) logits.

    name: `plain20`, `resnet20` ... (CIFAR, depth 6n+2), `plain18` ... `resnet152` (ImageNet), `maxout`, `nin`, `dsn`,
    `fitnet19`, `highway19`, `highway32`, or `package.module:Factory`, called with num_classes if it accepts it.
    shortcut: "A", "B" or "C"; None takes the paper's choice, A for CIFAR and B for ImageNet.
    Raises UserError for a name or option that does not exist, with what is allowed.
    """
    family, depth = family_and_depth(name)
    if family in ("plain", "resnet") and depth:
        build = imagenet_resnet if depth in IMAGENET_BLOCKS else cifar_resnet
        if shortcut is not None:
            options["shortcut"] = shortcut
        _check_options(name, options, OPTIONS)
        return build(depth, residual=family == "resnet", num_classes=num_classes, **options)
    if name in BASELINES:
        _check_options(name, options, accepted(BASELINES[name]))
        try:
            return BASELINES[name](num_classes=num_classes, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, UserError) or not options:
                raise
            raise UserError(f"model {name} cannot be built with options {shown(options)}: {error}") from error
    if ":" in name:
        return own_factory.build(name, num_classes, options)
    choose("model", name, [*model_names(), "package.module:Factory"])
    raise AssertionError(name)


def _check_options(name: str, options: dict, accepted) -> None:
    for option in options if accepted is not None else ():
        if not accepted:
            raise UserError(f"option {option!r} of {name} is unknown: it has no options")
        choose(f"option of {name}", option, accepted)
