"""Tables: Table 6 with the runs of this study in it, the nets by depth, the architectures of Table 1.

Errors are percentages with two decimals. "last" is the error at the last iteration, the number to quote; whatever was
selected on the test set says so in its column's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd

from . import evidence, imagenet_scale, paper, stats
from .table_files import save_table as save_table

if TYPE_CHECKING:
    from torch import nn

LAST = "test error, last (%)"
SELECTED = "validation-selected (%)"
SELECTED_BIAS = "bias, validation-selected minus last (points)"
INTERVAL = "95% interval (%)"
BEST_ON_TEST = "best epoch, selected on the test set (%)"
BEST_BIAS = "bias, best epoch minus last (points)"
COLUMNS = [
    "model", "source", "layers", "parameters", "parameters (paper)", "multiply-adds", "test error (paper, %)", "n",
    "iterations", LAST, INTERVAL, "best of n seeds (%)", SELECTED, SELECTED_BIAS, BEST_ON_TEST,
    BEST_BIAS, "exact BN (%)", "against the paper", "data set", "preset", "precision",
]  # fmt: skip
MAIN = [
    "model", "source", "parameters", "test error (paper, %)", "n", "iterations", LAST, INTERVAL, "best of n seeds (%)",
    "against the paper",
]  # fmt: skip
VIEWS = ["model", "n", LAST, SELECTED, SELECTED_BIAS, BEST_ON_TEST, BEST_BIAS, "exact BN (%)"]
TRAINING = "training error, last (%)"
DEPTH = ["model", TRAINING, LAST, INTERVAL, "n", "parameters", "iterations", "data set", "preset", "precision"]
GUESSING = "no better than guessing"


def cifar10_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Table 6: every row of the paper, those trained here with their own numbers, then the networks it does not have.

    source: "trained here", "quoted" (the paper's number alone) or "added" (a network of one's own). Runs of a network
    under several recipes get a row each, which names what differs. All cells are text.
    """
    runs = _cifar(evidence.finished(runs))
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
    return pd.DataFrame([[row.get(column, "") for column in COLUMNS] for row in rows], columns=COLUMNS)


def depth_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The plain and residual nets among the runs, the shallowest first, by their errors at the last iteration.

    Training error is the running one on augmented images. Runs of a network under several recipes get a row each.
    """
    runs = evidence.finished(runs)
    runs = runs[[_family_order(model)[0] < 2 for model in runs["model"]]] if len(runs) else runs
    rows = []
    for (model, label), group in runs.groupby(["model", evidence.settings(runs)]) if len(runs) else ():
        training = stats.summarize(group["train_error"] * 100)
        cells = _trained(model, group, label) | {TRAINING: _mean_and_spread(training)}
        rows.append((_family_order(model)[::-1], label, [cells.get(column, "") for column in DEPTH]))
    return pd.DataFrame([cells for *_, cells in sorted(rows)], columns=DEPTH)


def depth_caption(runs: pd.DataFrame) -> str:
    """The caption of `depth_table`, with the evidence behind it; names synthetic data first."""
    return f"{evidence.loud(runs)}Plain and residual nets by depth, errors in %. {_behind(runs)}"


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


def notes(runs: pd.DataFrame) -> list[str]:
    """What a reader of the table must know: lines to print below it."""
    runs = _cifar(runs)
    lines = [
        "last: error at the last iteration, mean ± standard deviation over n seeds; interval: Student's t over the "
        "seeds, for one seed the binomial error of one test.",
        "quoted: the paper's number, nothing was trained here.",
        "validation-selected: of the runs of that recipe that hold a tenth of the training images out, and minus their "
        "own last error; empty where the preset has none.",
    ]
    if runs.empty:
        return lines + ["No runs yet."]
    if evidence.is_synthetic(runs).any():
        lines.append("SYNTHETIC DATA: errors on synthetic images, not comparable with the paper's.")
    done = evidence.finished(runs)
    lines += lengths(done)
    if "data_fingerprint" in done and done["data_fingerprint"].nunique() > 1:
        prints = ", ".join(sorted(map(str, done["data_fingerprint"].dropna().unique())))
        lines.append(f"Mixed data: the rows come from different data ({prints}) and do not compare.")
    if not evidence.at_paper_scale(done):
        lines.append(
            f"Not at the paper's scale ({evidence.PAPER_SCALE}): rows that are not are not compared with the paper."
        )
    if "status" in runs:
        for status in ("diverged", "running", "interrupted"):
            for model, count in runs.loc[runs["status"] == status, "model"].value_counts().sort_index().items():
                lines.append(f"{paper.label(model)}: {count} run{'s' * (count > 1)} {status}, not in the table.")
    for (model, label), group in done.groupby(["model", evidence.settings(done)]):
        name = paper.label(model) + (f" [{label}]" if label else "")
        summary = stats.summarize(group["test_error"])
        if summary.zero_variance:
            lines.append(f"{name}: all {summary.n} seeds have the same error; the seed seems to change nothing.")
        for column in ("precision", "device_name"):
            if column in group and group[column].nunique() > 1:
                lines.append(f"{name}: seeds of different {column}: {', '.join(sorted(group[column].unique()))}.")
    if evidence.at_paper_scale(done):
        peers = ", ".join(f"{paper.label(m)} {error:.2f}" for m, error in paper.PEERS.items())
        lines.append(f"Not the paper's: {paper.PEERS_SOURCE} gives {peers}, selected on the test set.")
    return lines


def lengths(done: pd.DataFrame) -> list[str]:
    """What the lengths of finished runs forbid to read into their errors: lines for the notes and the caption."""
    lines, by_length = [], {}
    several = "batch_size" in done and done["batch_size"].nunique() > 1
    for (model, *length), _ in done.groupby(["model", "iterations", *["batch_size"] * several], sort=False):
        by_length.setdefault(tuple(map(int, length)), []).append(paper.label(model))
    if len(by_length) > 1:
        parts = []
        for (iterations, *batch), names in sorted(by_length.items()):
            of = f" of {batch[0]} images" if batch else ""
            parts.append(f"{iterations:,} iterations{of}: {', '.join(names)}")
        lines.append(f"Rows of different length do not compare with each other ({'; '.join(parts)}).")
    if "train_images" in done and len(done):
        short = done["iterations"] * done["batch_size"] < done["train_images"]
        if short.any():
            names = ", ".join(dict.fromkeys(map(paper.label, done.loc[short, "model"])))
            which = "every row" if short.all() else names
            lines.append(
                f"Not one pass over the training images: {which}. Such an error says that a network trains, not how "
                "good it is."
            )
    return lines


def caption(runs: pd.DataFrame) -> str:
    """The caption of the CIFAR-10 table: what it shows, and the evidence behind it; names synthetic data first."""
    limits = "".join(f" {line}" for line in lengths(evidence.finished(runs))) if len(runs) else ""
    return f"{evidence.loud(runs)}Test error (%) of the networks of Table 6.{limits} {evidence.evidence_line(runs)}"


def claims_caption(runs: pd.DataFrame) -> str:
    """The caption of the scoreboard, with the evidence behind it; names synthetic data first."""
    loud = evidence.loud(runs)
    return f"{loud}Claims of the paper, judged on the records of this preset. {_behind(runs)}"


def _behind(runs: pd.DataFrame) -> str:
    """The evidence, and on ImageNet the scale of the protocol."""
    return " · ".join(filter(None, [evidence.evidence_line(runs), imagenet_scale.in_words(runs)]))


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


def _cifar(runs: pd.DataFrame) -> pd.DataFrame:
    return runs if runs.empty else runs[~evidence.is_imagenet(runs)]


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
        "test error (paper, %)": error,
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
        "exact BN (%)": _mean(rows, "exact_bn_test_error"),
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

    Both errors of the difference are of the same runs, so that the smaller training set is not taken for a bias.
    """
    if split.empty:
        return {}
    held_out = ", ".join(f"{int(size):,}" for size in sorted(split["val_size"].unique()))
    return {
        SELECTED: f"{_mean(split, 'selected_test_error')} (n = {len(split)}, {held_out} held out)",
        SELECTED_BIAS: _minus_last(split, "selected_test_error"),
    }


def _minus_last(rows: pd.DataFrame, column: str) -> str:
    return f"{100 * (rows[column] - rows['test_error']).mean():+.2f}"


def _last(own: stats.Summary, rows: pd.DataFrame) -> str:
    text = _mean_and_spread(own)
    chance = 1 - 1 / (rows["classes"].max() if "classes" in rows and rows["classes"].notna().any() else 10)
    luck = 2 * stats.binomial_error(chance, evidence.images_behind(rows, "test_error"))
    return f"{text} ({GUESSING})" if own.mean / 100 > chance - luck else text


def _mean_and_spread(own: stats.Summary) -> str:
    return f"{own.mean:.2f} ± {own.std:.2f}" if own.n > 1 else f"{own.mean:.2f}"


def _interval(own: stats.Summary, rows: pd.DataFrame) -> str:
    if own.n > 1:
        return f"{own.low:.2f} to {own.high:.2f}"
    half = 1.96 * 100 * stats.binomial_error(own.mean / 100, evidence.images_behind(rows, "test_error"))
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
