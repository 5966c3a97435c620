"""Which networks the gradients study follows, for how long and on how many images: what it measures and what it costs.

They are no runs: nothing is recorded but their norms, in measurements/gradients.csv.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from .presets import Preset, cifar_recipe
from .recipe import Recipe

INITIALISATIONS = ("he", "xavier", "gaussian")


@dataclass(frozen=True)
class Budget:
    """How long and on how many images gradients are followed."""

    steps: int
    batch_size: int

    @property
    def at(self) -> tuple[int, ...]:
        """The iterations at which norms are taken."""
        return tuple(sorted({0, 1, self.steps // 4, self.steps}))


BUDGETS = {"smoke": Budget(2, 8), "quick": Budget(12, 32), "medium": Budget(100, 128), "paper": Budget(1000, 128)}


def budget_of(preset: Preset) -> Budget:
    """The budget of a preset, whatever the user changed in its runs."""
    return BUDGETS[preset.base]


def nets(preset: Preset, dataset: str, seeds: int = 0) -> list[Recipe]:
    """The preset's depths, plain and residual, by each initialisation, with and without batch norm.

    seeds: of initial weights and images; 0 is the preset's number. There is no warm-up: every net starts at the full
    rate.
    """
    kinds = itertools.product(
        preset.seeds_of("", seeds), preset.gradient_depths, (True, False), INITIALISATIONS, ("plain", "resnet")
    )
    return [
        cifar_recipe(
            f"{family}{depth}",
            preset,
            dataset,
            seed,
            options=f"init={init}" if batch_norm else f"batch_norm=false,init={init}",
            batch_size=budget_of(preset).batch_size,
            warmup_lr=0.0,
        )
        for seed, depth, batch_norm, init, family in kinds
    ]
