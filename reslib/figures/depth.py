"""The final errors of plain and residual nets against their depth: the paper's argument in one view."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import offset_copy

from .. import evidence, paper
from ..names import family_and_depth
from .panels import planned_models, why_absent
from .style import FAMILY, FAMILY_NAME, GREY, legend_above, new_figure, say, sign

APART = {"plain": -4, "resnet": 4}  # points


def depth_view(runs: pd.DataFrame) -> Figure:
    """Final training (left) and test (right) error against the number of layers, plain and residual.

    Filled marks are single seeds, open ones means over several, each of which is a dot. The two families stand a little
    apart, so that marks of one error do not cover each other. Networks of the preset without a mark are named below.
    """
    chosen = evidence.finished(evidence.main_runs(runs[runs["family"].isin(list(FAMILY))]))
    chosen = chosen[chosen["depth"] > 0]
    fig, axes = new_figure(8.6, 3.5, 1, 2)
    missing = planned_models(runs, ("figure1", "figure6")) - set(chosen["model"])
    there, few = set(chosen["depth"].unique()), set(paper.FIGURE6_PLAIN)
    if there and max(there) <= max(few):  # beyond, these would be one clump
        there |= few & {family_and_depth(model)[1] for model in missing} if len(there) > 1 else few
    depths = sorted(there)
    several = chosen[chosen.groupby("model")["seed"].transform("nunique") > 1]
    for ax, column, title in zip(axes[0], ("train_error", "test_error"), ("training", "test"), strict=True):
        for family, look in FAMILY.items():
            group = chosen[(chosen["family"] == family)].dropna(subset=[column])
            if group.empty:
                continue
            means = group.groupby("depth")[column].mean() * 100
            place = offset_copy(ax.transData, fig, x=APART[family], units="points")
            ax.update_datalim(list(zip(group["depth"], group[column] * 100, strict=True)))  # no limits from such marks
            seeds = group.groupby("depth")["seed"].nunique()
            ax.plot(
                means.index, means.values, linewidth=1.6, markersize=8, clip_on=False, label=FAMILY_NAME[family],
                zorder=3, transform=place, **look,
            )  # fmt: skip
            if (many := means[seeds > 1]).size:  # a line of no point would upset the layout
                ax.plot(
                    many.index, many.values, linestyle="", marker=look["marker"], markersize=8, color=look["color"],
                    markerfacecolor="white", clip_on=False, label="_means", zorder=3, transform=place,
                )  # fmt: skip
            if len(dots := group[group.index.isin(several.index)]):
                ax.plot(
                    dots["depth"], dots[column] * 100, linestyle="", marker=".", color=look["color"], markersize=5,
                    clip_on=False, zorder=4, label="_seeds", transform=place,
                )  # fmt: skip
        ax.update_datalim([(depth, 0) for depth in depths])
        ax.autoscale_view()
        if not ax.lines:
            say(ax, "no finished plain or residual nets at this preset")
        elif max(depths) > 152:
            ax.set_xscale("log")
        if depths:
            ax.set_xticks(depths, [str(int(d)) for d in depths])
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.minorticks_off()
        ax.set_xlabel("layers")
        ax.set_ylabel(f"final {title} error (%)")
    top = 1.06 * max(ax.get_ylim()[1] for ax in axes[0])  # room for the marks of the largest
    for ax in axes[0]:  # read against each other
        ax.set_ylim(0, top)
    if handles := axes[0][0].get_legend_handles_labels()[0]:
        if len(several):
            label = "one seed of several (open mark: their mean)"
            handles.append(Line2D([], [], color=GREY, linestyle="", marker=".", markersize=5, label=label))
        legend_above(fig, handles)
    words = ["training error: running, on augmented images", "the two marks of a depth stand a little apart"]
    sign(fig, chosen, " · ".join([*why_absent(missing, runs), *words]) if len(chosen) else "")
    return fig
