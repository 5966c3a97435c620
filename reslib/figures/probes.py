"""What the layers do: Figure 7 (responses) and the gradient norms behind section 4.1's "healthy norms with BN"."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from .. import evidence, paper
from .style import FAMILY_NAME, GREY, colour, legend_above, marker, new_figure, say, sign, warn_synthetic

LOOK = {"plain": (0, (3, 1.5)), "resnet": "-"}  # plain nets dashed, as in Figure 7
INIT_NAME = {"he": "He", "xavier": "Xavier", "gaussian": "Gaussian"}
BAND = "#ECECEC"
SMALLEST_SPAN = 1.0  # decades of an axis
KIND_NAME = {"activation": "activation (root mean square)", "gradient": "gradient of the weights (L2 norm)"}


def figure7(responses: pd.DataFrame, runs: pd.DataFrame | None = None) -> Figure:
    """Figure 7: standard deviation of each 3x3 layer's response, in layer order (top) and sorted (bottom).

    responses: columns model, layer (from 1), std and optionally seed, over which the mean is drawn, and run. Of runs
    those measured give the line of evidence, and finished ones that were not are named.
    """
    fig, axes = new_figure(8.6, 5.6, 2, 1)
    top, bottom = axes[:, 0]
    models = sorted(responses["model"].unique(), key=lambda m: (_family(m) != "plain", _depth(m)))
    for model in models:
        std = responses[responses["model"] == model].groupby("layer")["std"].mean()
        look = {
            "color": colour(_depth(model)), "linestyle": LOOK.get(_family(model), ":"), "linewidth": 1.3,
            "label": paper.label(model), "marker": marker(_depth(model)), "markersize": 3,
            "markevery": max(1, len(std) // 12),
            "markerfacecolor": "white" if _family(model) == "plain" else colour(_depth(model)),
        }  # fmt: skip
        top.plot(std.index, std.values, **look)
        bottom.plot(np.arange(1, len(std) + 1), np.sort(std.values)[::-1], **look)
    for i, depth in enumerate(sorted({_depth(model) for model in models})):
        high = 1 - 0.06 * i  # below each other: those of 56 and of 110 layers share one
        place = {"transform": top.get_xaxis_transform(), "linewidth": 2, "zorder": 1}
        top.vlines(stages_begin(depth), high - 0.05, high, colour(depth), **place)
    for ax, order in ((top, "in layer order"), (bottom, "sorted by magnitude, largest first")):
        ax.set_xlabel(f"3x3 layer, {order}")
        ax.set_ylabel("standard deviation")
        ax.set_ylim(0, 1.06 * ax.get_ylim()[1])  # room for the marks of the largest
        ax.margins(x=0.01)
        if not models:
            say(ax, "no responses measured at this preset")
    if models:
        legend_above(fig, top.get_legend_handles_labels()[0])
    seeds = responses.groupby("model")["seed"].nunique().max() if "seed" in responses else 1
    extra = "response: after batch norm, before the nonlinearity or the addition"
    extra += "; means of the seeds" if seeds > 1 else ""
    extra += "; marks at the top, in a depth's colour: where the stages of 32 and 64 filters begin" if models else ""
    notes = [extra, "the paper prints no numbers of its Figure 7 to draw beside these"]
    measured = runs
    if runs is not None and "run" in responses:
        measured = runs[runs["run"].isin(set(responses["run"]))]
        notes += _unmeasured(evidence.finished(runs), measured)
    sign(fig, measured, " · ".join(notes))
    _warn(fig, responses, runs)
    return fig


def stages_begin(depth: int) -> tuple[int, int]:
    """The first layers of the stages of 32 and of 64 filters of a CIFAR net of 6n + 2 layers, the first one being 1."""
    of_a_stage = (depth - 2) // 3
    return of_a_stage + 2, 2 * of_a_stage + 2


def _unmeasured(finished: pd.DataFrame, measured: pd.DataFrame) -> list[str]:
    """The finished runs that were not measured, in words."""
    missing, names = finished[~finished["run"].isin(measured["run"])], []
    for model, part in missing.groupby("model", sort=False):
        seeds = (finished["model"] == model).sum()
        some = f"{len(part)} of {seeds} seeds of " if len(part) < seeds else ""
        names.append(some + paper.label(model))
    return [f"trained, but its weights are not here to be measured: {', '.join(names)}"] if names else []


def gradients_figure(df: pd.DataFrame, runs: pd.DataFrame | None = None) -> Figure:
    """Norms of activations (top) and gradients (bottom) by layer, a column per initialisation and batch norm or not.

    df: columns kind ("gradient" | "activation"), model, family, depth, init, batch_norm, iteration, layer, norm, and
    where known evidence, which is put below the figure. The last measured iteration is bold; the first, where there are
    several, thin. A vanishing signal falls towards one end by orders of magnitude, a healthy one stays level. The axes
    are logarithmic. In a row the panels with batch norm share one, each panel without has its own, since it may span
    many more orders of magnitude; a grey band there is the range of the panels with batch norm.
    """
    pairs = {(bool(b), str(i)) for b, i in zip(df["batch_norm"], df["init"], strict=True)}
    columns = sorted(pairs, key=lambda pair: (not pair[0], pair[1]))
    kinds = [k for k in ("activation", "gradient") if k in set(df["kind"])]
    if not columns or not kinds:
        fig, axes = new_figure(8.6, 3)
        say(axes[0][0], "no gradients measured at this preset")
        sign(fig, runs)
        return fig
    width = max(2.7 * len(columns) + 0.8, 6)
    fig, axes = new_figure(width, 2.5 * len(kinds) + 1, len(kinds), len(columns), sharex=True)
    together = [j for j, (batch_norm, _) in enumerate(columns) if batch_norm]
    apart = [j for j in range(len(columns)) if j not in together]
    for i, kind in enumerate(kinds):
        for j, (batch_norm, init) in enumerate(columns):
            ax = axes[i][j]
            part = df[(df["kind"] == kind) & (df["batch_norm"] == batch_norm) & (df["init"].astype(str) == init)]
            dead = _draw_norms(ax, part)
            ax.set_yscale("log")
            if j == 0:
                ax.set_ylabel(KIND_NAME[kind])
            if i == 0:
                lines = dead.count("\n") + bool(dead)  # between the title and the panel, where no curve is
                title = f"{'batch norm' if batch_norm else 'no batch norm'}, {INIT_NAME.get(init, init)}"
                ax.set_title(title, pad=6 + 9 * lines)
            if i == len(kinds) - 1:
                ax.set_xlabel("layer (1 is next to the image)")
            if part.empty:
                say(ax, "not measured")
            elif dead:
                ax.text(0, 1.01, dead, transform=ax.transAxes, fontsize=7, color="#CC0000", va="bottom")
        _set_axes([axes[i][j] for j in together], [axes[i][j] for j in apart])
    models = df.drop_duplicates("model").sort_values(["family", "depth"])
    handles = [
        Line2D(
            [], [], color=colour(d), linestyle=LOOK.get(f, ":"), marker=marker(d), markersize=3.5, linewidth=1.6,
            markerfacecolor="white" if f == "plain" else colour(d),
            label=f"{FAMILY_NAME.get(f, f)}-{d}" if f in FAMILY_NAME else m,
        )
        for m, f, d in zip(models["model"], models["family"], models["depth"], strict=True)
    ]  # fmt: skip
    first, last = df["iteration"].min(), df["iteration"].max()
    if first != last:
        handles += [
            Line2D([], [], color=GREY, linewidth=thick, label=f"iteration {iteration}")
            for iteration, thick in ((first, 0.7), (last, 1.6))
        ]
    if together and apart:
        handles.append(Patch(color=BAND, label="range with batch norm"))
    legend_above(fig, handles, columns=max(2, int(width / 1.5)))
    seeds = df["seed"].nunique() if "seed" in df else 1
    shown = [str(text) for text in df["evidence"].unique()] if "evidence" in df else []
    if first == last:  # otherwise the legend has both
        shown.append(f"at iteration {last}")
    if apart and len(columns) > 1:
        shared = "panels with batch norm share one per row, each panel without has its own"
        shown.append(f"axes differ: {shared if together else 'each panel has its own'}")
    shown.append(f"{f'mean of {seeds} seeds' if seeds > 1 else 'one seed'}, one batch each")
    sign(fig, runs, " · ".join(shown))
    _warn(fig, df, runs)
    return fig


def _set_axes(together: list, apart: list) -> None:
    """One logarithmic axis for the panels in `together`, with labels at the first, and one for each in `apart`.

    What they span stands in the panel. Those apart also show the range of the others, as a band to compare with.
    """
    band = _range(together)
    for panels in (together, *([ax] for ax in apart)):
        found = [r for r in (_range(panels), band) if r]
        if not found:
            continue
        low, high = np.log10(min(r[0] for r in found)), np.log10(max(r[1] for r in found))
        missing = max(0.0, SMALLEST_SPAN - (high - low)) / 2  # level lines are to look level
        low, high = low - missing, high + missing
        low, high = low - 0.14 * (high - low), high + 0.05 * (high - low)  # below: room for the words
        name = "common" if len(panels) > 1 else "own"
        decades = f"{high - low:.0f} decade{'s' * (round(high - low) != 1)}"
        for ax in panels:
            ax.set_ylim(10**low, 10**high)
            ax.tick_params(axis="y", which="both", labelleft=ax is panels[0])
            if high - low < 2:  # too few powers of ten to read it by
                ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                ax.yaxis.set_minor_formatter(NullFormatter())
            ax.text(
                0.98, 0.02, f"{name} axis, {decades}", transform=ax.transAxes, ha="right", va="bottom", fontsize=7,
                color="#777777",
            )  # fmt: skip
            if ax in apart and band:
                ax.axhspan(*band, color=BAND, zorder=0, linewidth=0.5)


def _range(panels: list) -> tuple[float, float] | None:
    """The smallest and the largest norm drawn in these panels."""
    drawn = [np.asarray(line.get_ydata(), float) for ax in panels for line in ax.lines]
    norms = np.concatenate(drawn) if drawn else np.array([])
    norms = norms[np.isfinite(norms) & (norms > 0)]
    return (float(norms.min()), float(norms.max())) if len(norms) else None


def _draw_norms(ax, part: pd.DataFrame) -> str:
    """Draw the first and last iteration of each model; what a log axis cannot show, in words."""
    dead = []
    for model, lines in part.groupby("model", sort=False):
        family, depth = lines["family"].iloc[0], int(lines["depth"].iloc[0])
        for iteration in sorted({lines["iteration"].min(), lines["iteration"].max()}):
            bold = iteration == lines["iteration"].max()
            norm = lines[lines["iteration"] == iteration].groupby("layer")["norm"].mean()
            face = "white" if family == "plain" else colour(depth)
            good = np.isfinite(norm) & (norm > 0)
            if bold and not good.all():
                for words, layers in (("exactly 0", norm == 0), ("not finite", ~np.isfinite(norm))):
                    if layers.any():
                        dead.append(f"{paper.label(model)}: {words} in {int(layers.sum())} of {len(norm)} layers")
            ax.plot(
                norm.index, norm.where(good), color=colour(depth), linestyle=LOOK.get(family, ":"),
                linewidth=1.6 if bold else 0.7, alpha=1 if bold else 0.75, marker=marker(depth) if bold else None,
                markerfacecolor=face, markersize=3.5, markevery=max(1, len(norm) // 6), label=f"{model} {iteration}",
            )  # fmt: skip
    return "\n".join(dead)


def _warn(fig: Figure, df: pd.DataFrame, runs: pd.DataFrame | None) -> None:
    """Probes measured on synthetic images say so themselves when no runs are given."""
    if runs is None and "synthetic" in df and df["synthetic"].fillna(False).astype(bool).any():
        warn_synthetic(fig)


def _family(model: str) -> str:
    return next((f for f in LOOK if model.startswith(f)), model)


def _depth(model: str) -> int:
    digits = model.removeprefix(_family(model))
    return int(digits) if digits.isdigit() else 0
