"""Rows of exact against moving batch-norm statistics: the same networks tested with both.

The paper does not say which statistics it tested with. Those of the ImageNet models that its authors released are
averages over a large training batch, taken after training (README of github.com/KaimingHe/deep-residual-networks).
"""

from __future__ import annotations

import math

import pandas as pd

from . import evidence, paper, stats
from .differences import MCNEMAR, NOT_MEASURED, NOT_TRAINED, PAIRED, POOLED, UNDECIDED, blank, finding

KINDS = ("crops", "whole images")  # of training images, whose exact batch-norm statistics norm_statistics.py takes
TRAINING_IMAGES = 5000  # of these: "a sufficiently large training batch"
RECORDED = "exact_bn_test_error"  # with whole images, in the records
MEASURED = [  # columns of what norm_statistics.py measures
    "run", "model", "seed", "kind", "images", "moving_wrong", "exact_wrong", "mended", "spoiled", "key",
]  # fmt: skip
EXACT = {kind: f"exact batch-norm statistics, of {kind}" for kind in KINDS}
SEVERAL = ", several networks"
FEWEST_NETS = 3  # that differences over networks are judged by


def exact_rows(statistics: pd.DataFrame, reference: pd.DataFrame, pool: pd.DataFrame | None) -> list[dict]:
    """A row for each kind of statistics, of the reference's network and, with a pool of runs, of several networks.

    statistics: what norm_statistics.measure_runs gives. Of whole images, records are taken where weights are missing.
    """
    rows = []
    for kind, name in EXACT.items():
        measured = statistics[statistics["kind"] == kind]
        row = _of_one_network(name, measured, reference)
        if row["finding"] == NOT_MEASURED and kind == KINDS[1]:
            row = _from_records(row, reference)
        rows.append(row)
        if pool is not None and len(pool) and pool["model"].nunique() > 1:
            rows.append(_of_several(name + SEVERAL, _differences(measured, pool, kind)))
    return rows


def _of_one_network(name: str, measured: pd.DataFrame, runs: pd.DataFrame) -> dict:
    """Errors of the same trained weights with exact and with moving statistics; measured: rows of one kind."""
    done, models = evidence.finished(runs), runs["model"].unique()
    measured = measured[measured["run"].isin(done["run"])]
    model = paper.label(str(models[0])) if len(models) else ""
    row = blank(
        **{"deviation": name, "model": model, "n": len(measured), "n reference": len(done), "finding": NOT_MEASURED}
    )
    if measured.empty:
        return row if len(done) else row | {"finding": NOT_TRAINED}
    moving, exact = (100 * measured[f"{kind}_wrong"] / measured["images"] for kind in ("moving", "exact"))
    row |= {"error": exact.mean(), "reference error": moving.mean()}
    s = stats.summarize(exact - moving)
    if s.n > 1 and not s.zero_variance:
        return row | finding(s.mean, s.low, s.high, PAIRED)
    spoiled, mended, images = (int(measured[column].sum()) for column in ("spoiled", "mended", "images"))
    share = (spoiled - mended) / images
    # half an image more in either count, so that none on both sides is not taken for certainty (Agresti and Min 2005)
    half = 200 * math.sqrt(((spoiled + mended + 1) / images - share**2) / images)
    return row | finding(100 * share, 100 * share - half, 100 * share + half, MCNEMAR)


def _from_records(row: dict, runs: pd.DataFrame) -> dict:
    """The row of `_of_one_network` from the errors that several seeds' records have, taken when they were trained."""
    runs = evidence.finished(runs)
    if RECORDED not in runs or len(recorded := runs.dropna(subset=[RECORDED])) < 2:
        return row
    moving, exact = (100 * recorded[name].astype(float) for name in ("test_error", RECORDED))
    s = stats.summarize(exact - moving)
    if s.zero_variance:
        return row
    row = row | {"n": s.n, "error": exact.mean(), "reference error": moving.mean()}
    return row | finding(s.mean, s.low, s.high, PAIRED)


def _differences(measured: pd.DataFrame, pool: pd.DataFrame, kind: str) -> pd.DataFrame:
    """model, difference in points (exact minus moving) of each run of the pool: of whole images from the records."""
    done = evidence.finished(pool)
    if kind == KINDS[1] and RECORDED in done and done[RECORDED].notna().any():
        done = done.dropna(subset=[RECORDED])
        return done[["model"]].assign(difference=100 * (done[RECORDED].astype(float) - done["test_error"]))
    found = measured[measured["run"].isin(done["run"])]
    return found[["model"]].assign(difference=100 * (found["exact_wrong"] - found["moving_wrong"]) / found["images"])


def _of_several(name: str, differences: pd.DataFrame) -> dict:
    """Of several networks the seeds of each are averaged first: they are not further networks. Two decide nothing."""
    each = differences.groupby("model")["difference"].mean()
    cells = {"deviation": name, "model": _nets(each.index), "n": len(each), "n reference": len(each)}
    row = blank(**cells, finding=NOT_MEASURED)
    if each.empty:
        return row
    s = stats.summarize(each)
    if s.n < FEWEST_NETS or s.zero_variance:
        return row | {"difference": s.mean, "finding": f"{s.n} net{'s' * (s.n > 1)}: {UNDECIDED}"}
    return row | finding(s.mean, s.low, s.high, POOLED)


def _nets(models) -> str:
    """Names of networks, those of one family together: "plain-20/56, ResNet-20"."""
    families: dict[str, list[int]] = {}
    for label in map(paper.label, models):
        family, _, depth = label.rpartition("-")
        families.setdefault(family or label, []).extend([int(depth)] if depth.isdigit() else [])
    return ", ".join(
        "-".join(filter(None, (family, "/".join(map(str, sorted(depths)))))) for family, depths in families.items()
    )


def used(runs: pd.DataFrame, measured: pd.DataFrame, pool: pd.DataFrame) -> pd.DataFrame:
    """All runs behind the table: the study's own, and those of other networks whose statistics are known."""
    if len(pool):
        known = pool["run"].isin(measured["run"])
        if RECORDED in pool:
            known |= pool[RECORDED].notna()
        others = pool[known & ~pool["run"].isin(runs["run"])]
    else:
        others = pool
    return pd.concat([runs, others], ignore_index=True) if len(others) else runs
