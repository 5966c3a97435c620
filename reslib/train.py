"""The training loop: evaluate, save, step, log. One recipe in, one record out.

Command: `reslib train resnet20`. Time: `reslib status --preset paper` estimates it, from the speeds on record.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch

from . import distributed
from .checkpoint import save
from .engine import set_learning_rate
from .errors import UserError, first_line
from .job import PLAIN, Execution, Job, prepare
from .machine import out_of_memory
from .measure import GivenUp
from .outcome import Board, NotFinite, changed_between, describe, diverged, divergence, evaluate, finish, unreadable
from .recipe import Recipe
from .runs import Run
from .schedule import learning_rate
from .stopping import Interrupted, StopSignal

__all__ = ["Execution", "Interrupted", "train"]

GROUP_PATIENCE = 60.0  # seconds for an earlier attempt of a torchrun job to end; longer, and many devices would idle


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
    if summary := ended(run, group, say, execution.deterministic):
        return summary
    threads = torch.get_num_threads()
    stop = StopSignal(execution.time_limit, "" if group.rank else recipe.run_name)  # the limit is of the whole call
    with contextlib.ExitStack() as held:
        _hold(run, held, execution, group, say, stop)
        if summary := ended(run, group, say, execution.deterministic):  # while this one waited
            return summary
        try:
            job = prepare(run, data_root, preset, execution, group, say)
            if not group.rank:
                run.begin()  # only now: what cannot be trained leaves no record
            with stop:
                diverged_early = to_the_end(steps(job, execution, stop, say, on_row or _silent))
            return diverged_early or finish(job)
        except (RuntimeError, MemoryError) as error:
            if advice := memory_advice(error, recipe):
                raise UserError(advice) from error
            raise
        finally:
            torch.set_num_threads(threads)  # the run's own number was for it alone


def _hold(run: Run, held: contextlib.ExitStack, execution: Execution, group, say, stop: StopSignal) -> None:
    """Lock the run, until `held` lets it go. What keeps the first process of a job from it is raised in all of them."""
    problem = None
    if not group.rank:
        patience = execution.patience if group.world == 1 else min(execution.patience, GROUP_PATIENCE)
        try:
            held.enter_context(run.lock(patience, say, stop))
            if not run.ended and run.recipe_file.exists():
                run.check_recipe()
        except (UserError, Interrupted) as error:
            problem = error
    if problem := group.broadcast(problem):
        raise problem


def steps(job: Job, execution: Execution, stop: StopSignal, say, on_row):
    """The loop, with TensorBoard logs where they are asked for. Its value is that of the loop."""
    if job.group.rank or not execution.tensorboard:
        return (yield from loop(job, execution, stop, say, on_row))
    with Board(job) as board:

        def also_logged(row):
            on_row(row)
            board.add(row)

        return (yield from loop(job, execution, stop, say, also_logged))


def loop(job: Job, execution: Execution, stop: StopSignal, say, on_row):
    """The loop, pausing after every step. Its value is the summary of a run that diverged, None at the end."""
    run, recipe, group, state, rows, window = job.run, job.recipe, job.group, job.state, job.rows, job.window
    first = not group.rank
    if rows and first:
        run.write_metrics(rows)  # a kill may have come between checkpoint and metrics
    if state.iteration:
        say(f"{recipe.run_name}: continues at iteration {state.iteration} of {recipe.iterations}")
    if changes := changed_between(job.sessions):
        say(f"note: {recipe.run_name} continues with {changes}; all of it is recorded")
    stream = job.batches.stream(state.iteration, recipe.iterations, group.rank, group.world)
    saved_at = time.perf_counter()
    while True:
        # Evaluate
        due = state.iteration % recipe.eval_every == 0 or state.iteration == recipe.iterations
        if due and state.iteration > (rows[-1]["iteration"] if rows else 0):
            group.average(job.step.averages)
            if problem := divergence(job):
                return diverged(job, problem, say)
            try:
                row, known = evaluate(job, stop), len(state.unreadable)
            except NotFinite as problem:
                return diverged(job, str(problem), say)
            except GivenUp:  # left to the next session, which begins with it
                raise _stopped(job, stop) from None
            save(job)
            if len(state.unreadable) > known:
                say(f"note: {recipe.run_name}: {unreadable(state.unreadable)}")
            saved_at = time.perf_counter()
            if first:
                run.write_metrics(rows)
            say(describe(recipe, row))
            on_row(row)
        if state.iteration == recipe.iterations:
            return None

        # Save
        asked = 2 if stop.reason else int(time.perf_counter() - saved_at > execution.checkpoint_seconds)
        asked = group.maximum(asked)  # the processes of a group decide together
        if asked == 2:
            raise _stopped(job, stop)
        if asked:
            save(job)
            saved_at = time.perf_counter()

        # Step
        x, y = next(stream)
        lr = learning_rate(recipe, state.iteration, state.warming_up, [r["val_or_test"] for r in rows])
        if lr != state.lr:
            set_learning_rate(job.optimizer, lr, state.lr)
            state.lr = lr
        window.add(*job.step(x, y, state.iteration))
        state.iteration += 1
        if state.warming_up and state.iteration % recipe.warmup_window == 0:
            if window.warmup_error(group) < recipe.warmup_error:  # a latch: once over it never returns
                state.warming_up, state.warmup_ended_at = False, state.iteration
        yield


def _stopped(job: Job, stop: StopSignal) -> Interrupted:
    """What to raise once the checkpoint of this iteration, written here, is on disk."""
    save(job)
    return Interrupted(
        f"{job.recipe.run_name}: {stop.reason or 'another process stopped'}; checkpoint at iteration "
        f"{job.state.iteration} of {job.recipe.iterations}; the same command continues"
    )


def ended(run: Run, group, say, deterministic: bool = False) -> dict | None:
    """The summary of a run that has ended, None otherwise: as the first process finds it, for all machines of a job."""
    summary = group.broadcast(run.summary() if not group.rank and run.ended else None)
    if summary:
        known = [s.get("deterministic") for s in summary.get("sessions") or [{}]]
        note = "" if not deterministic or all(known) else "; whether with --deterministic its record does not say"
        note = "; not all of it with --deterministic" if deterministic and False in known else note
        say(f"{run.recipe.run_name}: {summary['status']} already, nothing is trained{note}")
    return summary


def to_the_end(loop):
    """Run a generator to its end; its value."""
    while True:
        try:
            next(loop)
        except StopIteration as end:
            return end.value


def _silent(value) -> None:
    pass


def memory_advice(error: Exception, recipe: Recipe) -> str:
    """What to do about an error that says that memory ran out; "" for any other."""
    if not out_of_memory(error):
        return ""
    reason = first_line(error)
    more = [n for n in range(recipe.accumulation + 1, recipe.batch_size + 1) if recipe.batch_size % n == 0]
    advice = f"raise accumulation (say {more[0]})" if more else "lower batch_size"
    return (
        f"out of memory with batch_size {recipe.batch_size}, accumulation {recipe.accumulation}: {advice} or use "
        f"--activation-checkpointing ({reason})"
    )
