"""The network of a recipe: as it starts, and as a finished run left it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from . import own_network
from .data.memory import mixed_seed
from .errors import UserError
from .models import build_model, family_and_depth
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
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"options {recipe.options!r} do not suit {recipe.model}: {reason}") from error


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


def load_network(path: Path) -> tuple[nn.Module, Recipe]:
    """The trained network of a finished run, in evaluation mode, with its recipe."""
    if not (path / "weights.safetensors").exists():
        raise UserError(f"{path}: no weights.safetensors: the run is not finished here (weights are not kept in git)")
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
