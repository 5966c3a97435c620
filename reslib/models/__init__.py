"""Every network of the study by name: `build_model("resnet20")`, or your own as `"package.module:Factory"`."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import typing
from pathlib import Path

from torch import nn

from ..errors import UserError, choose, shown
from ..names import CIFAR_DEPTHS, family_and_depth, is_imagenet
from ..own_network import look_in_current_folder
from .baselines import BASELINE_RECIPES, BASELINES
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
        _check_options(name, options, _accepted(BASELINES[name]))
        try:
            return BASELINES[name](num_classes=num_classes, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, UserError) or not options:
                raise
            raise UserError(f"model {name} cannot be built with options {shown(options)}: {error}") from error
    if ":" in name:
        return _foreign(name, num_classes, options)
    choose("model", name, model_names())
    raise AssertionError(name)


def _accepted(factory) -> list[str] | None:
    """The arguments a factory takes beside num_classes; None when it takes any."""
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return [name for name in parameters if name != "num_classes"]


def _check_options(name: str, options: dict, accepted) -> None:
    for option in options if accepted is not None else ():
        if not accepted:
            raise UserError(f"option {option!r} of {name} is unknown: it has no options")
        choose(f"option of {name}", option, accepted)


def _foreign(name: str, num_classes: int, options: dict) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    if module_name.partition(".")[0] in sys.stdlib_module_names:  # some of these run when they are imported
        raise UserError(f"model {name!r} is of Python's own library: allowed is your own package.module:Factory")
    look_in_current_folder()
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError, SyntaxError, TypeError) as error:
        raise UserError(f"model {name!r} cannot be imported: {error}") from error
    if not callable(factory):
        raise UserError(f"model {name!r} is a {type(factory).__name__}, not a class or function that makes a network")
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        signature = None
    if not _may_make_networks(factory, signature):
        raise UserError(f"model {name!r} is neither a torch.nn.Module nor a function that makes one")
    if signature:
        if "num_classes" in signature.parameters or _accepted(factory) is None:
            options = {"num_classes": num_classes, **options}
        try:
            signature.bind(**options)
        except TypeError as error:
            raise UserError(f"model {name!r} cannot be called with {shown(options)}: {error}") from error
    model = factory(**options)
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def _may_make_networks(factory, signature) -> bool:
    """Classes of networks, functions of the user's own files, and those of libraries that say that they make networks.

    Not any function of any library: a recipe from elsewhere could name one that writes files or reads a pickle.
    """
    while isinstance(factory, functools.partial):
        factory = factory.func
    if inspect.isclass(factory):
        return issubclass(factory, nn.Module)
    module = sys.modules.get(getattr(factory, "__module__", None) or "")
    if module is None or inspect.isbuiltin(factory) or module.__name__.partition(".")[0] in sys.stdlib_module_names:
        return False
    if not {"site-packages", "dist-packages"} & set(Path(getattr(module, "__file__", None) or "").parts):
        return True
    try:
        made = typing.get_type_hints(factory).get("return")
    except Exception:  # annotations that cannot be evaluated
        made = None
    says_so = inspect.isclass(made) and issubclass(made, nn.Module)
    return says_so or (signature is not None and "num_classes" in signature.parameters)
