"""What the figures of error curves share: a panel of curves, its limits, and what is said of what it lacks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .. import evidence, paper, presets, studies
from ..errors import UserError
from ..names import family_and_depth
from .style import colour, end_labels, iteration_axis, marker, say

DROP = "_drop"  # a line where the learning rate falls


def drawn_runs(runs: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    """The main runs of these networks that can be drawn."""
    return evidence.drawable(evidence.main_runs(runs[runs["model"].isin(models)]))


def seed_band(curves: pd.DataFrame, column: str) -> pd.DataFrame:
    """Per iteration the mean, low, high (smallest and largest seed) in % and n of a column of fractions."""
    values = curves.dropna(subset=[column])
    band = values.groupby("iteration")[column].agg(["mean", "min", "max", "count"])
    band.columns = ["mean", "low", "high", "n"]
    band[["mean", "low", "high"]] *= 100
    return band


def draw_panel(
    ax: Axes, runs: pd.DataFrame, shown: pd.DataFrame, curves: pd.DataFrame, columns: list, models: list[str], absent
) -> list:
    """Draw the columns of each model's curves, in %; the labels for the line ends.

    Models without any are added to the list `absent`; where none has any the panel says why.
    """
    chosen = curves[curves["run"].isin(shown["run"])] if len(shown) else curves.iloc[:0]
    last = chosen["iteration"].max() if len(chosen) else 0
    unit = iteration_axis(ax, last)
    for place in _drops(shown[shown["model"].isin(models)]):
        ax.axvline(place / unit, color="#BBBBBB", linewidth=0.8, linestyle=(0, (2, 2)), zorder=1, label=DROP)
    ends, missing = [], []
    for model in models:
        lines = chosen[chosen["model"] == model]
        if lines.empty:
            missing.append(model)
            continue
        depth = int(lines["depth"].iloc[0])
        for column, look in columns:
            band = seed_band(lines, column)
            if band.empty:
                continue
            x = band.index / unit
            ax.plot(x, band["mean"], color=colour(depth), label=f"{model} {column}", zorder=3, **look)
            if band["n"].max() > 1:
                look = {"color": colour(depth), "alpha": 0.18, "linewidth": 0, "label": f"_band {column}"}
                ax.fill_between(x, band["low"], band["high"], zorder=2, **look)
        if not band.empty:  # the last column is the one that carries the label
            ax.plot(
                x[-1:], band["mean"].iloc[-1:], marker=marker(depth), color=colour(depth), markersize=5, clip_on=False,
                linestyle="", label="_end", zorder=4,
            )  # fmt: skip
            statuses = set(shown.loc[shown["model"] == model, "status"]) if "status" in shown else set()
            unfinished = "" if statuses <= {"finished"} else " (unfinished)"
            ends.append((float(band["mean"].iloc[-1]), f"{depth}-layer{unfinished}", colour(depth)))
    if len(missing) == len(models):
        say(ax, "; ".join(why_absent(missing, runs)))
    else:
        absent.extend(model for model in missing if model not in absent)
    return ends


def _drops(runs: pd.DataFrame) -> list[float]:
    """Iterations at which the learning rate of these runs falls by their recipe, where it falls in steps."""
    if not len(runs) or not {"schedule", "lr_drops", "iterations"} <= set(runs):
        return []
    steps = runs[runs["schedule"] == "steps"]
    return sorted({d * n for drops, n in zip(steps["lr_drops"], steps["iterations"], strict=True) for d in drops})


def label_ends(axes: np.ndarray, ends: list) -> None:
    """Label the line ends, once the limits are known; a marker outside them would hang in the air."""
    for ax, labels in zip(axes, ends, strict=True):
        low, high = ax.get_ylim()
        for line in ax.lines:
            if line.get_label() == "_end" and not low <= line.get_ydata()[0] <= high:
                line.set_visible(False)
        end_labels(ax, labels)


def share_limits(axes: np.ndarray, shown: pd.DataFrame, paper_top: float | None, late: float = 0.1) -> None:
    """The panels are read against each other: one y axis for all that show something."""
    limits = [limits_of(ax, shown, paper_top, late) for ax in axes if ax.lines] or [(0.0, paper_top or 100.0)]
    for ax in axes:
        set_limits(ax, limits)


def set_limits(ax: Axes, limits: list[tuple[float, float]]) -> None:
    """One range of errors that holds all of these (low, high), with ticks at round numbers."""
    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def limits_of(ax: Axes, shown: pd.DataFrame, paper_top: float | None, late: float = 0.1) -> tuple[float, float]:
    """0 to the paper's limit where the runs are of its scale and end below it; otherwise what the curves need.

    late: from which part of the training on they are in sight.
    """
    curves = [line for line in ax.lines if not line.get_label().startswith("_")]
    if not curves:
        return 0.0, paper_top or 100.0
    ends = [line.get_ydata()[-1] for line in curves]
    if paper_top and evidence.at_paper_scale(shown) and np.median(ends) < paper_top:
        return 0.0, paper_top
    last = max(line.get_xdata()[-1] for line in curves)
    seen = np.concatenate([np.asarray(y)[np.asarray(x) >= late * last] for x, y in (c.get_data() for c in curves)])
    low, high = float(np.min(seen)), float(np.max(seen))
    bottom = 0.0 if low < 0.6 * high else 5 * math.floor(low / 5 - 0.2)
    return bottom, min(100.0, 5 * math.ceil(high * 1.04 / 5))


def planned_models(runs: pd.DataFrame, names: tuple[str, ...] = ("figure1", "figure4", "figure6")) -> set[str]:
    """The networks that the runs' presets train for these figures; none where no run names a preset."""
    models = set()
    for name in runs["preset"].dropna().unique() if "preset" in runs else ():
        try:
            recipes = studies.plan(presets.preset_of(str(name)), {"cifar": "cifar10", "imagenet": "imagenet"}, 1, names)
        except UserError:  # a record that names a preset of another version
            continue
        models |= {recipe.model for recipe in recipes}
    return models


def why_absent(missing: Iterable[str], runs: pd.DataFrame) -> list[str]:
    """Why these networks have no curve, by what can be done about it: "not yet trained: plain-32 and plain-44"."""
    planned = planned_models(runs)
    diverged = set(runs.loc[runs["status"] == "diverged", "model"]) if "status" in runs else set()
    reasons: dict[str, list[str]] = {}
    for model in sorted(missing, key=family_and_depth):
        if model in diverged:
            why = "diverged"
        elif model in set(runs["model"]):
            why = "begun, without a measurement yet"
        else:
            why = "not yet trained" if model in planned or not planned else "not part of this preset"
        reasons.setdefault(why, []).append(paper.label(model))
    return [f"{why}: {_list(names)}" for why, names in reasons.items()]


def notes(runs: pd.DataFrame, shown: pd.DataFrame) -> str:
    """What the footer says of the runs: vertical lines, bands, what diverged and what is not drawn."""
    lines = ["vertical lines: the learning rate falls"] if _drops(shown) else []
    if len(shown) and shown.groupby("model")["seed"].nunique().max() > 1:
        lines.append("lines: mean of the seeds; bands: smallest to largest")
    if "status" in runs and len(diverged := runs.loc[runs["status"] == "diverged", "model"].unique()):
        names = _list([paper.label(m) for m in diverged])
        lines.append(f"diverged, not drawn: {names}")
    same = runs[runs["model"].isin(shown["model"])]
    if left := len(same) - len(evidence.main_runs(same)):
        lines.append(f"{left} run{'s' * (left > 1)} of these nets under other settings not drawn")
    return " · ".join(lines)


def joined(*parts: str) -> str:
    """The parts of a footer that are not empty."""
    return " · ".join(filter(None, parts))


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
