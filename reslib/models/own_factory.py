"""A network of one's own, named as package.module:Factory, with errors that say where in that module they arose."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import traceback
import typing
from pathlib import Path

from torch import nn

from ..errors import UserError, one_line, shown
from ..own_network import look_in_current_folder


class NotMade(UserError):
    """The factory was found and called, and raised something."""


def build(name: str, num_classes: int, options: dict) -> nn.Module:
    """The network of `package.module:Factory`, called with the options, and with num_classes if it accepts that.

    Raises UserError where it cannot be imported, called or used as a network, whatever its code raised.
    """
    factory = _imported(name)
    if not callable(factory):
        raise UserError(
            f"model {name!r} is of type {type(factory).__name__}, not a class or function that makes a network"
        )
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        signature = None
    if not _may_make_networks(factory, signature):
        raise UserError(f"model {name!r} is neither a torch.nn.Module nor a function that makes one")
    if signature:
        if "num_classes" in signature.parameters or accepted(factory) is None:
            options = {"num_classes": num_classes, **options}
        try:
            signature.bind(**options)
        except TypeError as error:
            raise UserError(f"model {name!r} cannot be called with {shown(options)}: {error}") from error
    try:
        model = factory(**options)
    except (Exception, SystemExit) as error:
        raise NotMade(f"model {name!r} cannot be made with {shown(options)}: {where(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"model {name!r} gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def accepted(factory) -> list[str] | None:
    """The arguments a factory takes beside num_classes; None when it takes any."""
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return [name for name in parameters if name != "num_classes"]


def where(error: BaseException) -> str:
    """An error of the user's code in a line, with the last of its places that is not in a library."""
    places = [f for f in traceback.extract_tb(error.__traceback__) if not _of_library(f.filename)]
    place = f" ({os.path.basename(places[-1].filename)}, line {places[-1].lineno})" if places else ""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(error)[:300]}{place}"


def _of_library(file: str) -> bool:
    here = Path(__file__).resolve().parent.parent  # this package
    parts = Path(file).parts
    library = bool({"site-packages", "dist-packages"} & set(parts)) or file.startswith("<")
    return library or Path(file).is_relative_to(here) or Path(file).is_relative_to(os.path.dirname(os.__file__))


def _imported(name: str):
    """What `package.module:Factory` names."""
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:  # some of these run when they are imported
        raise UserError(f"model {name!r} is of Python's own library: allowed is your own package.module:Factory")
    if module.endswith(".py"):
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        raise UserError(f"model {name!r} names a file: allowed is package.module:Factory, here {dotted}:{attribute}")
    look_in_current_folder()
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        hint = ""
        if error.name and module.partition(".")[0] == error.name:
            hint = f": neither in {os.getcwd()} nor on PYTHONPATH"
        raise UserError(f"model {name!r} cannot be imported: {one_line(error)}{hint}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"model {name!r} cannot be imported: {where(error)}") from error
    try:
        return getattr(found, attribute)
    except AttributeError as error:
        raise UserError(f"model {name!r} cannot be imported: {error}") from error


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
