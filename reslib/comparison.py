"""The difference of two networks' errors and its interval: over seeds where there are several, else over images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import paper, stats
from .evidence import is_imagenet

WELCH = "Welch, over seeds"  # what an interval of a difference is of
ALIKE = "t; one seed is given the other side's spread"
BINOMIAL = "one seed on each side: four binomial errors"
SAME_DATA = ("dataset", "data_fingerprint", "iterations", "batch_size", "train_size", "val_size", "test_size")
ENOUGH = 3  # seeds on each side whose own spread is relied on where two networks are compared
SINGLE = 4  # of these standard errors: twice the usual number, since the seeds' own spread is not known


def compare(
    first: pd.DataFrame, second: pd.DataFrame, column: str = "test_error", others: pd.DataFrame | None = None
) -> tuple[int, str]:
    """Sign of second - first in a column of errors, 0 if within its uncertainty, and the comparison in words (in %)."""
    d = difference(first, second, column, others)
    return int(np.sign(d.value)) if d.low > 0 or d.high < 0 else 0, in_words(first, second, column, others)


@dataclass(frozen=True)
class Difference:
    """A difference of two errors in points, and its interval: of 95%, by BINOMIAL of SINGLE standard errors."""

    value: float
    low: float
    high: float
    interval: str  # WELCH, ALIKE or BINOMIAL


def difference(
    first: pd.DataFrame, second: pd.DataFrame, column: str = "test_error", others: pd.DataFrame | None = None
) -> Difference:
    """second - first in a column of errors.

    Interval: Welch's over seeds; with a single seed on one side Student's, which gives it the other side's spread; with
    one on each, or seeds that are all equal, `SINGLE` binomial standard errors of a test on these images.

    others: of two different networks, whose seeds need not spread alike, the runs of the study. Below ENOUGH seeds on a
    side the spread is then pooled over the plain and residual nets among them too (Student's t of one degree of freedom
    is 12.7: a second seed would take a claim away), and the interval is not narrower than that of single seeds.
    """
    one, two = (stats.summarize(rows[column] * 100) for rows in (first, second))
    found, interval = None, ""
    if not (one.zero_variance or two.zero_variance):
        pair = first[column] * 100, second[column] * 100
        if min(one.n, two.n) >= (2 if others is None else ENOUGH):
            found, interval = stats.welch(*pair), WELCH
        elif max(one.n, two.n) > 1:
            found, interval = stats.pooled(*pair, _alike(first, second, column, others)), ALIKE
    errors = ((s.mean / 100, images_behind(rows, column)) for s, rows in ((one, first), (two, second)))
    half = 100 * SINGLE * math.hypot(*(stats.binomial_error(error, images) for error, images in errors))
    value = two.mean - one.mean
    if found is None:
        return Difference(value, value - half, value + half, BINOMIAL)
    if interval == ALIKE and others is not None:
        half = max(half, found.high - value)
        return Difference(value, value - half, value + half, ALIKE)
    return Difference(value, found.low, found.high, interval)


def _alike(first: pd.DataFrame, second: pd.DataFrame, column: str, others: pd.DataFrame | None) -> list[pd.Series]:
    """The errors in % of each plain and residual net among `others` on the pair's data and budget, but for the pair."""
    if others is None:
        return []
    both = pd.concat([first, second])
    rows = others[others["family"].isin(("plain", "resnet")) & ~others["model"].isin(both["model"])]
    groups = (group for _, group in rows.groupby("model"))
    usable = (g for g in groups if g[column].nunique() > 1 and not differing(pd.concat([both, g])))
    return [100 * group[column] for group in usable]


def differing(rows: pd.DataFrame) -> list[str]:
    """The columns of data and budget in which runs to be compared differ."""
    return [column for column in SAME_DATA if column in rows and rows[column].nunique() > 1]


def in_words(
    first: pd.DataFrame, second: pd.DataFrame, column: str = "test_error", others: pd.DataFrame | None = None
) -> str:
    """Two networks' errors in a column and their difference: "test plain-20 9.00, plain-56 13.00 (+4.00, 95% ...)"."""
    d = difference(first, second, column, others)
    interval = f", 95% {d.low:+.2f} to {d.high:+.2f}" + ", if seeds spread alike" * (d.interval == ALIKE)
    if d.interval == BINOMIAL:
        interval = f" ± {d.high - d.value:.2f}, {SINGLE} binomial errors"
    kind = column.removesuffix("_error").replace("train", "training")
    if is_imagenet(first).all():
        kind = kind.replace("test", "validation")
    errors = (f"{paper.label(rows['model'].iloc[0])} {100 * rows[column].mean():.2f}" for rows in (first, second))
    return f"{kind} {', '.join(errors)} ({d.value:+.2f}{interval})"


def images_behind(rows: pd.DataFrame, column: str) -> int:
    """Images an error was measured on: the test images or, for the running training error, those of the last window."""
    if column == "train_error" and {"iterations", "eval_every", "batch_size"} <= set(rows):
        rest = rows["iterations"] % rows["eval_every"]
        return int((rest.where(rest > 0, rows["eval_every"]) * rows["batch_size"]).min())
    known = rows["test_images"].dropna() if "test_images" in rows else []
    return int(min(known)) if len(known) else paper.TEST_IMAGES
