"""Error curves: Figures 1, 4 and 6.

Training error is the running one on augmented images since the previous point: the paper does not say how it took its
own. Test error is of the single original view (the centre crop on ImageNet). Several seeds are drawn as their mean in a
band from the smallest to the largest.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .. import evidence, imagenet_scale, paper
from ..names import family_and_depth
from .closer import closer_look
from .panels import (
    draw_panel,
    drawn_runs,
    joined,
    label_ends,
    limits_of,
    notes,
    planned_models,
    set_limits,
    share_limits,
    why_absent,
)
from .style import GREY, colour, legend_above, new_figure, sign

TRAIN = {"linestyle": (0, (3, 1.5)), "linewidth": 1.0}  # dashed, as in Figure 6
TEST = {"linestyle": "-", "linewidth": 2.0}  # bold
AUGMENTED = "training error: running, on augmented images"
PAPER_LINES = {  # label: line style, words of the legend
    "_paper": (":", "test error, paper (Table 6)"),
    "_paper_train": ("-.", "bound of the training error, paper"),
}
TRAINING_BOUNDS = {  # model: on which side of which training error it is (caption of Figure 6; section 4.2)
    "plain110": ("above", paper.PLAIN110_TRAINING_ERROR_ABOVE),
    "resnet1202": ("below", paper.RESNET1202_TRAINING_ERROR_BELOW),
}


def figure1(runs: pd.DataFrame, curves: pd.DataFrame, depths: tuple[int, ...] | None = None) -> Figure:
    """Figure 1: training error (left) and test error (right) of plain nets of 20 and 56 layers.

    A preset without one of these gets its shallowest and deepest plain net, and the figure says so.
    """
    depths = depths or _figure1_depths(runs)
    shown = drawn_runs(runs, [f"plain{d}" for d in depths])
    fig, axes = new_figure(8.6, 3.5, 1, 2)
    ends, absent = [], []
    for ax, column, title in zip(axes[0], ("train_error", "test_error"), ("training", "test"), strict=True):
        look = {"linestyle": "-", "linewidth": 1.6}
        ends.append(draw_panel(ax, runs, shown, curves, [(column, look)], [f"plain{d}" for d in depths], absent))
        ax.set_ylabel(f"{title} error (%)")
        ax.set_title(f"plain nets, {title} error")
    share_limits(axes[0], shown, 20, late=0)
    label_ends(axes[0], ends)
    stands_in = "" if depths == paper.FIGURE1_DEPTHS else "the paper's figure has 20 and 56 layers"
    sign(fig, shown, joined(stands_in, AUGMENTED, *why_absent(absent, runs), notes(runs, shown)))
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


def figure4(runs: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Figure 4: 18 and 34 layers on ImageNet, plain left and ResNet right; thin training, bold validation error."""
    names = {family: [f"{family}{d}" for d in (18, 34)] for family in ("plain", "resnet")}
    shown = drawn_runs(runs, names["plain"] + names["resnet"])
    fig, axes = new_figure(8.6, 3.9, 1, 2)
    columns = [("train_error", {"linestyle": "-", "linewidth": 0.8}), ("test_error", TEST)]
    ends, absent = [], []
    for ax, family in zip(axes[0], names, strict=True):
        ends.append(draw_panel(ax, runs, shown, curves, columns, names[family], absent))
        ax.set_title("plain nets" if family == "plain" else "residual nets")
        ax.set_ylabel("error (%)")
    share_limits(axes[0], shown, None)
    label_ends(axes[0], ends)
    handles = [
        Line2D([], [], color=GREY, linewidth=0.8, label="training error (augmented crops)"),
        Line2D([], [], color=GREY, linewidth=2, label="validation error (centre crop)"),
    ]
    legend_above(fig, handles)
    sign(fig, shown, joined(imagenet_scale.in_words(shown), *why_absent(absent, runs), notes(runs, shown)))
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
    shown = drawn_runs(runs, sorted({model for _, models in panels for model in models}))
    compares = evidence.at_paper_scale(shown)
    absent = []
    if len(shown) and "resnet1202" not in set(shown["model"]):  # the panel beside has ResNet-110 already
        absent = [m for m in panels.pop()[1] if m not in panels[-1][1]]
    named = {model for _, models in panels for model in models}
    absent += sorted(planned_models(runs, ("figure6",)) - named - set(absent), key=family_and_depth)
    fig, axes = new_figure(11.5 * len(panels) / 3, 4.1, 1, len(panels))
    fig.get_layout_engine().set(wspace=0.06)  # between the labels of line ends and of the next axis
    ends, means, columns = [], [], [("train_error", TRAIN), ("test_error", TEST)]
    for ax, (title, models) in zip(axes[0], panels, strict=True):
        ends.append(draw_panel(ax, runs, shown, curves, columns, models, absent))
        ax.set_title(title)
        ax.set_ylabel("error (%)")
        for model in (m for m in models if compares and m in set(shown["model"])):
            if model in paper.TABLE6:
                row = paper.TABLE6[model]
                if row.mean is not None and not means:
                    means.append(f"the paper's test error of {row.label}: {row.mean:g}%, the mean of its runs")
                _paper_line(ax, row.mean if row.mean is not None else row.error, model, "_paper")
            if model in TRAINING_BOUNDS:
                _paper_line(ax, TRAINING_BOUNDS[model][1], model, "_paper_train")
    for ax in axes[0]:  # each panel compares depths: an axis for the plain nets would press the others together
        set_limits(ax, [(0.0, limits_of(ax, shown, 20, late=0.5)[1])])  # from zero, as the paper's
    label_ends(axes[0], ends)
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
    words += means
    words += ["each panel has its own axis of errors"] if len({ax.get_ylim() for ax in axes[0] if ax.lines}) > 1 else []
    sign(fig, shown, joined(*words, *why_absent(absent, runs), notes(runs, shown)))
    return fig


def _paper_line(ax: Axes, level: float, model: str, label: str) -> None:
    """A short line at the right edge of a panel, at a number of the paper."""
    ax.plot(
        [0.8, 1], [level, level], transform=ax.get_yaxis_transform(), color=colour(family_and_depth(model)[1]),
        linestyle=PAPER_LINES[label][0], linewidth=1, zorder=1, label=label,
    )  # fmt: skip


def _depths(runs: pd.DataFrame, family: str, always: tuple[int, ...]) -> list[str]:
    """Models of a family in order of depth: the paper's, and others of CIFAR form that the frame has."""
    found = runs.loc[(runs["family"] == family) & ~runs["depth"].isin(evidence.IMAGENET_DEPTHS), "depth"]
    present = {int(d) for d in found if f"{family}{int(d)}" in set(runs["model"])}
    return [f"{family}{d}" for d in sorted(present | set(always))]


def _in_sight(axes: np.ndarray, label: str) -> bool:
    """Whether a line with this label lies within the limits of its panel."""
    return any(
        ax.get_ylim()[0] <= line.get_ydata()[0] <= ax.get_ylim()[1]
        for ax in axes
        for line in ax.lines
        if line.get_label() == label
    )
