"""Every network of the study by name: `build_model("resnet20")`, or your own as `"package.module:Factory"`."""

from __future__ import annotations

import importlib
import inspect
import re

from torch import nn

from ..errors import UserError, choose
from .baselines import BASELINE_RECIPES, BASELINES
from .resnet import IMAGENET_BLOCKS, ResNet, cifar_resnet, imagenet_resnet

__all__ = ["BASELINES", "BASELINE_RECIPES", "ResNet", "build_model", "family_and_depth", "is_imagenet", "model_names"]

CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)  # Table 6


def model_names() -> list[str]:
    """The names of the paper; any other CIFAR depth 6n+2 works as well."""
    depths = CIFAR_DEPTHS + tuple(IMAGENET_BLOCKS)
    return [f"{kind}{depth}" for kind in ("plain", "resnet") for depth in depths] + list(BASELINES)


def family_and_depth(name: str) -> tuple[str, int]:
    """("resnet", 20) for "resnet20", ("plain", 56) for "plain56"; other networks give (name, 0)."""
    match = re.fullmatch(r"(plain|resnet)([1-9]\d*)", name)
    return (match[1], int(match[2])) if match else (name, 0)


def is_imagenet(name: str) -> bool:
    return family_and_depth(name)[1] in IMAGENET_BLOCKS


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
        options["residual"] = family == "resnet"
        return _call(name, build, ResNet, depth, num_classes=num_classes, **options)
    if name in BASELINES:
        return _call(name, BASELINES[name], BASELINES[name], num_classes=num_classes, **options)
    if ":" in name:
        return _foreign(name, num_classes, options)
    choose("model", name, model_names())
    raise AssertionError(name)


def _call(name, build, documented, *args, **options):
    parameters = inspect.signature(documented).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            choose(f"option of {name}", option, [*parameters, "width"])
    return build(*args, **options)


def _foreign(name: str, num_classes: int, options: dict) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"model {name!r} cannot be imported: {error}") from error
    try:
        accepted = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        accepted = {}
    if "num_classes" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        options = {"num_classes": num_classes, **options}
    model = factory(**options)
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} gave a {type(model).__name__}, not a torch.nn.Module")
    return model
