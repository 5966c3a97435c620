"""The benchmark's records: the loops side by side, where a step's time goes, and how cost grows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from .. import paper
from .style import legend_above, new_figure, say, sign

PART_COLOURS = {  # of a step; Okabe and Ito
    "data": "#E69F00", "forward": "#56B4E9", "backward": "#0072B2", "optimiser": "#009E73", "metrics": "#CC79A7",
}  # fmt: skip
GRAPH, GRAPH_COLOUR = "whole step, one CUDA graph", "#999999"  # it has no seams to part it at
CONTENDERS = {"usual": "#BBBBBB", "fast": "#222222"}  # greys: the colours stand for the parts of a step
OTHERS = "#777777"
DEVICES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
MARKERS = "osD^v"


def contenders_figure(frame: pd.DataFrame) -> Figure:
    """Images/s with the range of the turns (left) and the parts of a step (right), a row of panels per network.

    frame: rows of one device from `bench.records.comparisons`. A captured step has no parts, it is drawn whole.
    """
    groups = list(frame.groupby(["model", "batch_size"], sort=False)) if len(frame) else []
    bars = [len(group) for _, group in groups] or [2]
    height = 1.1 + sum(0.55 + 0.34 * n for n in bars)
    fig, axes = new_figure(8.6, height, len(bars), 2, gridspec_kw={"height_ratios": [n + 0.8 for n in bars]})
    if not groups:
        for ax in axes[0]:
            say(ax, "no record of this comparison")
        sign(fig, None)
        return fig
    several = frame["commit"].nunique() > 1  # each panel says then whose code it is of
    for (left, right), ((model, batch), group) in zip(axes, groups, strict=True):
        turns = group["turns"].max()
        said = [f"{_label(model)}, batch {batch}", "1 turn" if turns == 1 else f"{turns} turns"]
        _rates(left, group, ", ".join(said + [f"commit {group['commit'].iloc[0][:7]}"] * several))
        _parts(right, group)
    axes[-1][0].set_xlabel("images/s (median; line: range of the turns; ×: median ratio)")
    axes[-1][1].set_xlabel("ms per step")
    names = PART_COLOURS | ({GRAPH: GRAPH_COLOUR} if frame["captured"].any() else {})
    legend_above(fig, [Patch(color=c, label=n) for n, c in names.items()], columns=len(names))
    sign(fig, None, evidence(frame))
    return fig


def numbered(stem: str, number: int) -> str:
    """The name of a device's figure among several: stem, stem_2, stem_3 ..."""
    return stem if number == 0 else f"{stem}_{number + 1}"


def evidence(frame: pd.DataFrame) -> str:
    """Hardware, software, data and date of a device's rows."""
    columns = ("device", "threads", "dataset", "torch", "commit", "date", "load")
    names = {"torch": "torch ", "commit": "commit ", "dataset": "data ", "load": "load at the start "}
    texts = []
    for column in columns:
        values = [v for v in frame[column].unique() if pd.notna(v)] if column in frame else []
        if len(values):
            shown = sorted({str(v)[:10] if column == "date" else str(v) for v in values})
            texts.append(names.get(column, "") + ", ".join(shown) + " threads" * (column == "threads"))
    return " · ".join(texts)


def _rates(ax, group: pd.DataFrame, title: str) -> None:
    places = np.arange(len(group))[::-1]
    rates = group["images_per_second"].to_numpy()
    inks = [CONTENDERS.get(name, OTHERS) for name in group["contender"]]
    ax.barh(places, rates, height=0.62, color=inks)
    _ranges(ax, places, group)
    names = zip(group["contender"], group["precision"], strict=True)
    ax.set_yticks(places, [", ".join(dict.fromkeys(words)) for words in names])  # one is called "fp32" itself
    ax.set_title(title, loc="left")
    ax.set_xlim(0, 1.32 * group["high"].max())
    ax.xaxis.set_major_locator(MaxNLocator(5))  # numbers of six digits are wide
    ax.grid(axis="y", visible=False)
    for place, rate, ratio, high in zip(places, rates, group["ratio"], group["high"], strict=True):
        ax.text(high, place, f"  {rate:.0f} ({ratio:.2f}×)", va="center", fontsize=7.5)


def _ranges(ax, places, group: pd.DataFrame) -> None:
    """From the lowest to the highest turn, to be seen on a dark bar too."""
    edge = [withStroke(linewidth=3, foreground="white")]
    ax.hlines(places, group["low"], group["high"], color="#222222", linewidth=1.2, path_effects=edge)


def _parts(ax, group: pd.DataFrame) -> None:
    places, start, captured = np.arange(len(group))[::-1], np.zeros(len(group)), group["captured"].to_numpy(bool)
    whole = 1000 * group["batch_size"] / group["images_per_second"]
    ax.barh(places[captured], whole[captured], height=0.62, color=GRAPH_COLOUR)
    for name, ink in PART_COLOURS.items():
        widths = np.where(captured, 0.0, group[f"{name} (ms)"])
        ax.barh(places, widths, height=0.62, left=start, color=ink)
        start = start + widths
    ax.set_yticks(places, [""] * len(group))
    ax.grid(axis="y", visible=False)


# Labels in each decade of an axis whose highest value is at most so many times its lowest: more would overlap.
TICKS = ((50, (1, 2, 3, 5, 7)), (300, (1, 2, 5)), (10**5, (1, 3)), (float("inf"), (1,)))
SLOPE = "slope of the multiply-adds"
AXES = (  # axis of the measurement, column, title, x label, y label
    ("depth", "images_per_second", "speed against depth", "layers", "images/s"),
    ("depth", "peak_memory_mib", "memory against depth", "layers", "GiB at most (GPU, or process)"),
    ("batch", "images_per_second", "speed against batch size", "images in a batch", "images/s"),
    ("width", "images_per_second", "speed against width", "filters of the first stage", "images/s"),
)


def scaling_figure(frame: pd.DataFrame) -> Figure:
    """Images/s against depth, batch size and width, and peak memory against depth, on logarithmic axes.

    frame: rows of `bench.growth.scaling`, a line per device. Thin lines in the panels of depth and width have the
    slope of the multiply-adds: a net on one is bound by arithmetic.
    """
    fig, axes = new_figure(8.6, 6.2, 2, 2)
    devices = list(frame["device"].unique()) if len(frame) else []
    ways = frame.dropna(subset="contender").groupby("device")["contender"].last().to_dict() if devices else {}
    for ax, (axis, column, title, x_label, y_label) in zip(axes.flat, AXES, strict=True):
        ax.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
        part = frame[(frame["axis"] == axis) & frame[column].notna()] if devices else frame
        if part.empty:
            say(ax, "not measured")
            continue
        unit = 1024 if column == "peak_memory_mib" else 1
        for number, device in enumerate(devices):
            points = part[part["device"] == device].sort_values("value")
            look = {"color": DEVICES[number % len(DEVICES)], "marker": MARKERS[number % len(MARKERS)]}
            label = ", ".join(filter(None, [device, steps_of(ways.get(device))]))
            ax.plot(points["value"], points[column] / unit, label=label, markersize=4.5, **look)
            if column == "images_per_second":
                low, high = points["low"].astype(float), points["high"].astype(float)
                ax.fill_between(points["value"], low, high, color=look["color"], alpha=0.18, linewidth=0)
            _guide(ax, axis, column, points)
        _plain_ticks(ax, sorted(part["value"].unique()))
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        devices_first = sorted(zip(handles, labels, strict=True), key=lambda pair: pair[1] == SLOPE)
        legend_above(fig, [handle for handle, _ in devices_first], columns=3)
    failed = frame[frame["failed"] != ""] if devices else frame
    whose = {device: f" ({device})" * (len(devices) > 1) for device in devices}
    notes = [f"{r.axis} {r.value}{whose[r.device]}: {r.failed}" for r in failed.itertuples()]
    said = [
        "median and range of the turns; batch 128, 16 filters, ResNet-20 where not varied; the slopes are drawn "
        "through the last points",
        *filter(None, [evidence(frame)]),
        *notes,
    ]
    sign(fig, None, " · ".join(said))
    return fig


def steps_of(contender: str | None) -> str:
    """How a contender's steps are taken, in a legend."""
    return {"eager": "eager steps", "fast": "fast path"}.get(contender or "", contender or "")


def _guide(ax, axis: str, column: str, points: pd.DataFrame) -> None:
    """The slope of the work through the last point of a device: 1/layers, or 1/width squared."""
    if column != "images_per_second" or axis == "batch" or points.empty:
        return
    x = points["value"].to_numpy(float)
    y = points[column].iloc[-1] * (x[-1] / x) ** (2 if axis == "width" else 1)
    named = any(line.get_label() == SLOPE for line in ax.lines)
    ax.plot(
        x, y, label=f"_{SLOPE}" if named else SLOPE, color="#888888", linewidth=0.8, linestyle=(0, (4, 2)), zorder=0
    )


def _plain_ticks(ax, values) -> None:
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    low, high = ax.get_ylim()
    if high < 4 * low:  # a logarithmic axis would make mountains of small differences
        ax.set_yscale("linear")
        ax.set_ylim(0, 1.05 * high)
        return
    ax.yaxis.set_major_locator(LogLocator(subs=next(subs for most, subs in TICKS if high <= most * low)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))


def seeds_figure(frame: pd.DataFrame) -> Figure:
    """What N seeds cost, in single runs, by each way; frame: rows of `bench.records.seeds`."""
    groups = list(frame.groupby(["device", "model", "seeds"], sort=False)) if len(frame) else []
    bars = [len(g) for _, g in groups] or [1]
    fig, axes = new_figure(8.6, 0.9 + sum(0.5 + 0.32 * n for n in bars), len(bars), 1)
    if not groups:
        say(axes[0][0], "not measured")
    for ax, ((device, model, count), group) in zip(axes[:, 0], groups, strict=False):
        group = group.sort_values("cost_in_runs", ascending=False)
        places = np.arange(len(group))
        ax.barh(places, group["cost_in_runs"], height=0.62, color="#0072B2")
        _ranges(ax, places, group)
        ax.axvline(count, color="#888888", linewidth=0.9, linestyle=(0, (4, 2)))
        ax.set_yticks(places, group["way"])
        ax.grid(axis="y", visible=False)
        ax.set_title(f"{count} seeds of {_label(model)} on {device}", loc="left")
        for place, cost, high in zip(places, group["cost_in_runs"], group["high"], strict=True):
            ax.annotate(
                f"{cost:.2f}", (high, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7.5,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},  # the dashed line ends at the number
            )  # fmt: skip
    axes[-1][0].set_xlabel(
        "time of all seeds, one run alone being 1 (median; line: range of the turns; dashed: one after the other)"
    )
    sign(fig, None, evidence(frame))
    return fig


def loading_figure(frame: pd.DataFrame) -> Figure:
    """Images/s of the ImageNet loader alone, the network alone, and both; frame: rows of `bench.records.loading`."""
    same = ["device", "model", "dataset", "crop_size", "batch_size", "precision"]
    groups = list(frame.groupby(same, sort=False)) if len(frame) else []
    fig, axes = new_figure(8.6, 0.9 + 1.35 * max(1, len(groups)), max(1, len(groups)), 1)
    if not groups:
        say(axes[0][0], "not measured: reslib bench --whole, or --loader")
    for ax, ((device, model, dataset, crop, batch, precision), group) in zip(axes[:, 0], groups, strict=False):
        places = np.arange(len(group))[::-1]
        ax.barh(places, group["images_per_second"], height=0.62, color="#0072B2")
        _ranges(ax, places, group)
        ax.set_yticks(places, group["part"].str.replace("model", "network"))
        ax.set_xlim(0, 1.18 * group["high"].max())
        ax.grid(axis="y", visible=False)
        ax.set_title(f"{_label(model)} on {dataset}, crops of {crop}, batch {batch}, {precision}, {device}", loc="left")
        for place, rate, high in zip(places, group["images_per_second"], group["high"], strict=True):
            ax.text(high, place, f"  {rate:,.0f}", va="center", fontsize=7.5)
    axes[-1][0].set_xlabel("images/s (median; line: range of the turns)")
    sign(fig, None, evidence(frame))
    return fig


def equivalence_figure(frame: pd.DataFrame) -> Figure:
    """Final test errors of fp32 and the fast path, a dot per seed (left), and their difference with its 95% interval.

    frame: rows of `equivalence_records.frame`. A record per row of panels.
    """
    groups = list(frame.groupby("file", sort=False)) if len(frame) else []
    fig, axes = new_figure(
        8.6, 1.0 + 1.35 * max(1, len(groups)), max(1, len(groups)), 2, gridspec_kw={"width_ratios": [1.6, 1]}
    )
    if not groups:
        for ax in axes[0]:
            say(ax, "not measured: reslib equivalence")
    for (left, right), (_, group) in zip(axes, groups, strict=False):
        first = group.iloc[0]
        for place, row in zip((1, 0), group.to_dict("records"), strict=True):
            ink = CONTENDERS["fast"] if row["side"] == "fast" else OTHERS
            left.plot(row["errors"], [place] * len(row["errors"]), "o", color=ink, markersize=4.5, alpha=0.7)
            if row["errors"]:
                left.plot([row["mean"]] * 2, [place - 0.28, place + 0.28], color=ink, linewidth=1.6)
        left.set_yticks((1, 0), group["steps"] + np.where(group["side"] == "fp32", " (reference)", ""))
        left.set(ylim=(-0.6, 1.6), xlabel="final test error (%)")
        named = first["preset"] + f", {first['apart']}" * bool(first["apart"])
        left.set_title(f"{_label(first['model'])} on {first['dataset']}\n{named}", loc="left", fontsize=8.5)
        left.grid(axis="y", visible=False)
        if pd.isna(first["difference"]):
            say(right, first["verdict"])
            continue
        right.axvline(0, color="#888888", linewidth=0.9, linestyle=(0, (4, 2)))
        right.plot([first["low"], first["high"]], [0, 0], color="#222222", linewidth=1.4)
        right.plot(first["difference"], 0, "o", color="#222222", markersize=5)
        reach = 1.15 * max(abs(first["low"]), abs(first["high"]), 1e-9)
        right.set(xlim=(-reach, reach), ylim=(-0.6, 0.6), yticks=(), xlabel="fast path - reference (points, 95%)")
        words = f"{first['verdict']}\n{first['difference']:+.2f} ({first['low']:+.2f} to {first['high']:+.2f})"
        right.set_title(words, loc="left", fontsize=8.5)
    sign(fig, None, evidence(frame))
    return fig


def _label(model: str) -> str:
    return paper.label(model)
