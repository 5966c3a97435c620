"""Several seeds of one network at once: what N of them cost, in units of one, by each way of sharing a device.

one in turn   one run after the other: N by definition, the measure of the others
processes     a process per seed (`--executor local --workers N`); on a processor as many at once as it has cores
together      one process, a step of each in turn, on a GPU each on a stream of its own (`--executor together`)
stacked       one network with stacked parameters: torch.func.vmap turns every convolution into a grouped one
"""

from __future__ import annotations

import copy
import math
import multiprocessing
import statistics
import time
from pathlib import Path
from queue import Empty

import torch
import torch.nn.functional as F

from .. import data
from ..machine import cores
from ..networks import make_model
from ..numerics import autocast, resolve_precision, use
from ..together import on_stream
from .clock import synchronize
from .contenders import Reslib, recipe_for

PATIENCE = 600.0  # seconds for a process to set up and take its turns


def seeds_at_once(
    model, count, source, device, rounds, seconds, root=None, batch: int = 128, say=print, end=math.inf
) -> dict:
    """Images/s of all seeds together by each way, medians of alternating turns, and the cost of N seeds in runs.

    A way that fails is named with the reason. end: no turn begins after it (time.monotonic), but for the first.
    """
    from . import reason

    recipes = [recipe_for(model, batch, source).replace(seed=s) for s in range(count)]
    way = "fast" if device.type == "cuda" else "eager"
    alone = Reslib(way, recipes[0], source, device)
    ways = {"one in turn": alone.run}
    failed = {}
    for name, make in (
        ("together", lambda: Together(way, recipes, source, device)),
        ("stacked", lambda: Stacked(recipes, source, device)),  # vmap may lack a rule for what a network does
    ):
        try:
            ways[name] = make().run
        except Exception as error:
            failed[name] = reason(error)
    steps = max(2, round(seconds / max(alone.run(2) / 2, 1e-6)))
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        if turn and time.monotonic() >= end:
            break
        for name in ways if turn % 2 == 0 else reversed(ways):
            each = steps if name == "one in turn" else max(2, steps // count)
            seeds = 1 if name == "one in turn" else count
            rates[name].append(seeds * each * batch / ways[name](each))
        say(f"  turn {turn + 1}: " + ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items()))
    precision = alone.precision
    ways.clear()
    del alone
    at_once = count if device.type == "cuda" else min(count, cores())
    try:
        rates["processes"] = processes(way, recipes[:at_once], device, root, steps, len(rates["one in turn"]))
    except Exception as error:
        failed["processes"] = reason(error)
    one = statistics.median(rates["one in turn"])
    medians = {name: statistics.median(values) for name, values in rates.items() if values}
    for name, value in medians.items():
        say(f"  {name}: {value:.0f} images/s in all, {count} seeds cost {count * one / value:.2f} runs")
    return {
        "model": model,
        "batch_size": batch,
        "seeds": count,
        "processes_at_once": at_once,
        "precision": precision,
        "images_per_second": medians,
        "images_per_second_turns": rates,
        "cost_in_runs": {name: count * one / value for name, value in medians.items()},
        "failed": failed,
    }


class Together:
    """A step of every seed in turn, on a GPU each on its own stream, as reslib/together.py trains them."""

    def __init__(self, way, recipes, source, device):
        self.device, self.made = device, []
        for recipe in recipes:
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None
            with on_stream(stream):
                self.made.append((Reslib(way, recipe, source, device, say=_silent), stream))

    def run(self, steps: int) -> float:
        """Seconds for `steps` steps of every seed."""
        synchronize(self.device)
        begun = time.perf_counter()
        with self.made[0][0].settings():
            for _ in range(steps):
                for member, stream in self.made:
                    with on_stream(stream):
                        member.one_step()
        synchronize(self.device)
        return time.perf_counter() - begun


class Stacked:
    """All seeds as one network whose parameters have a leading axis of seeds; `step()` trains each on its own batch."""

    def __init__(self, recipes, source, device):
        self.device, self.recipe, self.iteration = device, recipes[0], 0
        self.precision = resolve_precision("auto", device)
        models = [make_model(r, len(source.classes), Path()).to(device).train() for r in recipes]
        self.parameters, self.buffers = torch.func.stack_module_state(models)
        self.batches = [data.batches_for(r, source, device) for r in recipes]
        base = copy.deepcopy(models[0]).to("meta")

        def loss(parameters, buffers, x, y):
            logits = torch.func.functional_call(base, (parameters, buffers), (x,))
            return F.cross_entropy(logits.float(), y)

        self.losses = torch.func.vmap(loss)
        self.optimizer = torch.optim.SGD(
            list(self.parameters.values()), recipes[0].lr, recipes[0].momentum, weight_decay=recipes[0].weight_decay
        )
        self.step()

    def step(self) -> torch.Tensor:
        """Train every seed on its batch; the losses (seeds,)."""
        batches = [b.batch(self.iteration) for b in self.batches]
        x, y = torch.stack([x for x, _ in batches]), torch.stack([y for _, y in batches])
        with autocast(self.device, self.precision):
            losses = self.losses(self.parameters, self.buffers, x, y)
        losses.sum().backward()  # no seed's loss depends on another's parameters
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.iteration += 1
        return losses.detach()

    def run(self, steps: int) -> float:
        """Seconds for `steps` steps of every seed."""
        synchronize(self.device)
        begun = time.perf_counter()
        for _ in range(steps):
            self.step()
        synchronize(self.device)
        return time.perf_counter() - begun


def processes(way, recipes, device, root, steps: int, rounds: int) -> list[float]:
    """Images/s in all of one process per recipe, that start each turn together. RuntimeError when one of them dies."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(len(recipes)), context.Queue()
    threads = max(1, cores() // len(recipes)) if device.type == "cpu" else None
    arguments = (way, str(device), root, steps, rounds, threads, barrier, answers)
    workers = [context.Process(target=_process, args=(r, *arguments), daemon=True) for r in recipes]
    for worker in workers:
        worker.start()
    try:
        taken = _answers(workers, answers)
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    slowest = [max(times) for times in zip(*taken, strict=True)]
    return [len(recipes) * steps * recipes[0].batch_size / seconds for seconds in slowest]


def _answers(workers, answers) -> list[list[float]]:
    """What each of the processes sends; RuntimeError as soon as one of them ends without it, or after PATIENCE."""
    taken, end = [], time.monotonic() + PATIENCE
    while len(taken) < len(workers):
        try:
            times = answers.get(timeout=0.2)
        except Empty:
            if dead := [w.exitcode for w in workers if w.exitcode]:
                raise RuntimeError(f"a process ended with exit code {dead[0]}") from None
            if time.monotonic() > end:
                raise RuntimeError(f"a process was not ready after {PATIENCE:.0f} s") from None
            continue
        if isinstance(times, str):
            raise RuntimeError(times)
        taken.append(times)
    return taken


def _process(recipe, way, device, root, steps, rounds, threads, barrier, answers):
    from . import reason

    device = torch.device(device)
    use(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # as in the process that measures the other ways
    try:
        source = data.load(recipe.dataset, root)
        made = Reslib(way, recipe, source, device, threads=threads, say=_silent)
        made.run(2)
        times = []
        for _ in range(rounds):
            barrier.wait(PATIENCE)
            times.append(made.run(steps))
        answers.put(times)
    except Exception as error:
        answers.put(reason(error))


def _silent(text) -> None:
    pass
