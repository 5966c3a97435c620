"""Tables: Table 6 with the runs of this study in it, the nets by depth, the architectures of Table 1.

Errors are percentages with two decimals. "last" is the error at the last iteration, the number to quote; whatever was
selected on the test set says so in its column's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from . import comparison, evidence, paper, stats
from .table_files import IN_LATEX
from .table_files import save_table as save_table
from .table_text import caption as caption
from .table_text import cifar_runs
from .table_text import claims_caption as claims_caption
from .table_text import depth_caption as depth_caption
from .table_text import notes as notes

if TYPE_CHECKING:
    from torch import nn

LAST = "test error, last (%)"
VALIDATION = "validation error, last (%)"  # on ImageNet, where the paper's test is of the validation images
SELECTED = "validation-selected (%)"
SELECTED_BIAS = "bias, validation-selected minus last (points)"
INTERVAL = "95% interval (%)"
BEST_ON_TEST = "best evaluation, selected on the test set (%)"
BEST_BIAS = "bias, best evaluation minus last (points)"
PAPER = "test error (paper, %)"
EXACT_BN = "exact BN of whole images (%)"
PEERS = "released peers, best evaluation on the test set (%)"
COLUMNS = [
    "model", "source", "layers", "parameters", "parameters (paper)", "multiply-adds", PAPER, "n",
    "iterations", LAST, INTERVAL, "best of n seeds (%)", SELECTED, SELECTED_BIAS, BEST_ON_TEST,
    BEST_BIAS, PEERS, EXACT_BN, "against the paper", "data set", "preset", "precision",
]  # fmt: skip
MAIN = [
    "model", "source", "parameters", PAPER, "n", "iterations", LAST, INTERVAL, "best of n seeds (%)",
    "against the paper",
]  # fmt: skip
VIEWS = ["model", "n", LAST, SELECTED, SELECTED_BIAS, BEST_ON_TEST, BEST_BIAS, PEERS, EXACT_BN]
TRAINING = "training error, last (%)"
DEPTH = ["model", TRAINING, LAST, INTERVAL, "n", "parameters", "iterations", "data set", "preset", "precision"]
GUESSING = "no better than guessing"


def cifar10_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Table 6: every row of the paper, those trained here with their own numbers, then the networks it does not have.

    source: "trained here", "quoted" (the paper's number alone) or "added" (a network of one's own). Runs of a network
    under several recipes get a row each, which names what differs. Numbers from elsewhere, the paper's and released
    peers', stand only beside runs of the paper's scale. All cells are text.
    """
    runs = cifar_runs(evidence.finished(runs))
    labels = evidence.settings(runs)
    order = list(paper.TABLE6) + sorted(set(runs["model"]) - set(paper.TABLE6), key=_family_order)
    rows = []
    for model in order:
        of_model = runs[runs["model"] == model]
        if of_model.empty:
            rows.append(_quoted(model))
        recipes = dict(list(of_model.groupby(labels[of_model.index])))
        for label, of_recipe in recipes.items():
            cells = _quoted(model) | _trained(model, of_recipe, label)
            rows.append(cells | _selected(_split_of(label, recipes)))
    table = pd.DataFrame([[row.get(column, "") for column in COLUMNS] for row in rows], columns=COLUMNS)
    table.attrs[IN_LATEX] = MAIN
    return table


def depth_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The plain nets among the runs, then the residual ones, the shallowest first, by the errors at the last iteration.

    Training error is the running one on augmented images; on ImageNet the other is that of the validation set, and its
    column says so. Runs of a network under several recipes get a row each.
    """
    runs = evidence.finished(runs)
    runs = runs[[_family_order(model)[0] < 2 for model in runs["model"]]] if len(runs) else runs
    rows = []
    for (model, label), group in runs.groupby(["model", evidence.settings(runs)]) if len(runs) else ():
        training = stats.summarize(group["train_error"] * 100)
        cells = _trained(model, group, label) | {TRAINING: _mean_and_spread(training)}
        rows.append((_family_order(model), label, [cells.get(column, "") for column in DEPTH]))
    table = pd.DataFrame([cells for *_, cells in sorted(rows)], columns=DEPTH)
    return table.rename(columns={LAST: VALIDATION}) if rows and evidence.is_imagenet(runs).all() else table


def paper_z(model: str, rows: pd.DataFrame) -> float | None:
    """(mean here - paper) / combined standard error; None unless at the paper's scale, by its recipe, and in Table 6.

    The paper's side has the error of its mean over runs where it prints one, else the binomial error of one test; ours
    has the error of the mean over seeds, with one seed the binomial error.
    """
    quoted = paper.TABLE6.get(model)
    if quoted is None or not evidence.at_paper_scale(rows) or evidence.departures(rows):
        return None
    own = stats.summarize(rows["test_error"] * 100)
    if quoted.mean is None:
        reference, error = quoted.error, 100 * stats.binomial_error(quoted.error / 100, paper.TEST_IMAGES)
    else:
        reference, error = quoted.mean, quoted.std / (quoted.seeds or 1) ** 0.5
    if own.n > 1 and not own.zero_variance:
        own_error = own.standard_error
    else:
        own_error = 100 * stats.binomial_error(own.mean / 100, paper.TEST_IMAGES)
    return (own.mean - reference) / (error**2 + own_error**2) ** 0.5


def architecture_table(nets: Iterable[tuple[str, nn.Module, int]]) -> pd.DataFrame:
    """Layers, parameters and multiply-adds of (name, model, input_size), beside the paper's (Tables 1 and 6).

    What follows the name after a blank is shown behind it: "resnet34 C". Columns without an entry are left out.
    """
    from . import complexity

    rows = []
    for name, model, size in nets:
        name, _, variant = name.partition(" ")
        quoted, printed = paper.TABLE6.get(name), paper.MULTIPLY_ADDS.get(name)
        rows.append(
            {
                "model": f"{paper.label(name)} {variant}".strip(),
                "input": f"{size}x{size}",
                "layers": str(complexity.weighted_layers(model)),
                "parameters": f"{complexity.parameters(model):,}",
                "parameters (paper)": _millions(quoted.parameters if quoted else None),
                "multiply-adds": f"{complexity.multiply_adds(model, size):,}",
                "convolutions only": f"{complexity.multiply_adds(model, size, fc=False):,}",
                "multiply-adds (paper)": f"{printed / 1e9:g} billion" if printed else "",
            }
        )
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "").any()]


def _family_order(model: str) -> tuple:
    """Plain nets, other residual nets, then networks of one's own."""
    for rank, family in enumerate(("plain", "resnet")):
        if (digits := model.removeprefix(family)) != model and digits.isdigit():
            return rank, int(digits), model
    return 2, 0, model


def _quoted(model: str) -> dict:
    quoted = paper.TABLE6.get(model)
    if quoted is None:
        return {"model": paper.label(model), "source": "trained here" if _family_order(model)[0] < 2 else "added"}
    error = f"{quoted.error:.2f}"
    if quoted.mean is not None:
        error += f" ({quoted.mean:.2f} ± {quoted.std:.2f})"
    return {
        "model": quoted.label,
        "source": "quoted",
        "layers": str(quoted.layers or ""),
        "parameters (paper)": _millions(quoted.parameters),
        PAPER: error,
    }


def _trained(model: str, rows: pd.DataFrame, label: str) -> dict:
    own = stats.summarize(rows["test_error"] * 100)
    cells = {
        "model": paper.label(model) + (f" [{label}]" if label else ""),
        "n": str(own.n),
        "iterations": ", ".join(f"{int(i):,}" for i in sorted(rows["iterations"].unique())),
        LAST: _last(own, rows),
        INTERVAL: _interval(own, rows),
        "best of n seeds (%)": f"{own.best:.2f}" if own.n > 1 else "",
        BEST_ON_TEST: _mean(rows, "best_test_error"),
        EXACT_BN: _mean(rows, "exact_bn_test_error"),
        "against the paper": _against(model, own, rows),
        "data set": _distinct(rows, "dataset") + (" (SYNTHETIC)" if evidence.is_synthetic(rows).any() else ""),
        "preset": _distinct(rows, "preset"),
        "precision": _distinct(rows, "precision"),
    }
    if cells[BEST_ON_TEST]:
        cells[BEST_BIAS] = _minus_last(rows, "best_test_error")
    if "parameters" in rows and rows["parameters"].notna().any():
        cells["parameters"] = ", ".join(f"{int(p):,}" for p in sorted(rows["parameters"].dropna().unique()))
    if "multiply_adds" in rows and rows["multiply_adds"].notna().any():
        cells["multiply-adds"] = ", ".join(f"{int(m):,}" for m in sorted(rows["multiply_adds"].dropna().unique()))
    if "layers" in rows and rows["layers"].notna().any():
        cells["layers"] = ", ".join(str(int(v)) for v in sorted(rows["layers"].dropna().unique()))
    if model in paper.TABLE6:
        cells["source"] = "trained here"
    if not evidence.at_paper_scale(rows):
        cells[PAPER] = ""
    elif model in paper.PEERS:
        cells[PEERS] = f"{paper.PEERS[model]:.2f}"
    return cells


def _split_of(label: str, recipes: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The runs with validation images that tell what a row would have selected: its own, else its recipe's split runs.

    The paper's split has its own recipe, with a tenth of the images fewer to train on. recipes: label -> runs.
    """
    if recipes[label]["selected_test_error"].notna().all():
        return recipes[label]
    same = [rows for other, rows in recipes.items() if _without_split(other) == _without_split(label)]
    split = [rows for rows in same if rows["selected_test_error"].notna().all()]
    return max(split, key=len, default=recipes[label].iloc[:0])


def _without_split(label: str) -> list[str]:
    return [part for part in label.split(", ") if part and not part.startswith(("val_size=", "train_size="))]


def _selected(split: pd.DataFrame) -> dict:
    """The two cells of the validation-selected view: the error, of how many runs, and its difference from their last.

    Both errors of the difference are of these runs, so that the smaller training set is not taken for a bias.
    """
    if split.empty:
        return {}
    held_out = ", ".join(f"{int(size):,}" for size in sorted(split["val_size"].unique()))
    return {
        SELECTED: f"{_mean(split, 'selected_test_error')} (n = {len(split)}, {held_out} held out)",
        SELECTED_BIAS: f"{_minus_last(split, 'selected_test_error')} (of those runs)",
    }


def _minus_last(rows: pd.DataFrame, column: str) -> str:
    return f"{100 * (rows[column] - rows['test_error']).mean():+.2f}"


def _last(own: stats.Summary, rows: pd.DataFrame) -> str:
    text = _mean_and_spread(own)
    chance = 1 - 1 / (rows["classes"].max() if "classes" in rows and rows["classes"].notna().any() else 10)
    luck = 2 * stats.binomial_error(chance, comparison.images_behind(rows, "test_error"))
    return f"{text} ({GUESSING})" if own.mean / 100 > chance - luck else text


def _mean_and_spread(own: stats.Summary) -> str:
    return f"{own.mean:.2f} ± {own.std:.2f}" if own.n > 1 else f"{own.mean:.2f}"


def _interval(own: stats.Summary, rows: pd.DataFrame) -> str:
    if own.n > 1:
        return f"{own.low:.2f} to {own.high:.2f}"
    half = 1.96 * 100 * stats.binomial_error(own.mean / 100, comparison.images_behind(rows, "test_error"))
    return f"{max(0, own.mean - half):.2f} to {min(100, own.mean + half):.2f} (binomial)"


def _against(model: str, own: stats.Summary, rows: pd.DataFrame) -> str:
    """ResNet-110 and every row with a printed mean of known n: difference of means; others: z of one number."""
    z = paper_z(model, rows)
    if z is None:
        return ""
    quoted = paper.TABLE6[model]
    if quoted.seeds and own.n > 1:
        d = stats.welch_from_moments(quoted.mean, quoted.std, quoted.seeds, own.mean, own.std, own.n)
        return f"{d.difference:+.2f} ({d.low:+.2f} to {d.high:+.2f}) from the mean {quoted.mean:.2f}"
    return f"{own.mean - (quoted.mean or quoted.error):+.2f}, z = {z:+.1f}"


def _mean(rows: pd.DataFrame, column: str) -> str:
    values = rows[column].dropna() if column in rows else []
    return f"{100 * float(values.mean()):.2f}" if len(values) == len(rows) else ""


def _distinct(rows: pd.DataFrame, column: str) -> str:
    return ", ".join(sorted(map(str, rows[column].dropna().unique()))) if column in rows else ""


def _millions(value: float | None) -> str:
    return f"{value / 1e6:g}M" if value else ""
