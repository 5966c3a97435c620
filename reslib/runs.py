"""Records: one directory per run, named after its recipe, readable by pandas in one line.

`recipe.json` is written first, `metrics.csv` (a row per evaluation) as it goes, `summary.json` last: its presence means
that the run has ended. `checkpoint.pt` and `weights.safetensors` stay out of git.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import itertools
import json
import os
import socket
import time
from pathlib import Path

import pandas as pd

from .errors import UserError
from .files import sha256, whole_file, write_json, write_text
from .models import family_and_depth
from .recipe import Recipe

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
ENDED = ("finished", "diverged")


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
        return self.summary_file.exists()

    def summary(self) -> dict:
        """The summary of an ended run. Raises UserError when it is missing, damaged or belongs to another recipe."""
        summary = read_json(self.summary_file)
        if summary.get("recipe_hash") != self.recipe.digest:
            raise UserError(
                f"{self.summary_file}: recorded for recipe {summary.get('recipe_hash')}, not {self.recipe.digest}"
            )
        return summary

    def begin(self) -> None:
        """Create the directory and write the recipe, or check that the recipe there is this one."""
        if self.recipe_file.exists():
            there = Recipe.from_dict(read_json(self.recipe_file))
            if there.digest != self.recipe.digest:
                raise UserError(f"{self.path} holds recipe {there.digest}, not {self.recipe.digest}: move it away")
        else:
            write_json(self.recipe_file, self.recipe.to_dict())
        for leftover in self.path.glob(".*.tmp"):  # of a process that was killed while it wrote
            leftover.unlink(missing_ok=True)

    def write_metrics(self, rows: list[dict]) -> None:
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
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


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
    if results:
        return Path(results).expanduser().resolve()
    if os.environ.get("RESLIB_RESULTS"):
        return Path(os.environ["RESLIB_RESULTS"]).expanduser().resolve()
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "results"


def load_runs(runs_dir: Path) -> pd.DataFrame:
    """One row per run directory: its recipe (`precision` there is `precision_asked`), summary and status."""
    rows = [_record(path) for path in sorted(Path(runs_dir).glob("*/recipe.json"))]
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


def _record(recipe_file: Path) -> dict:
    path = recipe_file.parent
    recipe = Recipe.from_dict(read_json(recipe_file))
    row = recipe.to_dict()
    row["precision_asked"] = row.pop("precision")
    family, depth = family_and_depth(recipe.model)
    row |= {"run": path.name, "path": str(path), "family": family, "depth": depth, "recipe_hash": recipe.digest}
    summary_file = path / "summary.json"
    if summary_file.exists():
        row |= read_json(summary_file)
    else:
        row["status"] = "running" if is_locked(path) else "interrupted"
    return row


def load_curves(runs: pd.DataFrame) -> pd.DataFrame:
    """The evaluations of the given runs, long: a row per run and evaluation, errors as fractions."""
    frames = []
    for row in runs.to_dict("records"):
        file = Path(row["path"]) / "metrics.csv"
        if file.exists():
            frame = pd.read_csv(file)
            for column in ("run", "model", "family", "depth", "seed", "dataset", "synthetic"):
                frame.insert(0, column, row[column])
            frames.append(frame)
    columns = ["run", "model", "family", "depth", "seed", "dataset", "synthetic", *METRICS]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


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
