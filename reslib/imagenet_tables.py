"""Tables 2 to 5: ImageNet errors by ten crops, at five scales and of ensembles, of the networks that are here.

A row is "trained here" (a finished run's weights), "evaluated" (weights from elsewhere, see given_weights.py), "not
evaluated" with the reason, or "quoted": the paper's number alone. What was measured is kept in
measurements/imagenet_scores.csv (imagenet_scores.py), so that the tables can be drawn again where there are no weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch

from . import data, evidence, imagenet_scale, paper, stats
from .distributed import ALONE, Group
from .errors import UserError, choose
from .evaluate import SIZES
from .frames import read_csv
from .given_weights import find_weights
from .imagenet_scores import Network, Scores, imagenet_runs
from .recipe import Recipe
from .studies import PAPER_SIX

LIMITS = {"smoke": 16, "quick": 64}  # test images, where a table has to be quick; elsewhere all of the recipe's
TOP1, TOP5, INTERVAL = "top-1 (%)", "top-5 (%)", "95% interval of top-1 (%)"
CENTRE = "centre crop, top-1 (%)"
PAPERS = ["top-1 (paper, %)", "top-5 (paper, %)"]
ALL = "imagenet (1000 classes)"
COLUMNS = [
    "model", "source", *PAPERS, "n", TOP1, TOP5, INTERVAL, CENTRE, "images", "data set",
    "preset", "note",
]  # fmt: skip
TABLES = paper.TABLE2, paper.TABLE3, paper.TABLE4, paper.TABLE5
TITLES = {
    "table2": "Plain and residual nets of 18 and 34 layers, 10-crop",
    "table3": "ImageNet validation, 10-crop",
    "table4": "ImageNet validation, single models, fully convolutional at five scales",
    "table5": "Ensembles, fully convolutional at five scales (the paper's on the test set, here on validation images)",
}


def tables(
    runs: pd.DataFrame,
    runs_dir: str | Path,
    source: data.DataSource | None = None,
    weights: str | Path = "",
    limit: int = 0,
    device: str | torch.device = "cpu",
    ensembles: dict[str, list[str]] | None = None,
    group: Group = ALONE,
    say=None,
) -> dict[str, pd.DataFrame]:
    """{"table2": ..., "table5": ...}; all cells are text.

    runs: as from `frames`, those not on ImageNet-style data are left out. source: the data to measure on; None shows
    what was measured before. weights: a file or folder of given weights, or "torchvision". limit: at most so many test
    images, 0 for all. ensembles: further rows of Table 5, label -> names of runs or of weights files. group: the
    processes that share the images out; all of them give the same runs. say(text) is told of every measurement.
    """
    scores = Scores(Path(runs_dir).parent, source, limit, torch.device(device), group, say)
    nets = scores.trained(runs, Path(runs_dir)) + scores.given(weights)
    for label, names in (ensembles or {}).items():  # before hours of testing
        for name in names:
            choose(f"member of ensemble {label!r}", name, [n.name for n in nets])
    result = {
        "table2": _table(paper.TABLE2, [n for n in nets if n.depth == 18 or n.key in _keys(paper.TABLE2)], scores),
        "table3": _table(paper.TABLE3, [n for n in nets if n.depth >= 34], scores),
        "table4": _table(paper.TABLE4, [n for n in nets if n.model.startswith("resnet")], scores, "multi-scale"),
        "table5": _ensembles(nets, scores, ensembles or {}),
    }
    frames = {name: _frame(rows, quoted) for (name, rows), quoted in zip(result.items(), TABLES, strict=True)}
    frames["table5"] = frames["table5"].rename(columns={"n": "models"})
    return frames


def check_ensemble(names: list[str], recipes: list[Recipe], runs_dir: Path, weights: str = "") -> None:
    """Raise UserError for a member that is no run of these recipes or on disk, and no weights, given now or before."""
    if not names:
        return
    known = [recipe.run_name for recipe in recipes]
    known += sorted(path.name for path in Path(runs_dir).glob("*") if path.is_dir())
    known += [file.name for file in find_weights(weights)] if weights else []
    measured = Path(runs_dir).parent / "measurements" / "imagenet_scores.csv"
    known += read_csv(measured, dtype=str)["name"].tolist() if measured.exists() else []
    for name in names:
        choose("member of the ensemble", name, dict.fromkeys(known))


def caption(name: str, table: pd.DataFrame, runs: pd.DataFrame) -> str:
    """The caption of one of the tables: how and on what it was measured; synthetic data first."""
    choose("table", name, TITLES)
    own = table[table[TOP1] != ""]
    loud = "SYNTHETIC DATA. " if own["data set"].str.contains("SYNTHETIC").any() else ""
    text = f"{loud}{evidence.mixed(runs)}Table {name[-1]}: {TITLES[name]}; errors in %. "
    if own.empty:
        return text + "Nothing measured here: the paper's numbers alone."
    images = sorted({int(n.replace(",", "")) for n in own["images"]})
    sets = ", ".join(sorted(set(own["data set"])))
    text += f"Measured on {' or '.join(f'{n:,}' for n in images)} validation images of {sets}"
    if not own["source"].eq("trained here").any():
        return text + "."
    trained = imagenet_runs(runs)
    behind = filter(None, [evidence.evidence_line(trained), imagenet_scale.in_words(trained)])
    return f"{text}. {' · '.join(behind)}"


def notes(tables: dict[str, pd.DataFrame]) -> list[str]:
    """What a reader of the tables must know: lines to print below them."""
    rows = pd.concat(tables.values(), ignore_index=True)
    own = rows[rows[TOP1] != ""]
    lines = [
        "trained here: ten crops or five scales from the last weights of n runs; centre crop: from their records, on "
        "all of their test images. evaluated: weights from elsewhere. quoted: the paper's number alone.",
        f"Five scales: shorter sides {', '.join(map(str, SIZES))} for crops of 224, in proportion for others; both "
        "mirror images; softmax scores averaged over positions, scales, and the models of an ensemble.",
        "95% interval: Student's t over the runs; of a single network Wilson's interval for its images.",
    ]
    if own["data set"].str.contains("SYNTHETIC").any():
        lines.append("SYNTHETIC DATA: errors on synthetic images, not comparable with the paper's.")
    if own["data set"].str.contains(" of 1000 classes").any():
        lines.append(
            "Evaluated on a subset: only its classes' logits compete, which is far easier than 1000 classes. Most of "
            "Imagenette's validation images are training images of ImageNet: given weights are not tested on those."
        )
    if (own["source"] == "evaluated").any():
        lines += [
            "Evaluated: shorter side 256, crops of 224; the images of a set that stores smaller ones are enlarged.",
            "Evaluated nets of 50 layers and more have the stride on the 3x3 convolution, unlike the paper's.",
        ]
    if own.reindex(columns=PAPERS).fillna("").eq("").all(axis=1).any():
        lines.append(
            "Errors of less than all of ImageNet, or of another length of training than the paper's, compare with each "
            "other: the paper's number is left out of their rows."
        )
    return lines


def _table(quoted: Iterable[paper.ImageNetRow], nets: list[Network], scores: Scores, how: str = "ten-crop") -> list:
    groups: dict[tuple, list[Network]] = {}
    for net in nets:
        groups.setdefault(net.row, []).append(net)
    rows, shown = [], set()
    for line in quoted:
        cells = _quoted(line)
        matching = [g for g in groups.values() if line.model and g[0].key == (line.model, line.shortcut)]
        measured = [_beside(cells, _measured(line.label, group, scores, how), group) for group in matching]
        rows += measured or [cells]
        shown |= {group[0].row for group in matching}
    return rows + [_measured(_name(g[0]), g, scores, how) for row, g in groups.items() if row not in shown]


def _beside(quoted: dict, own: dict, nets: list[Network]) -> dict:
    """A row of a table with what was measured here: the paper's number stays where the two may be compared."""
    may = own.get("data set", "") in ("", "imagenet", ALL) and all(net.compares for net in nets)
    return {key: "" if key in PAPERS and not may else text for key, text in quoted.items()} | own


def _measured(name: str, nets: list[Network], scores: Scores, how: str) -> dict:
    """The own cells of a row: the networks are the seeds of one recipe, or one weights file."""
    found, reasons = [], []
    for net in nets:
        try:
            found.append(scores.of(net, how))
        except UserError as error:
            reasons.append(str(error))
    net = nets[0]
    label = f"{name} [{net.label}]" if net.label else name
    cells = {"model": label, "source": net.source, "preset": net.preset} | _numbers(found)
    if net.source == "trained here":
        cells[CENTRE] = _error([n.centre for n in nets])
        cells["data set"] = cells.get("data set") or _data_set(net.dataset)
        cells["n"] = str(len(nets))
        return cells | {"note": f"{len(reasons)} of {len(nets)} not measured: {reasons[0]}" if reasons else ""}
    if not found:
        return cells | {
            "source": "not evaluated",
            "n": "",
            "note": f"{net.name}: {reasons[0].removeprefix(f'{net.name}: ')}",
        }
    cells["n"] = "1"
    try:
        cells[CENTRE] = _error([float(scores.of(net, "centre")["top1"])])
    except UserError:  # an older measurement without it, and the weights are gone
        cells[CENTRE] = ""
    return cells | {"note": f"{net.name}, sha256 {net.weights[:12]}"}


def _ensembles(nets: list[Network], scores: Scores, asked: dict[str, list[str]]) -> list[dict]:
    residual = [n for n in nets if n.model.startswith("resnet")]
    trained = [n for n in residual if n.source == "trained here"]
    *rows, line = [_quoted(row) for row in paper.TABLE5]
    six = [n for wanted in PAPER_SIX for n in trained if (*n.key, n.seed) == wanted and not n.label][: len(PAPER_SIX)]
    complete = [(*n.key, n.seed) for n in six] == list(PAPER_SIX)
    rows.append(_beside(line, _average(line["model"], six, scores), six) if complete else line)
    for source in ("trained here", "evaluated"):
        members = [n for n in residual if n.source == source and (n.load or n.weights in _marks(scores))]
        if len(members) > 1 and not (complete and members == six):
            rows.append(_average(f"all residual nets {source} ({len(members)})", members, scores))
    for label, names in asked.items():
        rows.append(_average(label, [n for n in nets if n.name in names], scores))
    return rows


def _average(label: str, nets: list[Network], scores: Scores) -> dict:
    sources = {n.source for n in nets}
    cells = {
        "model": label,
        "source": "trained here" if sources == {"trained here"} else "evaluated",
        "n": str(len(nets)),
        "preset": ", ".join(sorted({n.preset for n in nets} - {""})),
        "note": "members: " + ", ".join(_name(n) + (f" seed {n.seed}" if n.preset else "") for n in nets),
    }
    try:
        return cells | _numbers([scores.of_ensemble(nets)])
    except UserError as error:
        return cells | {"source": "not evaluated", "note": f"{cells['note']}; not measured: {error}"}


def _numbers(found: list[dict]) -> dict:
    if not found:
        return {}
    top1, images = [float(f["top1"]) for f in found], min(int(f["images"]) for f in found)
    own = stats.summarize(100 * v for v in top1)
    low, high = (own.low, own.high) if own.n > 1 else (100 * v for v in wilson(top1[0], images))
    return {
        TOP1: _error(top1),
        TOP5: _error([float(f["top5"]) for f in found if f["top5"]]),
        INTERVAL: f"{low:.2f} to {high:.2f}" + (" (Wilson)" if own.n == 1 else ""),
        "images": f"{images:,}",
        "data set": _data_set(found[0]["dataset"], found[0]["classes"]),
    }


def wilson(error: float, images: int) -> tuple[float, float]:
    """Wilson's 95% interval of an error rate: unlike the binomial error it holds for few images and for 0 and 1."""
    z2 = 1.959964**2 / images
    half = (z2 * error * (1 - error) + z2**2 / 4) ** 0.5
    return (error + z2 / 2 - half) / (1 + z2), (error + z2 / 2 + half) / (1 + z2)


def _quoted(row: paper.ImageNetRow) -> dict:
    errors = ("" if value is None else f"{value:.2f}" for value in (row.top1, row.top5))
    return {"model": row.label, "source": "quoted", **dict(zip(PAPERS, errors, strict=True))}


def _frame(rows: list[dict], quoted: Iterable[paper.ImageNetRow]) -> pd.DataFrame:
    """All columns as text, without those of the paper that its table does not have."""
    frame = pd.DataFrame([[row.get(column, "") for column in COLUMNS] for row in rows], columns=COLUMNS)
    return frame.drop(columns=[c for c in PAPERS if not any(_quoted(row)[c] for row in quoted)])


def _error(values: list[float]) -> str:
    if not values:
        return ""
    own = stats.summarize(100 * v for v in values)
    return f"{own.mean:.2f} ± {own.std:.2f}" if own.n > 1 else f"{own.mean:.2f}"


def _name(net: Network) -> str:
    return f"{paper.label(net.model)} {net.shortcut}".strip()


def _data_set(name: str, classes: str = "") -> str:
    text = f"{name} ({classes} classes)" if classes else name
    return text + (" (SYNTHETIC)" if name.startswith("synthetic") else "")


def _keys(rows: Iterable[paper.ImageNetRow]) -> set:
    return {(row.model, row.shortcut) for row in rows}


def _marks(scores: Scores) -> set[str]:
    return {row["weights_sha256"] for row in scores.known.values() if row["how"] == "multi-scale"}
