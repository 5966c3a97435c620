"""The training loop: evaluate, save, step, log. One recipe in, one record out.

Command: `reslib train resnet20`. Time: 64k iterations of ResNet-20 take about 2.5 hours on two fast CPU cores.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import data, distributed
from .complexity import multiply_adds, weighted_layers
from .data.memory import mixed_seed
from .engine import make_optimizer, make_step, set_learning_rate
from .errors import UserError
from .files import sha256, whole_file
from .measure import error_and_loss, exact_bn_error
from .models import build_model
from .numerics import resolve_device, resolve_precision
from .provenance import environment, now
from .recipe import Recipe, parse_options
from .runs import Run, read_json, read_weights, write_weights
from .schedule import drop_iterations, learning_rate


class Interrupted(Exception):
    """Training stopped early with a checkpoint on disk; the same command continues it."""


@dataclass(frozen=True)
class Execution:
    """How a recipe is run; nothing here changes its result (on one machine)."""

    device: str = "auto"
    deterministic: bool = False
    time_limit: float | None = None  # seconds for this call, then a checkpoint and Interrupted
    checkpoint_seconds: float = 60.0  # at most this much work is lost
    activation_checkpointing: bool = False
    wait: bool = True  # for another process that trains the same run
    tensorboard: bool = False


@dataclass
class State:
    """All that a resumed run needs beside weights and momenta; data order and crops follow from the iteration."""

    iteration: int = 0
    warming_up: bool = False
    warmup_ended_at: int | None = None
    lr: float = 0.0
    precision: str = ""
    fingerprint: str = ""
    seconds: float = 0.0


def train(
    recipe: Recipe, runs_dir: Path, data_root=None, preset: str = "", execution=Execution(), say=print, on_row=None
):
    """Train `recipe` unless its run has ended, continuing where it stopped; returns the summary.

    on_row(row) is called after each evaluation with its metrics. Raises Interrupted after SIGTERM, Ctrl-C or the time
    limit (a checkpoint was written) and UserError for bad input.
    """
    run = Run(runs_dir, recipe)
    if run.ended:
        return run.summary()
    with distributed.group() as group:
        if group.rank:
            return _train(run, data_root, preset, execution, lambda text: None, None, group)
        with run.lock(wait=execution.wait, say=say):
            if run.ended:
                return run.summary()
            run.begin()
            return _train(run, data_root, preset, execution, say, on_row, group)


def _train(run: Run, data_root, preset, execution, say, on_row, group):
    recipe = run.recipe
    distributed.check_divisible(recipe, group.world)
    device = group.device(resolve_device(execution.device))
    torch.use_deterministic_algorithms(execution.deterministic)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not execution.deterministic
    source = data.load(recipe.dataset, data_root)
    batches = data.batches_for(recipe, source, device)
    model = make_model(recipe, len(source.classes), run.path.parent)
    costs = {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "multiply_adds": multiply_adds(model, recipe.crop_size),
        "layers": weighted_layers(model),
    }
    model.to(device, memory_format=torch.channels_last).train()
    if execution.activation_checkpointing:
        if not hasattr(model, "activation_checkpointing"):
            raise UserError(
                f"activation checkpointing is not known to {recipe.model}: it is for plain and residual nets"
            )
        model.activation_checkpointing = True
    optimizer = make_optimizer(recipe, model, device)

    state, rows, window, sessions = State(warming_up=recipe.warmup_lr > 0), [], Window(recipe, device), []
    saved = _read_checkpoint(run, device)
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state, rows, sessions = State(**saved["state"]), saved["rows"], saved["sessions"]
        window.load(saved["window"], group.rank)
        if state.fingerprint != source.fingerprint:
            raise UserError(
                f"run {recipe.run_name} was begun on data {state.fingerprint}, but the data here is {source.fingerprint}"
            )
    else:
        state.precision = resolve_precision(recipe.precision, device)
        state.lr = recipe.warmup_lr if state.warming_up else recipe.lr
        state.fingerprint = source.fingerprint
        set_learning_rate(optimizer, state.lr, state.lr)
    sessions.append(
        {"from_iteration": state.iteration, "started": now(), **environment(device), "processes": group.world}
    )
    if len({s["commit"] for s in sessions}) > 1:
        say(f"note: {recipe.run_name} continues on another commit than it was begun on; both are recorded")

    model_in_step = group.wrap(model, device)
    step = make_step(recipe, model_in_step, optimizer, device, state.precision, group.rank, group.world)
    stop = StopSignal(execution.time_limit)
    begun, seconds_before, saved_at = time.perf_counter(), state.seconds, time.perf_counter()
    writer = _tensorboard(run) if execution.tensorboard and not group.rank else None
    last_row = (rows[-1]["iteration"], rows[-1]["seconds"]) if rows else (state.iteration, state.seconds)
    stream = batches.stream(state.iteration, recipe.iterations, group.rank, group.world)

    def save():
        window_states = group.gather(window.state())
        group.average(step.averages)
        if not group.rank:
            _write_checkpoint(run, model, optimizer, state, rows, window_states, sessions)

    with stop:
        while True:
            state.seconds = seconds_before + time.perf_counter() - begun
            due = state.iteration % recipe.eval_every == 0 or state.iteration == recipe.iterations
            if due and state.iteration > (rows[-1]["iteration"] if rows else 0):
                group.average(step.averages)
                problem = window.non_finite(state.iteration, group)
                if problem is not None:
                    return _diverged(run, preset, state, rows, source, batches, costs, sessions, problem, device, say)
                row = _evaluate(recipe, model, batches, state, window, device, group, last_row, begun, seconds_before)
                rows.append(row)
                last_row = (row["iteration"], row["seconds"])
                save()
                saved_at = time.perf_counter()
                if not group.rank:
                    run.write_metrics(rows)
                    say(describe(recipe, row))
                    if writer:
                        _log(writer, row)
                    if on_row:
                        on_row(row)
            if state.iteration == recipe.iterations:
                break
            reason = group.any(stop.reason)
            if reason or group.any(time.perf_counter() - saved_at > execution.checkpoint_seconds):
                save()
                saved_at = time.perf_counter()
                if reason:
                    raise Interrupted(
                        f"{recipe.run_name}: {stop.reason or 'stopped'}; checkpoint at iteration {state.iteration} of "
                        f"{recipe.iterations}; the same command continues"
                    )
            x, y = next(stream)
            lr = learning_rate(recipe, state.iteration, state.warming_up, [r["val_or_test"] for r in rows])
            set_learning_rate(optimizer, lr, state.lr)
            state.lr = lr
            try:
                loss, wrong = step(x, y, state.iteration)
            except RuntimeError as error:
                raise _out_of_memory(error, recipe) from error
            window.add(loss, wrong)
            state.iteration += 1
            if state.warming_up and state.iteration % recipe.warmup_window == 0:
                if window.warmup_error(group) < recipe.warmup_error:  # a latch: once over it never returns
                    state.warming_up, state.warmup_ended_at = False, state.iteration

    return _finish(run, preset, model, state, rows, source, batches, costs, sessions, device, group)


def make_model(recipe: Recipe, classes: int, runs_dir: Path) -> nn.Module:
    """The recipe's network with the initial weights of its seed."""
    options = parse_options(recipe.options)
    if recipe.teacher:
        options["teacher"] = load_network(runs_dir / recipe.teacher)[0]
    torch.manual_seed(mixed_seed("initial weights", recipe.seed))
    paper_choice = recipe.shortcut if recipe.model.startswith(("plain", "resnet")) else None
    return build_model(recipe.model, classes, paper_choice, **options)


def load_network(path: Path) -> tuple[nn.Module, Recipe]:
    """The trained network of a finished run, in evaluation mode, with its recipe."""
    if not (path / "weights.safetensors").exists():
        raise UserError(f"{path}: no weights.safetensors: the run is not finished here (weights are not kept in git)")
    recipe = Recipe.from_dict(read_json(path / "recipe.json"))
    classes = read_json(path / "summary.json").get("classes", 10)
    model = make_model(recipe, classes, path.parent)
    model.load_state_dict(read_weights(path / "weights.safetensors"))
    return model.eval(), recipe


class Window:
    """Loss and errors of the steps since the last evaluation, kept on the device until they are asked for."""

    def __init__(self, recipe: Recipe, device):
        self.recipe = recipe
        self.losses = torch.zeros(recipe.eval_every, device=device)
        self.wrong = torch.zeros((), dtype=torch.long, device=device)
        self.wrong_warmup = torch.zeros((), dtype=torch.long, device=device)
        self.filled = 0

    def add(self, loss, wrong):
        self.losses[self.filled] = loss
        self.wrong += wrong
        self.wrong_warmup += wrong
        self.filled += 1

    def close(self, group) -> tuple[float, float]:
        """Mean loss and error rate of the window (running, on augmented images), which starts anew."""
        totals = torch.stack([self.losses[: self.filled].double().sum() / group.world, self.wrong.double()])
        group.sum(totals)
        loss, wrong = totals.tolist()
        steps, self.filled = self.filled, 0
        self.wrong.zero_()
        return loss / steps, wrong / (steps * self.recipe.batch_size)

    def non_finite(self, iteration: int, group) -> int | None:
        """The iteration of the first loss since the last evaluation that is not a finite number."""
        bad = (~torch.isfinite(self.losses[: self.filled])).nonzero()
        first = int(bad[0]) if len(bad) else self.filled
        first = -int(group.maximum(-first))
        return iteration - self.filled + first + 1 if first < self.filled else None

    def warmup_error(self, group) -> float:
        wrong = self.wrong_warmup.double().clone().view(1)
        group.sum(wrong)
        self.wrong_warmup.zero_()
        return wrong.item() / (self.recipe.warmup_window * self.recipe.batch_size)

    def state(self) -> dict:
        return {"losses": self.losses[: self.filled].cpu(), "wrong": int(self.wrong), "warm": int(self.wrong_warmup)}

    def load(self, states: list[dict], rank: int):
        state = states[rank] if len(states) > rank else states[0]
        self.filled = len(state["losses"])
        self.losses[: self.filled] = state["losses"]
        self.wrong.fill_(state["wrong"])
        self.wrong_warmup.fill_(state["warm"])


class StopSignal:
    """Notices SIGTERM, Ctrl-C and the end of the time limit; `reason` says which, in words."""

    def __init__(self, time_limit: float | None):
        self.end = None if time_limit is None else time.perf_counter() + time_limit
        self.limit, self.signal, self.before = time_limit, "", {}

    @property
    def reason(self) -> str:
        if not self.signal and self.end is not None and time.perf_counter() >= self.end:
            return f"time limit of {self.limit:g} s reached"
        return self.signal

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._notice)
        return self

    def _notice(self, number, frame):
        if self.signal:  # asked twice: stop at once
            raise KeyboardInterrupt
        self.signal = f"{signal.Signals(number).name} received"

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _evaluate(recipe, model, batches, state, window, device, group, last_row, begun, seconds_before) -> dict:
    trained_seconds = seconds_before + time.perf_counter() - begun - last_row[1]
    trained_images = (state.iteration - last_row[0]) * recipe.batch_size
    train_loss, train_error = window.close(group)

    def measured(part):
        shards = batches.eval_batches(part, rank=group.rank, world=group.world)
        return error_and_loss(model, shards, device, state.precision, group.sum)

    test_error, test_loss = measured("test")
    val_error = measured("val")[0] if batches.has("val") else None
    state.seconds = seconds_before + time.perf_counter() - begun
    return {
        "iteration": state.iteration,
        "epoch": state.iteration * recipe.batch_size / len(batches),
        "lr": state.lr,
        "train_loss": train_loss,
        "train_error": train_error,
        "test_loss": test_loss,
        "test_error": test_error,
        "val_error": val_error,
        "seconds": state.seconds,
        "images_per_second": trained_images / max(trained_seconds, 1e-9),
        "val_or_test": test_error if val_error is None else val_error,
    }


def describe(recipe: Recipe, row: dict) -> str:
    """One console line per evaluation, with the time left."""
    left = (recipe.iterations - row["iteration"]) * row["seconds"] / max(row["iteration"], 1)
    return (
        f"{recipe.model} seed {recipe.seed}  {row['iteration']:>6}/{recipe.iterations}  lr {row['lr']:<6g}  "
        f"train loss {row['train_loss']:.3f} error {100 * row['train_error']:5.2f}%  "
        f"test error {100 * row['test_error']:5.2f}%  {row['images_per_second']:.0f} images/s  "
        f"{math.ceil(left / 60)} min left"
    )


def _finish(run, preset, model, state, rows, source, batches, costs, sessions, device, group):
    recipe = run.recipe
    # An eighth of the images seen, at most the whole training set, keeps this below a few percent of the run.
    images = min(len(batches), max(recipe.batch_size, recipe.iterations * recipe.batch_size // 8))
    exact = None
    if not group.rank:
        with contextlib.suppress(StopIteration):
            exact = exact_bn_error(model, batches, device, state.precision, images)
        write_weights(run.weights_file, model)
    selected = min(rows, key=lambda r: r["val_error"]) if batches.has("val") else None
    best = min(rows, key=lambda r: r["test_error"])
    sessions[-1]["ended"] = now()
    summary = _summary(run, preset, state, rows, source, batches, costs, sessions, device) | {
        "status": "finished",
        "best_test_error": best["test_error"],
        "best_iteration": best["iteration"],
        "selected_test_error": selected and selected["test_error"],
        "selected_iteration": selected and selected["iteration"],
        "exact_bn_test_error": exact,
        "weights_sha256": None if group.rank else sha256(run.weights_file),
        "message": _suspicion(rows, source),
    }
    if not group.rank:
        run.finish(summary)
    return summary


def _suspicion(rows, source) -> str:
    """A net that never left chance level is finished but says so."""
    chance = 1 - 1 / len(source.classes)
    return "dead: test error at chance level to the end" if rows[-1]["test_error"] > chance - 0.01 else ""


def _diverged(run, preset, state, rows, source, batches, costs, sessions, iteration, device, say):
    message = f"the loss of iteration {iteration} is not finite"
    say(f"{run.recipe.run_name}: {message}; marked as diverged (lower lr or a warm-up helps)")
    sessions[-1]["ended"] = now()
    run.write_metrics(rows)
    summary = _summary(run, preset, state, rows, source, batches, costs, sessions, device)
    summary |= {"status": "diverged", "message": message}
    run.finish(summary)
    return summary


def _summary(run, preset, state, rows, source, batches, costs, sessions, device) -> dict:
    last = rows[-1] if rows else {}
    return {
        "recipe_hash": run.recipe.digest,
        "preset": preset,
        "test_error": last.get("test_error"),
        "train_error": last.get("train_error"),
        "train_loss": last.get("train_loss"),
        **costs,
        "iterations": run.recipe.iterations,
        "warmup_ended_at": state.warmup_ended_at,
        "lr_drops_at": drop_iterations(run.recipe) if run.recipe.schedule == "steps" else None,
        "seconds": state.seconds,
        "images_per_second": state.iteration * run.recipe.batch_size / max(state.seconds, 1e-9),
        "precision": state.precision,
        **environment(device),
        "data_fingerprint": source.fingerprint,
        "data_origin": source.origin,
        "synthetic": source.synthetic,
        "classes": len(source.classes),
        "train_images": len(batches),
        "test_images": len(batches.sets["test"]),
        "started": sessions[0]["started"],
        "finished": now(),
        "sessions": sessions,
    }


def _write_checkpoint(run, model, optimizer, state, rows, window_states, sessions):
    with whole_file(run.checkpoint_file, "wb") as file:
        torch.save(
            {
                "recipe": run.recipe.digest,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "state": vars(state),
                "rows": rows,
                "window": window_states,
                "sessions": sessions,
            },
            file,
        )


def _read_checkpoint(run: Run, device) -> dict | None:
    """The checkpoint, read without executing anything in it; UserError when it is damaged or another recipe's."""
    if not run.checkpoint_file.exists():
        return None
    try:
        saved = torch.load(run.checkpoint_file, map_location=device, weights_only=True)
        digest = saved["recipe"]
    except Exception as error:  # torch raises many kinds on damaged files
        raise UserError(
            f"{run.checkpoint_file} is not a usable checkpoint ({error}): remove it to start over"
        ) from error
    if digest != run.recipe.digest:
        raise UserError(f"{run.checkpoint_file} belongs to recipe {digest}, not {run.recipe.digest}")
    return saved


def _out_of_memory(error: RuntimeError, recipe: Recipe) -> Exception:
    if isinstance(error, torch.OutOfMemoryError) or "alloc" in str(error).lower():
        return UserError(
            f"out of memory with batch_size {recipe.batch_size}, accumulation {recipe.accumulation}: raise accumulation "
            f"(say {2 * recipe.accumulation}) or use --activation-checkpointing ({str(error).splitlines()[0]})"
        )
    return error


def _tensorboard(run: Run):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError('tensorboard is not installed: pip install "reslib[tensorboard]"') from error
    return SummaryWriter(os.fspath(run.path / "tensorboard"))


def _log(writer, row: dict) -> None:
    for key, value in row.items():
        if isinstance(value, float):
            writer.add_scalar(key, value, row["iteration"])
    writer.flush()
