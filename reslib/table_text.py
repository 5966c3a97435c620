"""What is said beside the tables: captions, with the evidence, and the lines below them."""

from __future__ import annotations

import pandas as pd

from . import comparison, evidence, imagenet_scale, own_network, paper, stats
from .baseline_recipes import ARCHITECTURES

NOT_AT_PAPER_SCALE = (
    f"Not at the paper's scale ({evidence.PAPER_SCALE}): such rows compare only with each other, and the paper's "
    "number is left out of them."
)


Z = (
    "z: the difference from the paper's error over its standard error, which combines the spread of the seeds here "
    "with the binomial error of the paper's one test (with one seed here that of ours, too: how far seeds differ is "
    "then not in it)."
)


def notes(runs: pd.DataFrame) -> list[str]:
    """What a reader of the table must know: lines to print below it."""
    runs = cifar_runs(runs)
    lines = [
        "last: error at the last iteration, mean ± standard deviation over n seeds; interval: Student's t over the "
        "seeds, for one seed the binomial error of one test.",
        "quoted: the paper's number, nothing was trained here.",
        "validation-selected: the test error where the validation error was lowest, of runs that hold out a tenth of "
        "the training images; its bias: minus the last error of the same runs. Empty where the preset has none.",
    ]
    if runs.empty:
        return lines + ["No runs yet."]
    if evidence.is_synthetic(runs).any():
        lines.append("SYNTHETIC DATA: errors on synthetic images, not comparable with the paper's.")
    done = evidence.finished(runs)
    lines += lengths(done) + other_architectures(done)
    if "data_fingerprint" in done and done["data_fingerprint"].nunique() > 1:
        prints = ", ".join(sorted(map(str, done["data_fingerprint"].dropna().unique())))
        lines.append(f"Mixed data: the rows come from different data ({prints}) and do not compare.")
    if not evidence.at_paper_scale(done):
        lines.append(NOT_AT_PAPER_SCALE)
    if "status" in runs:
        for status in ("diverged", "running", "interrupted"):
            for model, count in runs.loc[runs["status"] == status, "model"].value_counts().sort_index().items():
                lines.append(f"{paper.label(model)}: {count} run{'s' * (count > 1)} {status}, not in the table.")
    for (model, label), group in evidence.with_hardware(done).groupby(["model", evidence.settings(done)]):
        name = paper.label(model) + (f" [{label}]" if label else "")
        summary = stats.summarize(group["test_error"])
        if summary.zero_variance:
            lines.append(f"{name}: all {summary.n} seeds have the same error; the seed seems to change nothing.")
        for column in ("precision", "device_name"):
            if column in group and group[column].nunique() > 1:
                lines.append(f"{name}: seeds of different {column}: {', '.join(sorted(group[column].unique()))}.")
    if evidence.at_paper_scale(done):
        peers = ", ".join(f"{paper.label(m)} {error:.2f}" for m, error in paper.PEERS.items())
        lines.append(f"Not the paper's: {paper.PEERS_SOURCE} gives {peers} ({paper.PEERS_RECIPE}).")
    return lines + changed_networks(done)


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
    done = evidence.finished(cifar_runs(runs))
    lines = lengths(done) if len(done) else []
    if len(done) and not evidence.at_paper_scale(done):
        lines = [NOT_AT_PAPER_SCALE, *lines]
    lines += other_architectures(done)
    if len(done) and evidence.at_paper_scale(done):
        lines.append(f"Released peers: {paper.PEERS_SOURCE} ({paper.PEERS_RECIPE}).")
        if runs["model"].isin(paper.TABLE6).any():
            lines.append(Z)
    limits = "".join(f" {line}" for line in lines)
    return f"{evidence.loud(runs)}Test error (%) of the networks of Table 6.{limits} {evidence.evidence_line(runs)}"


def other_architectures(runs: pd.DataFrame) -> list[str]:
    """How networks among the runs are not those of their own papers: a sentence, or nothing."""
    found = [f"{paper.label(m)}, {ARCHITECTURES[m]}" for m in ARCHITECTURES if len(runs) and m in set(runs["model"])]
    return [f"Not as in their own papers, beside the recipes: {'; '.join(found)}."] if found else []


def changed_networks(runs: pd.DataFrame) -> list[str]:
    """The networks of one's own whose code here is no longer that which was trained: a sentence, or nothing.

    Not for a caption: what is stored says the same wherever it is drawn.
    """
    if "network_source" not in runs:
        return []
    known = runs.dropna(subset=["network_source"])
    pairs = dict.fromkeys(zip(known["model"], known["network_source"], strict=True))
    # To look into a package is to import it, which a record from elsewhere must not bring about: modules alone.
    pairs = [(model, source) for model, source in pairs if "." not in model.partition(":")[0]]
    found = [model for model, source in pairs if own_network.source_of(model) not in ("", source)]
    return [f"Trained before their code was changed to what it is now: {', '.join(found)}."] if found else []


def depth_caption(runs: pd.DataFrame) -> str:
    """The caption of `depth_table`, with the evidence behind it; names synthetic data first."""
    return (
        f"{evidence.loud(runs)}Plain and residual nets by depth, errors in %; training error: running, on augmented "
        f"images{_window(runs)}. {_behind(runs)}"
    )


def _window(runs: pd.DataFrame) -> str:
    """How many images, and iterations, the last training errors are of."""
    done = evidence.finished(runs)
    counts = {comparison.images_behind(group, "train_error") for _, group in done.groupby("run")} if len(done) else ()
    if len(counts) != 1 or not {"iterations", "eval_every", "batch_size"} <= set(done):
        return ""
    images, batches = next(iter(counts)), done["batch_size"].unique()
    iterations = f" ({images / batches[0]:,.0f} iterations)" if len(batches) == 1 else ""
    return f", over the last {images:,} of them{iterations}"


def claims_caption(runs: pd.DataFrame) -> str:
    """The caption of the scoreboard, with the evidence of the runs judged; names synthetic data first."""
    runs = evidence.main_runs(evidence.finished(runs))
    loud = evidence.loud(runs)
    return f"{loud}Claims of the paper, judged on the records of this preset. {_behind(runs)}"


def _behind(runs: pd.DataFrame) -> str:
    """The evidence, and on ImageNet the scale of the protocol."""
    return " · ".join(filter(None, [evidence.evidence_line(runs), imagenet_scale.in_words(runs)]))


def cifar_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Those of the runs that are not on ImageNet."""
    return runs if runs.empty else runs[~evidence.is_imagenet(runs)]
