"""What a change of the protocol costs: differences from reference runs with their uncertainty, and their forest plot.

For the fidelity table (common deviations of reproductions) and for the comparison of pre-activation with the original.
"""

from __future__ import annotations

import math
import re
import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from . import evidence, paper, stats
from .figures.curves import seed_band
from .figures.style import end_labels, iteration_axis, legend_above, new_figure, say, say_in_corner, sign
from .recipe import Recipe

REFERENCE = "paper"
KINDS = ("crops", "whole images")  # of training images, whose exact batch-norm statistics norm_statistics.py takes
TRAINING_IMAGES = 5000  # of these: "a sufficiently large training batch"
MEASURED = [  # columns of what it measures
    "run", "model", "seed", "kind", "images", "moving_wrong", "exact_wrong", "mended", "spoiled", "key",
]  # fmt: skip
EXACT = {kind: f"exact batch-norm statistics, of {kind}" for kind in KINDS}
ALL_DEPTHS = ", all depths"
WELCH, PAIRED, POOLED = "Welch, over seeds", "paired t, over seeds", "paired t, over networks"
ALIKE = "t; one seed is given the other side's spread"
BINOMIAL = "binomial, one seed: test images only"
MCNEMAR = "binomial, paired, one seed: test images only"
UNDECIDED = "not enough evidence"
WITHIN = "within the uncertainty"
FEWEST_NETS = 3  # that differences over networks are judged by
NOT_TRAINED = "not yet trained"
NOT_MEASURED = "not measured"
NOT_PLANNED = "not part of this preset"
SEEDS = "over seeds or networks"  # WELCH, PAIRED and POOLED, which look alike
HOLLOW = {"linewidth": 1, "marker": "o", "markerfacecolor": "white"}
LOOKS = {  # of intervals in the forest plot, and what the legend says of them
    SEEDS: ("95% interval over seeds or networks", {"linewidth": 2, "marker": "o"}),
    ALIKE: ("one seed, given the other side's spread", HOLLOW),
    BINOMIAL: ("one seed: binomial interval, without the spread between seeds", HOLLOW | {"linestyle": (0, (3, 1.5))}),
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # the reference, then the changes
COLUMNS = [
    "deviation", "model", "n", "n reference", "diverged", "error", "reference error", "difference", "low", "high",
    "interval", "finding",
]  # fmt: skip


def table(
    groups: dict[str, list[Recipe]],
    runs: pd.DataFrame,
    statistics: pd.DataFrame | None = None,
    pool: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A row per deviation: its mean test error minus the reference's, in points, with the 95% interval.

    groups: recipes by name; "paper" holds the reference, "paper (X)" that of a group named "... (X)"; a group without
    recipes is not part of the preset and has a row that says so. runs: records, of every seed that is there. The
    interval is Welch's over seeds; with one seed on one side Student's, if seeds of both spread alike; with one seed on
    each it is binomial and knows nothing of the spread between seeds, so that it can call two runs alike but never
    different. statistics: add rows of exact against moving batch-norm statistics, from what
    norm_statistics.measure_runs gives of the reference runs; pool: runs of several networks, for further rows.
    """
    rows = []
    if statistics is not None:
        several = pool is not None and len(pool) and pool["model"].nunique() > 1
        for kind, name in EXACT.items():
            measured = statistics[statistics["kind"] == kind]
            reference = of_group(groups[REFERENCE], runs)
            row = _exact_statistics(name, measured, reference)
            rows.append(
                _recorded_statistics(row, reference) if row["finding"] == NOT_MEASURED and kind == KINDS[1] else row
            )
            if several:
                rows.append(_exact_statistics(name + ALL_DEPTHS, measured, pool))
    for name, recipes in groups.items():
        if name == REFERENCE or name.startswith(f"{REFERENCE} ("):
            continue
        reference = of_group(groups[_reference_of(name, groups)], runs)
        row = _row(name, recipes[0].model if recipes else "", of_group(recipes, runs), reference)
        rows.append(row if recipes else row | {"finding": NOT_PLANNED})
    return pd.DataFrame(rows, columns=COLUMNS)


def changes(groups: dict[str, list[Recipe]]) -> pd.DataFrame:
    """What each group's recipe changes, beside that of its reference; groups as in `table`."""
    rows = {}
    for name, recipes in groups.items():
        reference = groups[_reference_of(name, groups)]
        if recipes and recipes is not reference:
            usual = reference[0].to_dict()
            rows[name] = {k: v for k, v in recipes[0].to_dict().items() if v != usual[k]}
    return pd.Series(rows, name="changed", dtype=object).to_frame()


def used(runs: pd.DataFrame, measured: pd.DataFrame, pool: pd.DataFrame) -> pd.DataFrame:
    """All runs behind the table: the study's own, and those of other networks whose statistics were measured."""
    others = pool[pool["run"].isin(measured["run"]) & ~pool["run"].isin(runs["run"])] if len(pool) else pool
    return pd.concat([runs, others], ignore_index=True) if len(others) else runs


def caption(text: str, runs: pd.DataFrame) -> str:
    """The caption of a table of differences, with the evidence behind it; names synthetic data first."""
    return f"{evidence.loud(runs)}{text} {evidence.evidence_line(runs)}"


def fidelity_caption(runs: pd.DataFrame) -> str:
    """The caption of the fidelity table."""
    text = (
        "What deviations from the paper's protocol cost, each alone. Test error at the last iteration. Exact "
        f"statistics are of {TRAINING_IMAGES:,} training images at most, after training, instead of "
        "moving averages: of crops, as in training, or of whole images. Both errors of such a row are measured again "
        "from the weights, in fp32, and can differ from the record's by a few images; where the weights are not at "
        "hand, those of whole images are as each record has them, of up to all training images. All depths: the nets "
        "of Figure 6. "
        "n: trainings, after a stroke those of the reference."
    )
    return caption(text, runs)


def future_work_caption(depth: int, runs: pd.DataFrame) -> str:
    """The caption of the table of pre-activation against the original unit."""
    return caption(f"Pre-activation against the original unit, ResNet-{depth}. Test error at the last iteration.", runs)


def of_group(recipes: list[Recipe], runs: pd.DataFrame) -> pd.DataFrame:
    """The ended runs of these recipes, of any seed."""
    digests = {r.replace(seed=int(s)).digest for r in recipes for s in runs["seed"].dropna().unique()}
    return runs[runs["recipe_hash"].isin(digests) & runs["status"].isin(("finished", "diverged"))]


def _reference_of(name: str, groups: dict) -> str:
    within = re.search(r" \((.+)\)$", name)
    own = f"{REFERENCE} ({within[1]})" if within else REFERENCE
    return own if own in groups else REFERENCE


def _row(name: str, model: str, group: pd.DataFrame, reference: pd.DataFrame) -> dict:
    diverged = int((group["status"] == "diverged").sum())
    group, reference = evidence.finished(group), evidence.finished(reference)
    row = dict.fromkeys(COLUMNS, math.nan) | {
        "deviation": name, "model": paper.label(model), "n": len(group), "n reference": len(reference),
        "diverged": diverged, "interval": "", "finding": _all_diverged(diverged) if diverged else NOT_TRAINED,
    }  # fmt: skip
    if len(reference):
        row["reference error"] = 100 * reference["test_error"].mean()
    if len(group):
        row |= {"error": 100 * group["test_error"].mean(), "finding": "no reference runs"}
    if len(group) and len(reference):
        row |= _difference(reference, group)
    return row


def _difference(reference: pd.DataFrame, group: pd.DataFrame) -> dict:
    """Of the group's mean test error from the reference's, in points."""
    if min(len(reference), len(group)) == 1:
        d = stats.pooled(100 * reference["test_error"], 100 * group["test_error"])
        if math.isfinite(d.low):
            return _finding(d.difference, d.low, d.high, ALIKE)
    d = evidence.difference(reference, group)
    return _finding(d.value, d.low, d.high, WELCH if d.over_seeds else BINOMIAL)


def _exact_statistics(name: str, measured: pd.DataFrame, runs: pd.DataFrame) -> dict:
    """Errors of the same networks with exact and with moving statistics; measured: rows of one kind, of these runs.

    The paper does not say which statistics it tested with. Those of the ImageNet models that its authors released are
    averages over a large training batch, taken after training (README of github.com/KaimingHe/deep-residual-networks).
    Of several networks the seeds of each are averaged first: they are not further networks.
    """
    done, models = evidence.finished(runs), runs["model"].unique()
    measured = measured[measured["run"].isin(done["run"])]
    row = dict.fromkeys(COLUMNS, math.nan) | {
        "deviation": name, "n": len(measured), "n reference": len(done), "diverged": 0, "interval": "",
        "model": paper.label(str(models[0])) if len(models) else "", "finding": NOT_MEASURED,
    }  # fmt: skip
    if len(models) > 1:
        row["model"] = f"{measured['model'].nunique()} plain and residual nets"
    if measured.empty:
        return row if len(done) else row | {"finding": NOT_TRAINED}
    moving, exact = (100 * measured[f"{kind}_wrong"] / measured["images"] for kind in ("moving", "exact"))
    differences = exact - moving
    if len(models) > 1:
        moving, exact, differences = (v.groupby(measured["model"]).mean() for v in (moving, exact, differences))
    row |= {"error": exact.mean(), "reference error": moving.mean()}
    s = stats.summarize(differences)
    if s.n > 1 and not s.zero_variance:
        found = _finding(s.mean, s.low, s.high, POOLED if len(models) > 1 else PAIRED)
        few = 1 < len(models) and s.n < FEWEST_NETS and found["finding"] != WITHIN
        return row | found | ({"finding": f"{s.n} nets: {UNDECIDED}"} if few else {})
    spoiled, mended, images = (int(measured[column].sum()) for column in ("spoiled", "mended", "images"))
    share = (spoiled - mended) / images
    # half an image more in either count, so that none on both sides is not taken for certainty (Agresti and Min 2005)
    half = 200 * math.sqrt(((spoiled + mended + 1) / images - share**2) / images)
    return row | _finding(100 * share, 100 * share - half, 100 * share + half, MCNEMAR)


def _recorded_statistics(row: dict, runs: pd.DataFrame) -> dict:
    """The row of `_exact_statistics` from the errors that several seeds' records have, taken when they were trained."""
    column = "exact_bn_test_error"
    runs = evidence.finished(runs)
    if column not in runs or len(recorded := runs.dropna(subset=[column])) < 2:
        return row
    moving, exact = (100 * recorded[name].astype(float) for name in ("test_error", column))
    s = stats.summarize(exact - moving)
    if s.zero_variance:
        return row
    row = row | {"n": s.n, "error": exact.mean(), "reference error": moving.mean()}
    return row | _finding(s.mean, s.low, s.high, PAIRED)


def _all_diverged(runs: int) -> str:
    return f"diverged in all {runs} runs" if runs > 1 else "diverged"


def _finding(value: float, low: float, high: float, interval: str) -> dict:
    if low <= 0 <= high:
        finding = WITHIN
    elif interval in (BINOMIAL, MCNEMAR):
        finding = f"one seed: {UNDECIDED}"
    else:
        finding = ("costs" if value > 0 else "helps") + ", if seeds spread alike" * (interval == ALIKE)
    return {"difference": value, "low": low, "high": high, "interval": interval, "finding": finding}


def printed(rows: pd.DataFrame) -> pd.DataFrame:
    """The table as text, for reading and for files."""
    text = rows[["deviation", "model"]].copy()
    text["n"] = [f"{a} / {b}" if a != b else str(a) for a, b in zip(rows["n"], rows["n reference"], strict=True)]
    text["test error (%)"] = rows["error"].map(_number("{:.2f}"))
    text["reference (%)"] = rows["reference error"].map(_number("{:.2f}"))
    text["difference (points)"] = rows["difference"].map(_number("{:+.2f}"))
    text["95% interval"] = [
        f"{low:+.2f} to {high:+.2f}" if np.isfinite(low) else ""
        for low, high in zip(rows["low"], rows["high"], strict=True)
    ]
    text["interval of"] = rows["interval"]
    text["finding"] = [
        finding + (f"; {bad} diverged" if bad and "diverged" not in finding else "")
        for finding, bad in zip(rows["finding"], rows["diverged"], strict=True)
    ]
    return text


def _number(form: str):
    return lambda value: form.format(value) if np.isfinite(value) else ""


def forest(rows: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Differences with their 95% intervals, a line per deviation, in order of `rows`; right of zero is worse."""
    fig, axes = new_figure(8.6, 1.5 + 0.38 * max(2, len(rows)))
    ax = axes[0][0]
    places, kinds, waiting = np.arange(len(rows))[::-1], set(), []
    ax.axvline(0, color="#444444", linewidth=1, zorder=1)
    for place, row in zip(places, rows.to_dict("records"), strict=True):
        if np.isfinite(row["difference"]):
            kind = BINOMIAL if row["interval"] == MCNEMAR else row["interval"] if row["interval"] in LOOKS else SEEDS
            look = LOOKS[kind][1]
            ax.plot([row["low"], row["high"]], [place, place], color=COLOURS[0], zorder=2, **look | {"marker": ""})
            ax.plot([row["difference"]], [place], color=COLOURS[0], zorder=3, **look)
            kinds.add(kind)
        else:
            ink = "#CC0000" if row["diverged"] else "#777777"  # a run that is still to come is no failure
            waiting.append((place, row["finding"], ink))
        count = f"n = {row['n']}" + (f", {row['diverged']} diverged" if row["diverged"] else "")
        count += ", undecided" if row["finding"].endswith(UNDECIDED) else ""
        ax.annotate(
            count, (1, place), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=7.5, color="#666666",
        )  # fmt: skip
    if rows.empty:
        say(ax, "nothing to compare at this preset")
    ax.set_yticks(places, [textwrap.fill(name, 30, break_on_hyphens=False) for name in rows["deviation"]])
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
    sign(fig, runs)
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
