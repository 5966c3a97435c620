"""The network of a recipe: as it starts, and as a finished run left it."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from . import own_network
from .data.memory import mixed_seed
from .errors import UserError
from .machine import out_of_memory
from .models import build_model, family_and_depth
from .models.own_factory import NotMade, where
from .recipe import Recipe, parse_options
from .runs import read_json, read_recipe, read_weights


def make_model(recipe: Recipe, classes: int, runs_dir: Path) -> nn.Module:
    """The recipe's network with the initial weights of its seed."""
    options = parse_options(recipe.options)
    if recipe.teacher:
        options["teacher"] = _teacher(recipe, runs_dir)
    torch.manual_seed(mixed_seed("initial weights", recipe.seed))
    return build_model(recipe.model, classes, shortcut_of(recipe), **options)


def check_network(recipe: Recipe) -> None:
    """Raise UserError for a wrong name or option, before any data is read."""
    if recipe.teacher:
        return
    try:
        with torch.device("meta"):
            build_model(recipe.model, 10, shortcut_of(recipe), **parse_options(recipe.options))
    except NotMade:  # code of one's own may do what the meta device cannot: the processor decides
        build_model(recipe.model, 10, shortcut_of(recipe), **parse_options(recipe.options))
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"options {recipe.options!r} do not suit {recipe.model}: {reason}") from error


def check_own(model: nn.Module, recipe: Recipe, classes: int) -> None:
    """Raise UserError unless a network of one's own can be trained by the recipe: tried on two images, on a copy.

    It must have float32 parameters of known size and give logits (N, classes), in training and in evaluation.
    """
    name = recipe.model
    if ":" not in name:
        return
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise UserError(f"{name} has no parameters to train")
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise UserError(f"{name} has lazy layers: give them their sizes")
    if others := {str(p.dtype) for p in model.parameters()} - {"torch.float32"}:
        raise UserError(f"{name} has parameters of {', '.join(sorted(others))}: allowed is torch.float32")
    size = recipe.crop_size
    try:
        tried = copy.deepcopy(model)  # its statistics stay those of a fresh network; costs are counted on a copy too
    except Exception as error:
        raise UserError(f"{name} cannot be copied: {where(error)}") from error
    for training in (False,) if hasattr(model, "training_loss") else (True, False):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                logits = tried.train(training)(torch.zeros(2, 3, size, size))
            except Exception as error:
                if out_of_memory(error):
                    raise
                raise UserError(f"{name} fails on images (2, 3, {size}, {size}): {where(error)}") from error
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        if given != (2, classes):
            mode = "training" if training else "evaluation"
            raise UserError(
                f"{name} gives {given} for images (2, 3, {size}, {size}) in {mode}: needed are logits (2, {classes})"
            )


def shortcut_of(recipe: Recipe) -> str | None:
    """The option of the recipe's shortcuts; None for a network that has none of the paper's."""
    return recipe.shortcut if family_and_depth(recipe.model)[1] else None


def _teacher(recipe: Recipe, runs_dir: Path) -> nn.Module:
    """The trained network of the run that the recipe names; UserError if it was taught on other images."""
    try:
        teacher, taught = load_network(runs_dir / recipe.teacher)
    except UserError as error:
        raise UserError(f"teacher {recipe.teacher!r} cannot be used: {error}") from error
    for name in ("dataset", "preprocessing", "crop_size", "val_size", "train_size"):
        theirs, ours = getattr(taught, name), getattr(recipe, name)
        if theirs != ours:
            raise UserError(
                f"teacher {recipe.teacher} has {name} {theirs}, this run {ours}: both must see the same images"
            )
    return teacher


def why_no_weights(path: Path) -> str:
    """Why a folder has no weights, as far as its record tells."""
    if not (path / "recipe.json").exists():
        return "it is not the folder of a run"
    if not (path / "summary.json").exists():
        return "the run is not finished"
    if read_json(path / "summary.json").get("status") == "diverged":
        return "the run diverged"
    return "weights are not kept in git; train the run again, or take them from where it was trained"


def load_network(path: Path) -> tuple[nn.Module, Recipe]:
    """The trained network of a finished run, in evaluation mode, with its recipe."""
    if not (path / "weights.safetensors").exists():
        raise UserError(f"{path}: no weights.safetensors: {why_no_weights(path)}")
    recipe = read_recipe(path / "recipe.json")
    summary = read_json(path / "summary.json")
    own_network.check(recipe, summary.get("network_source"))
    classes = summary.get("classes", 10)
    model = make_model(recipe, classes, path.parent)
    try:
        model.load_state_dict(read_weights(path / "weights.safetensors"))
    except RuntimeError as error:
        raise UserError(
            f"{path}: the weights do not fit {recipe.model}: {' '.join(str(error).split())[:200]}"
        ) from error
    return model.eval(), recipe
