"""Figures of what a change of the protocol costs: the forest plot of differences, and learning curves side by side."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import evidence
from ..comparison import ALIKE, BINOMIAL
from ..differences import MCNEMAR, NOT_TRAINED, POOLED, UNDECIDED, of_group
from ..recipe import Recipe
from .panels import seed_band
from .style import end_labels, iteration_axis, legend_above, new_figure, say, say_in_corner, sign

SEEDS = "over seeds or networks"  # WELCH, PAIRED and POOLED, which look alike
HOLLOW = {"linewidth": 1, "marker": "o", "markerfacecolor": "white"}
LOOKS = {  # of intervals in the forest plot, and what the legend says of them
    SEEDS: ("95% interval over seeds or networks", {"linewidth": 2, "marker": "o"}),
    ALIKE: ("one seed, given the other side's spread", HOLLOW),
    BINOMIAL: (
        "single seeds: four binomial errors, without the spread between them",
        HOLLOW | {"linestyle": (0, (3, 1.5))},
    ),
    MCNEMAR: ("one network tested twice: 95% over the test images alone", HOLLOW | {"linestyle": (0, (1, 1))}),
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # the reference, then the changes


def forest(rows: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Differences with their intervals, a line per deviation, in order of `rows`; right of zero is worse.

    What has no number has no line where others have one: the footer names it and says why. Diverged runs are a result.
    """
    empty = rows["difference"].isna() & (rows["diverged"] == 0)
    absent, rows = (rows.iloc[:0], rows) if empty.all() else (rows[empty], rows[~empty])
    fig, axes = new_figure(8.6, 1.5 + 0.38 * max(2, len(rows)))
    ax = axes[0][0]
    places, kinds, waiting = np.arange(len(rows))[::-1], set(), []
    ax.axvline(0, color="#444444", linewidth=1, zorder=1)
    for place, row in zip(places, rows.to_dict("records"), strict=True):
        if np.isfinite(row["difference"]):
            kind = row["interval"] if row["interval"] in LOOKS else SEEDS
            look = LOOKS[kind][1]
            ax.plot([row["low"], row["high"]], [place, place], color=COLOURS[0], zorder=2, **look | {"marker": ""})
            ax.plot([row["difference"]], [place], color=COLOURS[0], zorder=3, **look)
            kinds.add(kind)
        else:
            ink = "#CC0000" if row["diverged"] else "#777777"  # a run that is still to come is no failure
            waiting.append((place, row["finding"], ink))
        count = f"{row['n']} networks" if row["interval"] == POOLED else f"n = {row['n']}"
        count += f", {row['diverged']} diverged" if row["diverged"] else ""
        count += ", undecided" if row["finding"].endswith(UNDECIDED) else ""
        ax.annotate(
            count, (1, place), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=7.5, color="#666666",
        )  # fmt: skip
    if rows.empty:
        say(ax, "nothing to compare at this preset")
    ax.set_yticks(places, [textwrap.fill(name, 34, break_on_hyphens=False) for name in rows["deviation"]])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.grid(axis="y", visible=False)
    left, right = min(0, rows["low"].fillna(0).min()), max(0, rows["high"].fillna(0).max())
    if right > left:
        margin = 0.06 * (right - left)
        ax.set_xlim(left - margin, right + margin)
    low, high = ax.get_xlim()
    x, side = (0.98, "right") if -low < 0.3 * (high - low) else (0.02, "left")  # on the wider side of zero
    for place, finding, ink in waiting:
        where = ax.get_yaxis_transform()
        ax.text(x, place, finding, va="center", ha=side, fontsize=8, color=ink, transform=where)
    ax.set_xlabel("test error minus the reference's (points)")
    for words, side in (("← better ", "right"), (" worse →", "left")):  # on their sides of zero
        ax.text(0, 1.01, words, transform=ax.get_xaxis_transform(), ha=side, va="bottom", fontsize=8, color="#444444")
    if kinds:
        shown = (LOOKS[kind] for kind in LOOKS if kind in kinds)
        handles = [Line2D([], [], color=COLOURS[0], label=label, **look) for label, look in shown]
        legend_above(fig, handles, columns=2)
    groups = absent.groupby("finding", sort=False)["deviation"]
    sign(fig, runs, " · ".join(f"{finding}: {'; '.join(names)}" for finding, names in groups))
    return fig


def learning_curves(groups: dict[str, list[Recipe]], runs: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Training (left) and test error (right) of each group's finished runs against the iteration, a band over seeds."""
    fig, axes = new_figure(8.6, 3.6, 1, 2, sharey=True)
    ended, runs = runs, evidence.finished(runs)
    members = {name: of_group(recipes, runs) for name, recipes in groups.items()}
    shown = pd.concat(members.values())
    curves = curves[curves["run"].isin(shown["run"])]
    unit = [iteration_axis(ax, curves["iteration"].max() if len(curves) else 0) for ax in axes[0]][0]
    ends: list[list[tuple[float, str, str]]] = [[], []]
    for ax, kind, ending in zip(axes[0], ("training", "test"), ends, strict=True):
        for ink, (name, group) in zip(COLOURS, members.items(), strict=False):
            column = f"{kind.removesuffix('ing')}_error"
            band = seed_band(curves[curves["run"].isin(group["run"])], column)
            if band.empty:
                continue
            x = band.index / unit
            ax.plot(x, band["mean"], color=ink, linewidth=1.8, label=name)
            ax.fill_between(x, band["low"], band["high"], color=ink, alpha=0.18, linewidth=0)
            ending.append((float(band["mean"].iloc[-1]), name, ink))
        ax.set_ylabel(f"{kind} error (%)")
        absent = [
            f"{'diverged' if len(of_group(recipes, ended)) else NOT_TRAINED}: {name}"
            for name, recipes in groups.items()
            if members[name].empty
        ]
        if absent:
            (say_in_corner if ending else say)(ax, "\n".join(absent))
    for ax, ending in zip(axes[0], ends, strict=True):  # now that both panels have set their common limits
        end_labels(ax, ending)
    several = any(len(group) > 1 for group in members.values())
    sign(fig, shown, "bands: smallest to largest of the seeds" if several else "")
    return fig
