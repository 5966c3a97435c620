"""What a run leaves behind: a row per evaluation, and at its end weights and summary."""

from __future__ import annotations

import math
import os

import torch

from .durations import in_words
from .errors import UserError
from .files import sha256
from .job import Job
from .measure import GivenUp, error_and_loss, exact_bn_error
from .provenance import environment, now
from .recipe import Recipe
from .runs import write_weights
from .schedule import drop_iterations
from .stopping import StopSignal

UNREADABLE_KEPT = 1000  # names of images in a summary
NO_TENSORBOARD = 'tensorboard is not installed: pip install "reslib[tensorboard]"'


class NotFinite(Exception):
    """Weights and losses of the steps are finite, and yet the network's answers are not."""


def evaluate(job: Job, stop: StopSignal) -> dict:
    """The metrics of this iteration, appended to job.rows; the window of running errors starts anew.

    Raises NotFinite for a network of which nothing can be measured.
    Raises GivenUp, with nothing changed, once a signal has come: on a large test set the launcher would not wait. At
    the time limit the evaluation goes on to its end, or one longer than the limit would be begun again and again.
    """
    state, group = job.state, job.group
    before = job.rows[-1] if job.rows else {"iteration": 0, "seconds": 0.0}
    train_seconds = job.seconds() - before["seconds"]
    train_images = (state.iteration - before["iteration"]) * job.recipe.batch_size
    begun = state.seconds
    try:
        test_error, test_loss = _measure(job, "test", stop)
        val_error, val_loss = _measure(job, "val", stop) if job.batches.has("val") else (None, 0.0)
    except GivenUp:
        job.begun += job.seconds() - begun  # else the next session would count it as time of training
        raise
    if not (math.isfinite(test_loss) and math.isfinite(val_loss)):  # of such logits argmax makes a plausible error
        raise NotFinite(f"the logits of whole images after iteration {state.iteration} are not finite")
    train_loss, train_error = job.window.close(group)
    row = {
        "iteration": state.iteration,
        "epoch": state.iteration * job.recipe.batch_size / len(job.batches),
        "lr": state.lr,
        "train_loss": train_loss,
        "train_error": train_error,
        "test_loss": test_loss,
        "test_error": test_error,
        "val_error": val_error,
        "seconds": job.seconds(),
        "images_per_second": train_images / max(train_seconds, 1e-9),
        "val_or_test": test_error if val_error is None else val_error,  # what the plateau schedule looks at
    }
    job.rows.append(row)
    return row


def _measure(job: Job, part: str, stop: StopSignal) -> tuple[float, float]:
    shards = job.batches.eval_batches(part, rank=job.group.rank, world=job.group.world)
    precision, leave = job.state.precision, lambda: bool(stop.signal)
    with job.step.convolutions():
        return error_and_loss(job.model, shards, job.device, precision, job.group.sum, leave)


def describe(recipe: Recipe, row: dict) -> str:
    """One console line per evaluation, with the time left."""
    left = (recipe.iterations - row["iteration"]) * row["seconds"] / max(row["iteration"], 1)
    return (
        f"{recipe.model} seed {recipe.seed}  {row['iteration']:>6}/{recipe.iterations}  lr {row['lr']:<6g}  "
        f"train loss {row['train_loss']:.3f} error {100 * row['train_error']:5.2f}%  "
        f"test error {100 * row['test_error']:5.2f}%  {row['images_per_second']:.0f} images/s  "
        f"{in_words(left)} left"
    )


def unreadable(found: dict[str, str], shown: int = 5) -> str:
    """How many images could not be decoded, the first names and their reasons, in one line."""
    names = [f"{name} ({found[name]})" for name in sorted(found)[:shown]]
    return f"{len(found)} unreadable images left out: {', '.join(names)}{', ...' * (len(found) > shown)}"


def changed_between(sessions: list[dict]) -> str:
    """What differs between the sessions of a run and may have changed its bits, in words, or ""."""
    found = ["other code than it was begun with"] if len({s["source"] for s in sessions}) > 1 else []
    for key in ("torch", "device_name", "processes", "deterministic"):
        values = list(dict.fromkeys(str(s[key]) for s in sessions if key in s))
        if len(values) > 1:
            found.append(f"{key} {values[-1]} (before: {', '.join(values[:-1])})")
    return ", ".join(found)


def divergence(job: Job) -> str:
    """What is no longer a finite number since the last evaluation, naming the iteration, or ""."""
    iteration = job.window.non_finite(job.state.iteration, job.group)
    if iteration is not None:
        return f"the loss of iteration {iteration} is not finite"
    if not bool(torch.stack([torch.isfinite(p).all() for p in job.model.parameters()]).all()):  # one wait for a GPU
        return f"the weights after iteration {job.state.iteration} are not finite"
    return ""


def diverged(job: Job, message: str, say) -> dict:
    """End the run as diverged; it is not trained again."""
    job.seconds()
    say(f"{job.recipe.run_name}: {message}; marked as diverged (lower lr or a warm-up helps)")
    return _end(job, {"status": "diverged", "message": message})


def finish(job: Job) -> dict:
    """Exact batch-norm statistics, weights, summary."""
    recipe, rows = job.recipe, job.rows
    # An eighth of the images seen, at most the whole training set, keeps this below a few percent of the run.
    images = min(len(job.batches), max(recipe.batch_size, recipe.iterations * recipe.batch_size // 8))
    exact = None
    if not job.group.rank:
        exact = exact_bn_error(job.model, job.batches, job.device, job.state.precision, images)
        job.state.unreadable |= getattr(job.batches, "skipped", {}) | job.source.skipped
        write_weights(job.run.weights_file, job.model)
    selected = min(rows, key=lambda r: r["val_error"]) if job.batches.has("val") else None
    best = min(rows, key=lambda r: r["test_error"])
    results = {
        "status": "finished",
        "best_test_error": best["test_error"],
        "best_iteration": best["iteration"],
        "selected_test_error": selected and selected["test_error"],
        "selected_iteration": selected and selected["iteration"],
        "exact_bn_test_error": exact,
        "weights_sha256": None if job.group.rank else sha256(job.run.weights_file),
        "message": _suspicion(job),
    }
    return _end(job, results)


def _suspicion(job: Job) -> str:
    """A net that never left chance level is finished but says so, unless it has not even seen every image once."""
    last, chance = job.rows[-1], 1 - 1 / len(job.source.classes)
    if job.recipe.iterations * job.recipe.batch_size < len(job.batches):
        return ""
    dead = min(last["test_error"], last["train_error"]) > chance - 0.01
    return "dead: training and test error are at chance level to the end" if dead else ""


def _end(job: Job, results: dict) -> dict:
    job.sessions[-1] |= {"to_iteration": job.state.iteration, "step": job.step.way, "ended": now()}
    summary = _summary(job) | results
    if job.group.rank:
        return summary
    job.run.write_metrics(job.rows)
    return job.run.finish(summary)


def _summary(job: Job) -> dict:
    recipe, state, last = job.recipe, job.state, job.rows[-1] if job.rows else {}
    return {
        "recipe_hash": recipe.digest,
        "preset": job.preset,
        "test_error": last.get("test_error"),
        "train_error": last.get("train_error"),
        "train_loss": last.get("train_loss"),
        **job.costs,
        "iterations": recipe.iterations,
        "warmup_ended_at": state.warmup_ended_at,
        "lr_drops_at": drop_iterations(recipe) if recipe.schedule == "steps" else None,
        "seconds": state.seconds,
        "images_per_second": state.iteration * recipe.batch_size / max(state.seconds, 1e-9),
        "precision": state.precision,
        **environment(job.device),
        "network_source": state.network_source or None,
        "data_fingerprint": job.source.fingerprint,
        "data_origin": job.source.origin,
        "synthetic": job.source.synthetic,
        "classes": len(job.source.classes),
        "train_images": len(job.batches),
        "test_images": len(job.batches.sets["test"]),
        "unreadable_images": len(state.unreadable),
        "unreadable": sorted(state.unreadable)[:UNREADABLE_KEPT],
        "started": job.sessions[0]["started"],
        "finished": now(),
        "sessions": job.sessions,
    }


class Board:
    """The rows of a run as TensorBoard scalars, in the run's folder: all there are, whenever logging begins."""

    def __init__(self, job: Job):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(NO_TENSORBOARD) from error
        # Each session writes a file of its own. What an earlier one wrote is hidden (purged) and written again from the
        # rows: it may have missed some, or have got further than the checkpoint from which this one goes on.
        self.writer = SummaryWriter(os.fspath(job.run.path / "tensorboard"), purge_step=0)
        for row in job.rows:
            self.add(row)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.writer.close()

    def add(self, row: dict) -> None:
        """Write the numbers of an evaluation."""
        for key, value in row.items():
            if isinstance(value, float):
                self.writer.add_scalar(key, value, row["iteration"])
        self.writer.flush()
