"""The look that every figure shares: colours, the line of evidence below, labels at line ends, and saving."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Line

from .. import evidence
from ..files import whole_file

# One colour and marker per depth, everywhere. From the palette of Okabe and Ito; the markers tell them apart in grey.
COLOURS = {
    8: "#8C8C8C", 14: "#7A5C00", 20: "#E69F00", 32: "#56B4E9", 44: "#009E73", 56: "#D55E00", 110: "#222222",
    1202: "#CC79A7", 18: "#56B4E9", 34: "#D55E00", 50: "#009E73", 101: "#222222", 152: "#CC79A7",
}  # fmt: skip
MARKERS = {8: "X", 14: "<", 20: "o", 32: "s", 44: "^", 56: "D", 110: "v", 1202: "P"} | {
    18: "o", 34: "D", 50: "^", 101: "v", 152: "P"
}  # fmt: skip
GREY = "#444444"  # of a legend's lines that stand for every colour
FAMILY = {  # plain and residual where both share a panel: colour (of no depth), line style, marker
    "plain": {"color": "#882255", "linestyle": "--", "marker": "s"},
    "resnet": {"color": "#0072B2", "linestyle": "-", "marker": "o"},
}
FAMILY_NAME = {"plain": "plain", "resnet": "ResNet"}
RC = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.solid_capstyle": "round",
}
SYNTHETIC_NOTE = "SYNTHETIC DATA: not a result about natural images"


def colour(depth: int) -> str:
    """The colour of a depth, the same in every figure."""
    return COLOURS.get(int(depth), "#6A3D9A")


def marker(depth: int) -> str:
    """The marker of a depth, the same in every figure."""
    return MARKERS.get(int(depth), "*")


class ShownFigure(Figure):
    """A figure that a notebook shows as a cell's value, whether or not pyplot has been set up there."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=100)
        return png.getvalue()


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **subplots) -> tuple[Figure, np.ndarray]:
    """A figure outside pyplot's state (shown once in a notebook, nothing to close) and its axes (rows, columns)."""
    with matplotlib.rc_context(RC):
        fig = ShownFigure(figsize=(width, height), layout="constrained")
        return fig, fig.subplots(rows, columns, squeeze=False, **subplots)


def sign(fig: Figure, runs: pd.DataFrame | None, extra: str = "") -> None:
    """Put the line of evidence below the figure and, if any run is on synthetic data, say so loudly above."""
    lines = [] if runs is None else [evidence.evidence_line(runs)]
    text = " · ".join(filter(None, [*lines, extra]))
    if text:
        wrapped = textwrap.fill(text, int(fig.get_figwidth() * 19), break_on_hyphens=False)
        fig.supxlabel(wrapped, x=0.01, ha="left", fontsize=6.5, color="#666666")
    if runs is not None and len(runs) and evidence.is_synthetic(runs).any():
        warn_synthetic(fig)


def warn_synthetic(fig: Figure) -> None:
    """The loud line on top: as the legend's title where a legend is there, so that neither covers the other."""
    if fig.legends:
        fig.legends[0].set_title(SYNTHETIC_NOTE, prop={"size": 11, "weight": "bold"})
        fig.legends[0].get_title().set_color("#CC0000")
    else:
        fig.suptitle(SYNTHETIC_NOTE, color="#CC0000", fontsize=11, fontweight="bold")


def legend_above(fig: Figure, handles: list, columns: int = 5) -> None:
    """One legend above all axes."""
    fig.legend(
        handles=handles, loc="outside upper center", ncols=min(len(handles), columns), frameon=False, fontsize=8.5
    )


def say(ax: Axes, text: str) -> None:
    """Say in words what a panel does not show."""
    ax.text(
        0.5, 0.5, textwrap.fill(text, 34), transform=ax.transAxes, ha="center", va="center", color="#777777", fontsize=9
    )


def say_in_corner(ax: Axes, text: str) -> None:
    """Say beside the curves of a panel, at the top right, which ones are not there."""
    paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}  # curves may pass behind it
    place = {"transform": ax.transAxes, "ha": "right", "va": "top", "zorder": 6}
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, 34)]  # clear of the noise at high rates
    ax.text(0.98, 0.98, "\n".join(lines), fontsize=7, color="#777777", bbox=paper, **place)


def iteration_axis(ax: Axes, last: float) -> float:
    """Label the x axis as the paper does from 10,000 iterations on; the unit to divide iterations by."""
    unit = 1e4 if last >= 10_000 else 1
    ax.set_xlabel("iter. (1e4)" if unit > 1 else "iteration")
    if last > 0:
        ax.set_xlim(0, last / unit)
    return unit


def end_labels(ax: Axes, labels: list[tuple[float, str, str]], size: float = 8) -> None:
    """Write (y, text, colour) right of the axes at height y, moved apart where they would overlap.

    A value outside the limits (a percentage) gets its label at the edge, with an arrow; a label that had to move, a
    thin line from where its curve ends.
    """
    low, high = ax.get_ylim()
    box, size_of = ax.get_position(), ax.get_figure().get_size_inches()
    width, height = 72 * box.width * size_of[0], 72 * box.height * size_of[1]  # points, before the layout: near enough
    step = 1.15 * size / height
    items = []
    for y, text, ink in sorted(labels):
        arrow = f" ↑ {y:.0f}%" if y > high else f" ↓ {y:.0f}%" if y < low else ""
        place = min(max((y - low) / (high - low), 0), 1)
        items.append([place, place, text + arrow, ink])
    for _ in range(200):  # relax: push overlapping neighbours apart, stay within the axes
        for a, b in zip(items, items[1:], strict=False):
            if (overlap := step - (b[0] - a[0])) > 1e-6:
                a[0], b[0] = a[0] - overlap / 2, b[0] + overlap / 2
        for item in items:
            item[0] = min(max(item[0], 0), 1)
    moved = [abs(place - end) > 0.3 * step for place, end, *_ in items]
    gap = 14 if any(moved) else 5  # points
    for (place, end, text, ink), lead in zip(items, moved, strict=True):
        ax.annotate(
            text, (1, place), xycoords="axes fraction", xytext=(gap, 0), textcoords="offset points", color=ink,
            fontsize=size, va="center", annotation_clip=False,
        )  # fmt: skip
        if lead:
            ends = [(1 + 4 / width, end), (1 + (gap - 2) / width, place)]  # clear of a marker at the line's end
            ax.add_patch(
                PathPatch(Line(ends), transform=ax.transAxes, color=ink, fill=False, linewidth=0.6, clip_on=False)
            )


def save_figure(fig: Figure, stem: str | Path) -> list[Path]:
    """Write stem.png (200 dpi) and stem.pdf, each whole or not at all; the same figure gives the same bytes."""
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        path = Path(stem).with_name(f"{Path(stem).name}.{kind}")
        with whole_file(path, "wb") as file:
            fig.savefig(file, format=kind, dpi=200, metadata=metadata)
        paths.append(path)
    return paths
