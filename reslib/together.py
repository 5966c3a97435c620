"""Several runs at once in one process: a step of each in turn, on a CUDA GPU each on a stream of its own.

A thin net fills a small part of a large GPU, and one of its kernels ends before the next has spread. The captured steps
of several seeds on several streams overlap. Every run goes through the loop of train.py with its own network, data
order, checkpoints and record, so that its numbers are those it has alone. On a processor nothing overlaps: there
`--executor local` uses the cores better.

Command: `reslib reproduce --executor together --workers 5 --seeds 5`. What it gains: `reslib bench --seeds-at-once 5`.
"""

from __future__ import annotations

import collections
import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch

from . import distributed
from .errors import UserError
from .job import PLAIN, Execution, Job, prepare
from .numerics import resolve_device
from .outcome import finish
from .recipe import Recipe
from .runs import Run
from .stopping import Interrupted, StopSignal
from .train import ended, memory_advice, steps

AT_ONCE = 5  # runs, where the caller does not say


class Pace:
    """How far a run's steps are ahead of the GPU: one that has enough to do waits while others are given work.

    The queue of a GPU is short for steps of thousands of kernels. Where one run filled it, the process would wait in
    the middle of giving it more, and the streams of all others would run dry.
    """

    ahead = 2  # steps given to the GPU that it need not have done yet

    def __init__(self, device):
        self.device, self.events = device, collections.deque() if device.type == "cuda" else None

    @property
    def ready(self) -> bool:
        """Whether the next step may be given."""
        while self.events and self.events[0].query():
            self.events.popleft()
        return not self.events or len(self.events) < self.ahead

    def note(self) -> None:
        """A step has been given, on the current stream."""
        if self.events is not None:
            self.events.append(torch.cuda.current_stream(self.device).record_event())

    def wait(self) -> None:
        """Until the oldest step is done."""
        if self.events:
            self.events.popleft().synchronize()


def turn(paces: list[Pace]) -> list[int]:
    """The numbers of those that may be given a step, after waiting for the first where none of them may."""
    if not (ready := [number for number, pace in enumerate(paces) if pace.ready]):
        paces[0].wait()
        return [0]
    return ready


@dataclass
class Member:
    """One of several runs that share a device."""

    job: Job
    loop: object  # the generator of train.steps
    stream: object  # torch.cuda.Stream, or None for the device's usual order
    pace: Pace


def train_together(
    recipes: list[Recipe],
    runs_dir: Path,
    data_root=None,
    preset="",
    execution: Execution = PLAIN,
    say=print,
    failed=None,
) -> None:
    """Train runs side by side. failed(recipe, error) is told of one that fails; the others go on.

    Raises Interrupted, when every run has its checkpoint, after a signal or at the time limit.
    """
    device, threads = resolve_device(execution.device), torch.get_num_threads()

    def fail(recipe, error):
        if advice := memory_advice(error, recipe):
            error = UserError(advice)
        if failed is None:
            raise error
        failed(recipe, error)

    with contextlib.ExitStack() as locks, StopSignal(execution.time_limit, f"{len(recipes)} runs") as stop:
        members = []
        try:
            for run in _held([Run(runs_dir, recipe) for recipe in recipes], locks, execution, say, stop, fail):
                try:
                    if not ended(run, distributed.ALONE, say, execution.deterministic):
                        members.append(_member(run, data_root, preset, execution, device, stop, say))
                except Exception as error:
                    fail(run.recipe, error)
            for member in members:  # its seconds and images/s are those of a shared device
                member.job.sessions[-1]["runs_at_once"] = len(members)
            stopped = _in_turn(members, say, fail)
        finally:
            torch.set_num_threads(threads)
    if stopped is None and stop.signal:  # it came when the last run was at its end
        stopped = Interrupted(f"{stop.signal}; the same command continues")
    if stopped is not None:
        raise stopped


def _held(runs: list[Run], locks: contextlib.ExitStack, execution: Execution, say, stop, fail) -> list[Run]:
    """Those of the runs that could be locked, in their order; `locks` lets them go."""
    held = []
    for run in sorted(runs, key=lambda run: run.path):  # in one order everywhere: none waits for the other's
        try:
            locks.enter_context(run.lock(execution.patience, say, stop))
            held.append(run)
        except Interrupted:
            raise
        except Exception as error:
            fail(run.recipe, error)
    return [run for run in runs if run in held]


def _in_turn(members: list[Member], say, fail) -> Interrupted | None:
    """Give steps to whoever is ready until all have ended; why they stopped earlier, if they did."""
    stopped = None
    while members:
        try:
            ready = [members[number] for number in turn([member.pace for member in members])]
        except Exception as error:  # of the device, which none of them can use any more
            for member in members:
                fail(member.job.recipe, error)
            break
        for member in ready:
            try:
                if _advance(member, say):
                    continue
            except Interrupted as reason:
                stopped = reason
            except Exception as error:  # a full disk, say: its checkpoint stays, and the others go on
                fail(member.job.recipe, error)
            members.remove(member)
    return stopped


def _advance(member: Member, say) -> bool:
    """Give one step to a run, or end it; whether it has more to do."""
    with on_stream(member.stream):
        try:
            next(member.loop)
            member.pace.note()
            return True
        except StopIteration as end:
            summary = end.value or finish(member.job)
    say(f"{member.job.recipe.run_name}: {summary['status']}")
    return False


def _member(run, data_root, preset, execution, device, stop, say) -> Member:
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if run.recipe_file.exists():
        run.check_recipe()
    with on_stream(stream):
        job = prepare(run, data_root, preset, execution, distributed.ALONE, say)
    run.begin()  # only now: what cannot be trained leaves no record
    if getattr(job.model, "stochastic", False) and stream is not None:
        # The seeds of dropout lie in one place on the device for all graphs: in the usual order none is overwritten.
        stream.synchronize()
        stream = None
    return Member(job, steps(job, execution, stop, say, _silent), stream, Pace(device))


def on_stream(stream):
    """The block's work goes onto this stream."""
    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


def _silent(row) -> None:
    pass
