"""Records: one directory per run, named after its recipe, readable by pandas in one line.

`recipe.json` is written first, `metrics.csv` (a row per evaluation) as it goes, `summary.json` last: its presence means
that the run has ended. `checkpoint.pt` and `weights.safetensors` stay out of git.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import io
import itertools
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import own_network, record_index
from .errors import UserError, shown
from .files import folder_of, sha256, whole_file, write_json, write_text
from .names import family_and_depth
from .recipe import Recipe

if TYPE_CHECKING:  # imported where records are read as frames: the command line answers half a second earlier
    import pandas as pd

METRICS = (
    "iteration",
    "epoch",
    "lr",
    "train_loss",
    "train_error",
    "test_loss",
    "test_error",
    "val_error",
    "seconds",
    "images_per_second",
)
ENDED = record_index.ENDED


class Run:
    """The files of one recipe's run below `runs_dir`."""

    def __init__(self, runs_dir: Path, recipe: Recipe):
        self.recipe = recipe
        self.path = Path(runs_dir) / recipe.run_name
        self.recipe_file = self.path / "recipe.json"
        self.metrics_file = self.path / "metrics.csv"
        self.summary_file = self.path / "summary.json"
        self.checkpoint_file = self.path / "checkpoint.pt"
        self.weights_file = self.path / "weights.safetensors"

    @property
    def ended(self) -> bool:
        """Whether the run has ended: finished or diverged."""
        return self.summary_file.exists()

    def summary(self) -> dict:
        """The summary of an ended run.

        Raises UserError when it is missing, damaged or belongs to another recipe, or to other code of a network of
        one's own.
        """
        summary = read_json(self.summary_file)
        check_summary(summary, self.recipe, self.summary_file)
        own_network.check(self.recipe, summary.get("network_source"))
        return summary

    def begin(self) -> None:
        """Create the directory and write the recipe, or check that the recipe there is this one."""
        if self.recipe_file.exists():
            self.check_recipe()
        else:
            write_json(self.recipe_file, self.recipe.to_dict())
        for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)

    def check_recipe(self) -> None:
        """Raise UserError when the recipe on disk is missing, damaged or another one."""
        there = read_recipe(self.recipe_file)
        if there.digest != self.recipe.digest:
            raise UserError(f"{self.path} holds recipe {there.digest}, not {self.recipe.digest}: move it away")

    def write_metrics(self, rows: list[dict]) -> None:
        """Write metrics.csv: a row per evaluation, six significant digits."""
        text = io.StringIO()
        writer = csv.DictWriter(text, METRICS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)
        write_text(self.metrics_file, text.getvalue())

    def finish(self, summary: dict) -> dict:
        """Write the summary, which ends the run, and drop the checkpoint that nobody needs any more."""
        summary = {**summary, "metrics_sha256": sha256(self.metrics_file)}
        write_json(self.summary_file, summary)
        self.checkpoint_file.unlink(missing_ok=True)
        return summary

    @contextlib.contextmanager
    def lock(self, wait: bool = True, say=print):
        """Hold the run for this process. A second one waits, or with wait=False raises UserError naming the holder."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / "lock", "a+")  # noqa: SIM115 (closed below; it must stay open to hold the lock)
        except OSError as error:
            raise UserError(f"cannot write to {self.path}: {error.strerror or error}") from error
        with file:
            for attempt in itertools.count():
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == 3:  # not just somebody who looked whether the run is being trained
                        holder = _holder(file)
                        if not wait:
                            raise UserError(f"run {self.recipe.run_name} is being trained by {holder}") from None
                        say(f"run {self.recipe.run_name} is being trained by {holder}: waiting for it")
                    time.sleep(0.05 if attempt < 3 else 0.5)
            with contextlib.suppress(OSError):  # who holds it is a courtesy: a full disk must not stop us here
                os.ftruncate(file.fileno(), 0)  # unbuffered: closing must not fail on a full disk either
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield self


def _holder(file) -> str:
    file.seek(0)
    return file.read().strip() or "another process"


def _short(value):
    return f"{value:.6g}" if isinstance(value, float) else value


def read_json(path: Path) -> dict:
    """A JSON object from disk; UserError names the file when it is missing or damaged."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # no file, no text, no JSON, or thousands of brackets
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def read_recipe(path: Path) -> Recipe:
    """A recipe from disk; UserError names the file when it is missing, damaged or of a version that knows more."""
    values = read_json(path)
    try:
        return Recipe.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def is_locked(path: Path) -> bool:
    """Whether some process trains this run now."""
    try:
        with open(path / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def results_root(results: str | Path | None = None) -> Path:
    """The results folder: the argument, $RESLIB_RESULTS, `results/` of the checkout, or `results/` here."""
    if given := results or os.environ.get("RESLIB_RESULTS"):
        return folder_of("results", given)
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "results"


def tell_once(text: str) -> None:
    """On standard error, the same line only once per process: the records are read for every figure."""
    if text not in _told:
        _told.add(text)
        print(text, file=sys.stderr, flush=True)


_told: set[str] = set()


def load_runs(runs_dir: Path, say=tell_once) -> pd.DataFrame:
    """One row per run directory: its recipe (`precision` there is `precision_asked`), summary and status.

    Damaged records are left out; say(line) is told of each, with its name and what is wrong.
    """
    import pandas as pd

    found = record_index.rows(runs_dir, _record_or_fault)
    rows = [row for row in found if "fault" not in row]
    for fault in [row["fault"] for row in found if "fault" in row] + _without_recipe(Path(runs_dir), len(found)):
        say(f"DAMAGED RECORD, left out: {fault}")
    frame = pd.DataFrame(rows)
    for column in ("run", "path", "status", *_SUMMARY_COLUMNS):
        if column not in frame:
            frame[column] = pd.Series([None] * len(frame), dtype=object)
    for column in _NUMERIC:
        frame[column] = pd.to_numeric(frame[column])
    return frame


_NUMERIC = (
    "test_error",
    "best_test_error",
    "best_iteration",
    "selected_test_error",
    "selected_iteration",
    "exact_bn_test_error",
    "train_error",
    "train_loss",
    "parameters",
    "multiply_adds",
    "layers",
    "seconds",
    "images_per_second",
    "warmup_ended_at",
)
_SUMMARY_COLUMNS = (
    *_NUMERIC,
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


def check_summary(summary: dict, recipe: Recipe, where: Path) -> None:
    """Raise UserError when a summary is not that of an ended run of this recipe, with numbers where numbers belong."""
    if summary.get("recipe_hash") != recipe.digest:
        raise UserError(f"{where}: recorded for recipe {summary.get('recipe_hash')}, not {recipe.digest}")
    if summary.get("status") not in ENDED:
        raise UserError(f"{where}: status {summary.get('status')!r} is unknown: allowed are {', '.join(ENDED)}")
    for name in _NUMERIC:
        value = summary.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"{where}: {name} {shown(value)} is not a number")
        if value is not None and name.endswith("_error") and not 0 <= value <= 1:
            raise UserError(f"{where}: {name} {value} is not a fraction from 0 to 1")
    if summary["status"] == "finished" and summary.get("test_error") is None:
        raise UserError(f"{where}: finished without a test_error")


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


def write_weights(path: Path, model) -> None:
    """The network's state as safetensors."""
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with whole_file(path, "wb") as file:
        file.write(save(state))


def read_weights(path: Path) -> dict:
    """A state dictionary from a safetensors file; UserError when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error
