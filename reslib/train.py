"""The training loop: evaluate, save, step, log. One recipe in, one record out.

Command: `reslib train resnet20`. Time: 64k iterations of ResNet-20 take about 2.5 hours on two fast CPU cores.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch

from . import distributed
from .checkpoint import save
from .engine import set_learning_rate
from .errors import UserError
from .job import PLAIN, Execution, Job, prepare
from .outcome import Board, describe, diverged, divergence, evaluate, finish
from .recipe import Recipe
from .runs import Run
from .schedule import learning_rate
from .stopping import Interrupted, StopSignal

__all__ = ["Execution", "Interrupted", "train"]


def train(
    recipe: Recipe, runs_dir: Path, data_root=None, preset: str = "", execution=PLAIN, say=print, on_row=None
) -> dict:
    """Train `recipe` unless its run has ended, continuing where it stopped; returns the summary.

    on_row(row) is called after each evaluation with its metrics. Raises Interrupted after SIGTERM, Ctrl-C or the time
    limit (a checkpoint was written) and UserError for bad input.
    """
    run, group = Run(runs_dir, recipe), distributed.group()
    if group.rank:  # the first process writes and speaks for all
        say, on_row = _silent, _silent
    if group.any(run.ended):
        return run.summary()
    with contextlib.nullcontext() if group.rank else run.lock(execution.wait, say):
        if group.any(not group.rank and run.ended):  # while this one waited
            return run.summary()
        if not group.rank:
            run.begin()
        try:
            job = prepare(run, data_root, preset, execution, group)
            return _loop(job, execution, say, on_row or _silent)
        except (RuntimeError, MemoryError) as error:
            if advice := memory_advice(error, recipe):
                raise UserError(advice) from error
            raise


def _loop(job: Job, execution: Execution, say, on_row) -> dict:
    run, recipe, group, state, rows, window = job.run, job.recipe, job.group, job.state, job.rows, job.window
    first = not group.rank
    board = Board(job) if execution.tensorboard and first else None
    if rows and first:
        run.write_metrics(rows)  # a kill may have come between checkpoint and metrics
    if len({s["source"] for s in job.sessions}) > 1:
        say(f"note: {recipe.run_name} continues with other code than it was begun with; both are recorded")
    stream = job.batches.stream(state.iteration, recipe.iterations, group.rank, group.world)
    saved_at = time.perf_counter()
    with StopSignal(execution.time_limit) as stop:
        while True:
            # Evaluate
            due = state.iteration % recipe.eval_every == 0 or state.iteration == recipe.iterations
            if due and state.iteration > (rows[-1]["iteration"] if rows else 0):
                group.average(job.step.averages)
                if problem := divergence(job):
                    return diverged(job, problem, say)
                row = evaluate(job)
                save(job)
                saved_at = time.perf_counter()
                if first:
                    run.write_metrics(rows)
                say(describe(recipe, row))
                on_row(row)
                if board:
                    board.add(row)
            if state.iteration == recipe.iterations:
                break

            # Save
            asked = 2 if stop.reason else int(time.perf_counter() - saved_at > execution.checkpoint_seconds)
            asked = group.maximum(asked)  # the processes of a group decide together
            if asked:
                save(job)
                saved_at = time.perf_counter()
            if asked == 2:
                raise Interrupted(
                    f"{recipe.run_name}: {stop.reason or 'another process stopped'}; checkpoint at iteration "
                    f"{state.iteration} of {recipe.iterations}; the same command continues"
                )

            # Step
            x, y = next(stream)
            lr = learning_rate(recipe, state.iteration, state.warming_up, [r["val_or_test"] for r in rows])
            set_learning_rate(job.optimizer, lr, state.lr)
            state.lr = lr
            window.add(*job.step(x, y, state.iteration))
            state.iteration += 1
            if state.warming_up and state.iteration % recipe.warmup_window == 0:
                if window.warmup_error(group) < recipe.warmup_error:  # a latch: once over it never returns
                    state.warming_up, state.warmup_ended_at = False, state.iteration
    return finish(job)


def _silent(value) -> None:
    pass


def memory_advice(error: Exception, recipe: Recipe) -> str:
    """What to do about an error that says that memory ran out; "" for any other."""
    text = str(error)
    signs = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not any(sign in text for sign in signs):
        return ""
    reason = text.splitlines()[0] if text else type(error).__name__
    return (
        f"out of memory with batch_size {recipe.batch_size}, accumulation {recipe.accumulation}: raise accumulation "
        f"(say {2 * recipe.accumulation}) or use --activation-checkpointing ({reason})"
    )
