"""The learning rate as a function of the iteration, the warm-up latch and the validation errors so far."""

from __future__ import annotations

from .recipe import Recipe


def learning_rate(recipe: Recipe, iteration: int, warming_up: bool, val_errors: list[float]) -> float:
    """Learning rate of the step from `iteration` to `iteration + 1`.

    "steps": divided by 10 at each of `lr_drops` (32k and 48k of 64k, section 4.2).
    "plateau": divided by 10 when the error has not improved for `plateau_patience` evaluations (section 3.4).
    While the warm-up lasts the rate is `warmup_lr`; once over it never returns.
    """
    if warming_up:
        return recipe.warmup_lr
    if recipe.schedule == "plateau":
        drops = plateaus(val_errors, recipe.plateau_patience)
    else:
        drops = sum(iteration >= drop for drop in drop_iterations(recipe))
    return recipe.lr * recipe.lr_gamma**drops


def drop_iterations(recipe: Recipe) -> list[int]:
    """The first iteration at each lower rate."""
    return [round(fraction * recipe.iterations) for fraction in recipe.lr_drops]


def plateaus(errors: list[float], patience: int) -> int:
    """How often `patience` evaluations in a row brought no new best error."""
    best, since, count = float("inf"), 0, 0
    for error in errors:
        if error < best:
            best, since = error, 0
        else:
            since += 1
        if since == patience:
            since, count = 0, count + 1
    return count
