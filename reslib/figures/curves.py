"""Error curves: Figures 1, 4 and 6.

Training error is the running one on augmented images since the previous point: the paper does not say how it took its
own. Test error is of the single original view (the centre crop on ImageNet). Several seeds are drawn as their mean in a
band from the smallest to the largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .. import evidence, imagenet_scale, paper, presets, studies
from ..errors import UserError
from ..names import family_and_depth
from .closer import closer_look
from .style import (
    GREY,
    colour,
    end_labels,
    iteration_axis,
    legend_above,
    marker,
    new_figure,
    say,
    sign,
)

TRAIN = {"linestyle": (0, (3, 1.5)), "linewidth": 1.0}  # dashed, as in Figure 6
TEST = {"linestyle": "-", "linewidth": 2.0}  # bold
DROP = "_drop"  # a line where the learning rate falls
AUGMENTED = "training error: running, on augmented images"
PAPER_LINES = {  # label: line style, words of the legend
    "_paper": (":", "test error, paper (Table 6)"),
    "_paper_train": ("-.", "bound of the training error, paper"),
}
TRAINING_BOUNDS = {  # model: on which side of which training error it is (caption of Figure 6; section 4.2)
    "plain110": ("above", paper.PLAIN110_TRAINING_ERROR_ABOVE),
    "resnet1202": ("below", paper.RESNET1202_TRAINING_ERROR_BELOW),
}


def seed_band(curves: pd.DataFrame, column: str) -> pd.DataFrame:
    """Per iteration the mean, low, high (smallest and largest seed) in % and n of a column of fractions."""
    values = curves.dropna(subset=[column])
    band = values.groupby("iteration")[column].agg(["mean", "min", "max", "count"])
    band.columns = ["mean", "low", "high", "n"]
    band[["mean", "low", "high"]] *= 100
    return band


def figure1(runs: pd.DataFrame, curves: pd.DataFrame, depths: tuple[int, ...] | None = None) -> Figure:
    """Figure 1: training error (left) and test error (right) of plain nets of 20 and 56 layers.

    A preset without one of these gets its shallowest and deepest plain net, and the figure says so.
    """
    depths = depths or _figure1_depths(runs)
    shown = _shown(runs, [f"plain{d}" for d in depths])
    fig, axes = new_figure(8.6, 3.5, 1, 2)
    ends, absent = [], []
    for ax, column, title in zip(axes[0], ("train_error", "test_error"), ("training", "test"), strict=True):
        look = {"linestyle": "-", "linewidth": 1.6}
        ends.append(_panel(ax, runs, shown, curves, [(column, look)], [f"plain{d}" for d in depths], absent))
        ax.set_ylabel(f"{title} error (%)")
        ax.set_title(f"plain nets, {title} error")
    _share_limits(axes[0], shown, 20, late=0)
    _label_ends(axes[0], ends)
    stands_in = "" if depths == paper.FIGURE1_DEPTHS else "the paper's figure has 20 and 56 layers"
    sign(fig, shown, _joined(stands_in, AUGMENTED, *why_absent(absent, runs), _notes(runs, shown)))
    return fig


def _figure1_depths(runs: pd.DataFrame) -> tuple[int, ...]:
    plain = runs[(runs["family"] == "plain") & ~runs["depth"].isin(evidence.IMAGENET_DEPTHS)]
    there = sorted({int(d) for d in plain["depth"]} | _planned_depths(runs))
    if len(there) < 2 or set(paper.FIGURE1_DEPTHS) <= set(there):
        return paper.FIGURE1_DEPTHS
    return there[0], there[-1]


def _planned_depths(runs: pd.DataFrame) -> set[int]:
    """Depths of the plain nets that the runs' presets have for Figure 1."""
    names = [family_and_depth(model) for model in planned_models(runs, ("figure1",))]
    return {depth for family, depth in names if family == "plain"}


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


def figure4(runs: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Figure 4: 18 and 34 layers on ImageNet, plain left and ResNet right; thin training, bold validation error."""
    names = {family: [f"{family}{d}" for d in (18, 34)] for family in ("plain", "resnet")}
    shown = _shown(runs, names["plain"] + names["resnet"])
    fig, axes = new_figure(8.6, 3.9, 1, 2)
    columns = [("train_error", {"linestyle": "-", "linewidth": 0.8}), ("test_error", TEST)]
    ends, absent = [], []
    for ax, family in zip(axes[0], names, strict=True):
        ends.append(_panel(ax, runs, shown, curves, columns, names[family], absent))
        ax.set_title("plain nets" if family == "plain" else "residual nets")
        ax.set_ylabel("error (%)")
    _share_limits(axes[0], shown, None)
    _label_ends(axes[0], ends)
    handles = [
        Line2D([], [], color=GREY, linewidth=0.8, label="training error (augmented crops)"),
        Line2D([], [], color=GREY, linewidth=2, label="validation error (centre crop)"),
    ]
    legend_above(fig, handles)
    sign(fig, shown, _joined(imagenet_scale.in_words(shown), *why_absent(absent, runs), _notes(runs, shown)))
    return fig


def figure6(runs: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Figure 6: plain nets, residual nets, ResNet-110 beside ResNet-1202; dashed training, bold test error.

    At the paper's scale the test errors of Table 6 are short dotted lines at the right (for ResNet-110 the mean of five
    runs), and so, dash-dotted, the bounds that the paper gives of two training errors; the footer has these in words.
    """
    panels = [
        ("plain nets", _depths(runs, "plain", paper.FIGURE6_PLAIN)),
        ("residual nets", [m for m in _depths(runs, "resnet", paper.FIGURE6_RESNET) if m != "resnet1202"]),
        ("110 and 1202 layers", ["resnet110", "resnet1202"]),
    ]
    shown = _shown(runs, sorted({model for _, models in panels for model in models}))
    compares = evidence.at_paper_scale(shown)
    absent = []
    if len(shown) and "resnet1202" not in set(shown["model"]):  # the panel beside has ResNet-110 already
        absent = [m for m in panels.pop()[1] if m not in panels[-1][1]]
    named = {model for _, models in panels for model in models}
    absent += sorted(planned_models(runs, ("figure6",)) - named - set(absent), key=family_and_depth)
    fig, axes = new_figure(11.5 * len(panels) / 3, 4.1, 1, len(panels))
    fig.get_layout_engine().set(wspace=0.06)  # between the labels of line ends and of the next axis
    ends, columns = [], [("train_error", TRAIN), ("test_error", TEST)]
    for ax, (title, models) in zip(axes[0], panels, strict=True):
        ends.append(_panel(ax, runs, shown, curves, columns, models, absent))
        ax.set_title(title)
        ax.set_ylabel("error (%)")
        for model in (m for m in models if compares and m in set(shown["model"])):
            if model in paper.TABLE6:
                row = paper.TABLE6[model]
                _paper_line(ax, row.mean if row.mean is not None else row.error, model, "_paper")
            if model in TRAINING_BOUNDS:
                _paper_line(ax, TRAINING_BOUNDS[model][1], model, "_paper_train")
    for ax in axes[0]:  # each panel compares depths: an axis for the plain nets would press the others together
        _set_limits(ax, [(0.0, _limits(ax, shown, 20, late=0.5)[1])])  # from zero, as the paper's
    _label_ends(axes[0], ends)
    for ax, labels in zip(axes[0], ends, strict=True):
        if compares and len(labels) > 1:
            closer_look(ax)
    handles = [Line2D([], [], color=GREY, label="training error (augmented images)", **TRAIN)]
    handles.append(Line2D([], [], color=GREY, label="test error", **TEST))
    for label, (style, words) in PAPER_LINES.items():  # none after a short schedule, far from the paper's errors
        if _in_sight(axes[0], label):
            handles.append(Line2D([], [], color=GREY, linestyle=style, linewidth=1, label=words))
    legend_above(fig, handles)
    bounds = [f"{paper.label(m)} {side} {level:g}%" for m, (side, level) in TRAINING_BOUNDS.items() if compares]
    words = [f"training errors that the paper gives: {', '.join(bounds)}"] if bounds else []
    words += ["each panel has its own axis of errors"] if len({ax.get_ylim() for ax in axes[0] if ax.lines}) > 1 else []
    sign(fig, shown, _joined(*words, *why_absent(absent, runs), _notes(runs, shown)))
    return fig


def _paper_line(ax: Axes, level: float, model: str, label: str) -> None:
    """A short line at the right edge of a panel, at a number of the paper."""
    ax.plot(
        [0.8, 1], [level, level], transform=ax.get_yaxis_transform(), color=colour(family_and_depth(model)[1]),
        linestyle=PAPER_LINES[label][0], linewidth=1, zorder=1, label=label,
    )  # fmt: skip


def _shown(runs: pd.DataFrame, models: list[str]) -> pd.DataFrame:
    return evidence.drawable(evidence.main_runs(runs[runs["model"].isin(models)]))


def _depths(runs: pd.DataFrame, family: str, always: tuple[int, ...]) -> list[str]:
    """Models of a family in order of depth: the paper's, and others of CIFAR form that the frame has."""
    found = runs.loc[(runs["family"] == family) & ~runs["depth"].isin(evidence.IMAGENET_DEPTHS), "depth"]
    present = {int(d) for d in found if f"{family}{int(d)}" in set(runs["model"])}
    return [f"{family}{d}" for d in sorted(present | set(always))]


def _panel(
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


def _label_ends(axes: np.ndarray, ends: list) -> None:
    """Label the line ends, once the limits are known; a marker outside them would hang in the air."""
    for ax, labels in zip(axes, ends, strict=True):
        low, high = ax.get_ylim()
        for line in ax.lines:
            if line.get_label() == "_end" and not low <= line.get_ydata()[0] <= high:
                line.set_visible(False)
        end_labels(ax, labels)


def _in_sight(axes: np.ndarray, label: str) -> bool:
    """Whether a line with this label lies within the limits of its panel."""
    return any(
        ax.get_ylim()[0] <= line.get_ydata()[0] <= ax.get_ylim()[1]
        for ax in axes
        for line in ax.lines
        if line.get_label() == label
    )


def _share_limits(axes: np.ndarray, shown: pd.DataFrame, paper_top: float | None, late: float = 0.1) -> None:
    """The panels are read against each other: one y axis for all that show something."""
    limits = [_limits(ax, shown, paper_top, late) for ax in axes if ax.lines] or [(0.0, paper_top or 100.0)]
    for ax in axes:
        _set_limits(ax, limits)


def _set_limits(ax: Axes, limits: list[tuple[float, float]]) -> None:
    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _limits(ax: Axes, shown: pd.DataFrame, paper_top: float | None, late: float = 0.1) -> tuple[float, float]:
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


def _notes(runs: pd.DataFrame, shown: pd.DataFrame) -> str:
    notes = ["vertical lines: the learning rate falls"] if _drops(shown) else []
    if len(shown) and shown.groupby("model")["seed"].nunique().max() > 1:
        notes.append("lines: mean of the seeds; bands: smallest to largest")
    if "status" in runs and len(diverged := runs.loc[runs["status"] == "diverged", "model"].unique()):
        names = _list([paper.label(m) for m in diverged])
        notes.append(f"diverged, not drawn: {names}")
    same = runs[runs["model"].isin(shown["model"])]
    if left := len(same) - len(evidence.main_runs(same)):
        notes.append(f"{left} run{'s' * (left > 1)} of these nets under other settings not drawn")
    return " · ".join(notes)


def _joined(*parts: str) -> str:
    return " · ".join(filter(None, parts))


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
