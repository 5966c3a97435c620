"""The files of a run: one directory each, named after its recipe. records.py reads them as data frames.

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
import math
import os
import time
from pathlib import Path

from . import own_network, record_index
from .errors import UserError, shown
from .files import folder_of, holder, lock, lock_file, sha256, sign, whole_file, write_json, write_text
from .recipe import Recipe, is_number
from .stopping import Interrupted, StopSignal

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
NUMERIC = (  # of a summary
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

        Raises UserError when it or the recipe is missing, damaged or another one, or that of other code of a network of
        one's own.
        """
        self.check_recipe()
        try:
            summary = read_json(self.summary_file)
        except UserError as error:
            raise UserError(f"{error}; move the run's folder away to train it anew") from error
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
        values = read_json(self.recipe_file)
        mine = {k: list(v) if isinstance(v, tuple) else v for k, v in self.recipe.to_dict().items()}
        if values == mine:  # as JSON has it; thousands are compared at once
            return
        if (there := _recipe_of(values, self.recipe_file)).digest != self.recipe.digest:
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
    def lock(self, patience: float = math.inf, say=print, stop: StopSignal | None = None):
        """Hold the run for this process. A second one waits so many seconds, then raises UserError naming the holder.

        Raises Interrupted when `stop` has a reason while it waits.
        """
        with lock_file(self.path / "lock") as file:
            end = time.monotonic() + patience
            for attempt in itertools.count():
                try:
                    lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt >= 3:  # not just somebody who looked whether the run is being trained
                        taken = f"run {self.recipe.run_name} is being trained by {holder(self.path / 'lock')}"
                        if time.monotonic() >= end:
                            raise UserError(taken) from None
                        if attempt == 3:
                            say(f"{taken}: waiting for it")
                    if stop is not None and stop.reason:
                        raise Interrupted(
                            f"{self.recipe.run_name}: {stop.reason} while another process trains it; the same command "
                            "continues"
                        ) from None
                    time.sleep(0.05 if attempt < 3 else 0.5)
            sign(file)
            yield self


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
    return _recipe_of(read_json(path), path)


def _recipe_of(values: dict, path: Path) -> Recipe:
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


def check_summary(summary: dict, recipe: Recipe, where: Path) -> None:
    """Raise UserError when a summary is not that of an ended run of this recipe, with numbers where numbers belong."""
    if summary.get("recipe_hash") != recipe.digest:
        raise UserError(f"{where}: recorded for recipe {summary.get('recipe_hash')}, not {recipe.digest}")
    if summary.get("status") not in ENDED:
        raise UserError(f"{where}: status {summary.get('status')!r} is unknown: allowed are {', '.join(ENDED)}")
    for name in NUMERIC:
        value = summary.get(name)
        if name.endswith("_error") and type(value) in (int, float) and not 0 <= value <= 1:
            raise UserError(f"{where}: {name} {shown(value)} is not a fraction from 0 to 1")
        if value is not None and not is_number(value):
            raise UserError(f"{where}: {name} {shown(value)} is not a number")
    if summary["status"] == "finished" and summary.get("test_error") is None:
        raise UserError(f"{where}: finished without a test_error")


def write_weights(path: Path, model) -> None:
    """The network's state as safetensors."""
    from safetensors.torch import save

    state, seen = {}, set()
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        if (place := value.untyped_storage().data_ptr()) in seen:  # tied weights: the file has each name's values
            value = value.clone()
        seen.add(place)
        state[name] = value
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
