"""Records as data frames: a row per run (`load_runs`), a row per evaluation (`load_curves`).

Damaged ones are left out, each with a loud line.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import record_index, sources
from .errors import UserError, tell_once
from .names import family_and_depth
from .runs import METRICS, NUMERIC, check_summary, is_locked, read_json, read_recipe

if TYPE_CHECKING:  # imported where it is used: the command line answers half a second earlier
    import pandas as pd

_SUMMARY_COLUMNS = (
    *NUMERIC,
    "model",
    "dataset",
    "seed",
    "family",
    "depth",
    "preset",
    "precision",
    "device",
    "device_name",
    "commit",
    "dirty",
    "torch",
    "data_fingerprint",
    "data_origin",
    "synthetic",
    "started",
    "finished",
    "message",
)


def load_runs(runs_dir: Path, say=tell_once) -> pd.DataFrame:
    """One row per run directory: its recipe (`precision` there is `precision_asked`), summary and status.

    Damaged records are left out; say(line) is told of each, with its name and what is wrong. Of code that was committed
    elsewhere or later `commit` is the one that results/sources.json names.
    """
    import pandas as pd

    found = record_index.rows(runs_dir, _record_or_fault)
    commits = sources.known(Path(runs_dir).parent.parent)
    rows = [sources.resolved(row, commits) for row in found if "fault" not in row]
    for fault in [row["fault"] for row in found if "fault" in row] + _without_recipe(Path(runs_dir), len(found)):
        say(f"DAMAGED RECORD, left out: {fault}")
    frame = pd.DataFrame(rows)
    for column in ("run", "path", "status", *_SUMMARY_COLUMNS):
        if column not in frame:
            frame[column] = pd.Series([None] * len(frame), dtype=object)
    for column in NUMERIC:
        frame[column] = pd.to_numeric(frame[column])
    return frame


def _without_recipe(runs_dir: Path, found: int) -> list[str]:
    """The folders that hold a result, but not what was trained; found: how many have a recipe."""
    names = [name for name in os.listdir(runs_dir) if not name.startswith(".")] if runs_dir.is_dir() else []
    if len(names) == found:
        return []
    lost = [p.parent for p in sorted(runs_dir.glob("*/summary.json")) if not (p.parent / "recipe.json").exists()]
    return [f"{path}: recipe.json is missing" for path in lost]


def _record_or_fault(recipe_file: Path) -> dict:
    try:
        return _record(recipe_file)
    except UserError as error:
        return {"fault": str(error)}


def _record(recipe_file: Path) -> dict:
    path = recipe_file.parent
    recipe = read_recipe(recipe_file)
    if path.name != recipe.run_name:
        raise UserError(f"{path} holds the record of {recipe.run_name}: a copy would count twice")
    row = recipe.to_dict()
    row["precision_asked"] = row.pop("precision")
    family, depth = family_and_depth(recipe.model)
    row |= {"run": path.name, "path": str(path), "family": family, "depth": depth, "recipe_hash": recipe.digest}
    summary_file = path / "summary.json"
    if summary_file.exists():
        summary = read_json(summary_file)
        check_summary(summary, recipe, summary_file)
        row |= {key: value for key, value in summary.items() if key not in row}
    else:
        row["status"] = "running" if is_locked(path) else "interrupted"
    return row


def load_curves(runs: pd.DataFrame, say=tell_once) -> pd.DataFrame:
    """The evaluations of the given runs, long: a row per run and evaluation, errors as fractions.

    Damaged curves are left out; say(line) is told of each.
    """
    import pandas as pd

    of_run = ["run", "model", "family", "depth", "seed", "dataset", "synthetic"]
    signed = runs["metrics_sha256"] if "metrics_sha256" in runs else [None] * len(runs)
    texts = {}
    for place, (path, signature) in enumerate(zip(runs["path"] if len(runs) else (), signed, strict=True)):
        try:
            if text := _metrics(Path(path) / "metrics.csv", signature):
                texts[place] = text
        except UserError as error:
            say(f"DAMAGED CURVE, left out: {error}")
    places = list(texts)
    if not places:
        return pd.DataFrame(columns=[*of_run, *METRICS])
    points, lengths = _evaluations(list(texts.values()))
    owners = [place for place, length in zip(places, lengths, strict=True) for _ in range(length)]
    owner = runs.iloc[owners][of_run].reset_index(drop=True).infer_objects()
    return pd.concat([owner, points[list(METRICS)]], axis=1)


def _metrics(file: Path, signature) -> str:
    """The text of a metrics.csv, "" when there is none. UserError when it is damaged or not the one that was signed."""
    try:
        data = file.read_bytes()
        head, *rows = data.decode().splitlines() or [""]
        numbers = [[float(cell) for cell in row.split(",") if cell] for row in rows]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if isinstance(signature, str) and hashlib.sha256(data).hexdigest() != signature:
        raise UserError(f"{file} is not the file that its summary.json names (sha256 differs)")
    if not set(METRICS) <= set(head.split(",")) or any(row.count(",") != head.count(",") for row in rows):
        raise UserError(f"{file} is not a table of {', '.join(METRICS)}")
    return data.decode() if numbers else ""


def _evaluations(texts: list[str]) -> tuple[pd.DataFrame, list[int]]:
    """The rows of several metrics.csv, one below the other, and how many each has."""
    import pandas as pd

    head = ",".join(METRICS) + "\n"
    if all(text.startswith(head) and text.endswith("\n") for text in texts):  # parsed at once: ten times as fast
        lengths = [text.count("\n") - 1 for text in texts]
        frame = pd.read_csv(io.StringIO(head + "".join(text[len(head) :] for text in texts)))
        if len(frame) == sum(lengths):
            return frame, lengths
    frames = [pd.read_csv(io.StringIO(text)) for text in texts]
    return pd.concat(frames, ignore_index=True), [len(frame) for frame in frames]
