"""What a row of a table of differences holds, and what its interval lets one say."""

from __future__ import annotations

import math

import pandas as pd

from .comparison import ALIKE, BINOMIAL
from .recipe import Recipe

COLUMNS = [
    "deviation", "model", "n", "n reference", "diverged", "error", "reference error", "difference", "low", "high",
    "interval", "finding", "computed",
]  # fmt: skip
PAIRED, POOLED = "paired t, over seeds", "paired t, over networks"
MCNEMAR = "binomial, paired, one seed: test images only"
UNDECIDED = "not enough evidence"
WITHIN = "within the uncertainty"
NOT_TRAINED = "not yet trained"
NOT_MEASURED = "not measured"
NOT_PLANNED = "not part of this preset"


def blank(**cells) -> dict:
    """A row with these cells, its numbers NaN."""
    return dict.fromkeys(COLUMNS, math.nan) | {"diverged": 0, "interval": "", "computed": ""} | cells


def finding(value: float, low: float, high: float, interval: str) -> dict:
    """The cells of a difference in points with its interval, and what may be said of it."""
    if low <= 0 <= high:
        words = WITHIN
    elif interval == MCNEMAR:
        words = f"one seed: {UNDECIDED}"
    else:
        caveat = {ALIKE: ", if seeds spread alike", BINOMIAL: ", single seeds"}.get(interval, "")
        words = ("costs" if value > 0 else "helps") + caveat
    return {"difference": value, "low": low, "high": high, "interval": interval, "finding": words}


def of_group(recipes: list[Recipe], runs: pd.DataFrame) -> pd.DataFrame:
    """The ended runs of these recipes, of any seed."""
    digests = {r.replace(seed=int(s)).digest for r in recipes for s in runs["seed"].dropna().unique()}
    return runs[runs["recipe_hash"].isin(digests) & runs["status"].isin(("finished", "diverged"))]
