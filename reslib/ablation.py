"""What a change of the protocol costs: differences from reference runs with their uncertainty.

For the fidelity table (common deviations of reproductions) and for the comparison of pre-activation with the original.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from . import comparison, evidence, paper
from .differences import COLUMNS, NOT_PLANNED, NOT_TRAINED, POOLED, blank, finding, of_group
from .exact_rows import TRAINING_IMAGES, exact_rows
from .recipe import Recipe

REFERENCE = "paper"


def table(
    groups: dict[str, list[Recipe]],
    runs: pd.DataFrame,
    statistics: pd.DataFrame | None = None,
    pool: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A row per deviation: its mean test error minus the reference's, in points, with its interval.

    groups: recipes by name; "paper" holds the reference, "paper (X)" that of a group named "... (X)"; a group without
    recipes is not part of the preset and has a row that says so. runs: records, of every seed that is there. The
    interval is that of `comparison.difference`. statistics: add rows of exact against moving batch-norm statistics,
    from what norm_statistics.measure_runs gives of the reference runs; pool: runs of several networks, for more rows.
    """
    rows = []
    if statistics is not None:
        rows += exact_rows(statistics, of_group(groups[REFERENCE], runs), pool)
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


def caption(text: str, runs: pd.DataFrame) -> str:
    """The caption of a table of differences, with the evidence behind it; names synthetic data first."""
    return f"{evidence.loud(runs)}{text} {evidence.evidence_line(runs)}"


def fidelity_caption(runs: pd.DataFrame) -> str:
    """The caption of the fidelity table."""
    text = (
        "What deviations from the paper's protocol cost, each alone but for what the last column names. Test error "
        "at the last iteration. Exact "
        f"statistics are of {TRAINING_IMAGES:,} training images at most, after training, instead of "
        "moving averages: of crops, as in training, or of whole images. Both errors of such a row are measured again "
        "from the weights, in fp32, and can differ from the record's by a few images; where the weights are not at "
        "hand, those of whole images are as each record has them, of up to all training images. Several networks: the "
        "mean of their differences, each the mean of its seeds. "
        "Rows of one network share a reference, so that their differences go together. "
        "n: trainings, after a slash those of the reference. Intervals are of 95 %; where "
        "both sides have one seed, four binomial standard errors to each side."
    )
    return caption(text, runs)


def future_work_caption(depth: int, runs: pd.DataFrame) -> str:
    """The caption of the table of pre-activation against the original unit."""
    return caption(f"Pre-activation against the original unit, ResNet-{depth}. Test error at the last iteration.", runs)


def _reference_of(name: str, groups: dict) -> str:
    within = re.search(r" \((.+)\)$", name)
    own = f"{REFERENCE} ({within[1]})" if within else REFERENCE
    return own if own in groups else REFERENCE


def _row(name: str, model: str, group: pd.DataFrame, reference: pd.DataFrame) -> dict:
    diverged = int((group["status"] == "diverged").sum())
    group, reference = evidence.finished(group), evidence.finished(reference)
    row = blank(
        **{"deviation": name, "model": paper.label(model), "n": len(group), "n reference": len(reference)},
        diverged=diverged,
        finding=f"diverged in all {diverged} runs" if diverged > 1 else "diverged" if diverged else NOT_TRAINED,
    )
    if len(reference):
        row["reference error"] = 100 * reference["test_error"].mean()
    if len(group):
        row |= {"error": 100 * group["test_error"].mean(), "finding": "no reference runs"}
    if len(group) and len(reference):
        d = comparison.difference(reference, group)
        row |= finding(d.value, d.low, d.high, d.interval) | {"computed": _computed(group, reference)}
    return row


def _computed(group: pd.DataFrame, reference: pd.DataFrame) -> str:
    """Precision and hardware of a group and, where it is not the same, of the reference."""

    def of(rows):
        return ", ".join(
            f"{p} on {d}" for p, d in sorted(set(zip(rows["precision"], rows["device_name"], strict=True)))
        )

    own, other = (of(evidence.with_hardware(rows).astype(str)) for rows in (group, reference))
    return own if own == other else f"{own}; reference {other}"


def printed(rows: pd.DataFrame) -> pd.DataFrame:
    """The table as text, for reading and for files."""
    text = rows[["deviation", "model"]].copy()
    text["n"] = [
        f"{a} networks" if of == POOLED else f"{a} / {b}" if a != b else str(a)
        for a, b, of in zip(rows["n"], rows["n reference"], rows["interval"], strict=True)
    ]
    text["test error (%)"] = rows["error"].map(_number("{:.2f}"))
    text["reference (%)"] = rows["reference error"].map(_number("{:.2f}"))
    text["difference (points)"] = rows["difference"].map(_number("{:+.2f}"))
    text["interval"] = [
        f"{low:+.2f} to {high:+.2f}" if np.isfinite(low) else ""
        for low, high in zip(rows["low"], rows["high"], strict=True)
    ]
    text["interval of"] = rows["interval"]
    text["finding"] = [
        words + (f"; {bad} diverged" if bad and "diverged" not in words else "")
        for words, bad in zip(rows["finding"], rows["diverged"], strict=True)
    ]
    text["precision, hardware"] = rows["computed"]
    return text


def _number(form: str):
    return lambda value: form.format(value) if np.isfinite(value) else ""
