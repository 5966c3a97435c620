"""Several seeds of one network at once: what N of them cost, in units of one, by each way of sharing a device.

one in turn   one run after the other: N by definition, the measure of the others
processes     a process per seed (`--executor local --workers N`); on a processor as many at once as it has cores
together      one process, a step of each in turn, on a GPU each on a stream of its own (`--executor together`)
stacked       one network with stacked parameters: torch.func.vmap turns every convolution into a grouped one
"""

from __future__ import annotations

import contextlib
import copy
import math
import multiprocessing
import statistics
import time
from pathlib import Path
from queue import Empty

import torch
import torch.nn.functional as F
from torch import nn

from .. import data
from ..errors import reason
from ..machine import cores, multi_process_service
from ..networks import make_model
from ..numerics import autocast, resolve_precision, use
from ..together import Pace, on_stream, turn
from .clock import synchronize
from .contenders import Reslib, recipe_for

PATIENCE = 600.0  # seconds for a process to set up and take its turns


def seeds_at_once(
    model, count, source, device, rounds, seconds, root=None, batch: int = 128, say=print, end=math.inf
) -> dict:
    """Images/s of all seeds together by each way, medians of alternating turns, and the cost of N seeds in runs.

    The cost is taken turn by turn, so that a slow minute counts on both sides. A way that fails is named with the
    reason. end: no turn begins after it (time.monotonic), but for the first.
    """
    recipes = [recipe_for(model, batch, source).replace(seed=s) for s in range(count)]
    way = "fast" if device.type == "cuda" else "eager"
    alone = Reslib(way, recipes[0], source, device)
    ways, failed = {"one in turn": alone.run}, {}
    for name, make in (
        ("together", lambda: Together(way, recipes, source, device)),
        ("stacked", lambda: Stacked(recipes, source, device)),  # vmap may lack a rule for what a network does
    ):
        try:
            ways[name] = make().run
        except Exception as error:
            failed[name] = reason(error)
    steps = max(2, round(seconds / max(alone.run(2) / 2, 1e-6)))
    at_once = count if device.type == "cuda" else min(count, cores())
    each = {name: steps if name == "one in turn" else max(2, steps // count) for name in ways}
    of = {name: 1 if name == "one in turn" else count for name in ways}
    with contextlib.ExitStack() as stack:
        try:
            shared = stack.enter_context(Processes(way, recipes[:at_once], device, root))
            ways["processes"], each["processes"], of["processes"] = shared.run, steps, at_once
        except Exception as error:
            failed["processes"] = reason(error)
        images = {name: batch * of[name] * each[name] for name in ways}
        rates = _turns(ways, each, images, rounds, end, failed, say)
    precision = alone.precision
    ways.clear()
    del alone
    return {
        "model": model,
        "batch_size": batch,
        "seeds": count,
        "processes_at_once": at_once,
        "multi_process_service": multi_process_service() if device.type == "cuda" else None,
        "precision": precision,
        **_costs(rates, count, say),
        "failed": failed,
    }


def _turns(ways, steps, images, rounds: int, end: float, failed: dict, say) -> dict[str, list[float]]:
    """Images/s of every way, turn by turn, there and back; one whose process dies is moved to `failed`.

    steps: of a turn, of each seed; images: of a turn, of all seeds.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        if number and time.monotonic() >= end:
            break
        for name in list(ways) if number % 2 == 0 else list(reversed(ways)):
            try:
                rates[name].append(images[name] / ways[name](steps[name]))
            except RuntimeError as error:  # a process has died; what has no turns is no way
                if name != "processes":
                    raise
                failed[name] = reason(error)
                del ways[name], rates[name]
        said = ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items())
        say(f"  turn {number + 1}: {said}")
    return rates


def _costs(rates: dict[str, list[float]], count: int, say) -> dict:
    """The part of the record that the turns give: medians, and what all seeds cost in runs of one."""
    costs = {
        name: [count * one / rate for one, rate in zip(rates["one in turn"], values, strict=True)]
        for name, values in rates.items()
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in medians.items():
        say(f"  {name}: {value:.0f} images/s in all, {count} seeds cost {statistics.median(costs[name]):.2f} runs")
    return {
        "images_per_second": medians,
        "images_per_second_turns": rates,
        "cost_in_runs": {name: statistics.median(values) for name, values in costs.items()},
        "cost_in_runs_turns": costs,
    }


class Together:
    """A step of every seed in turn, on a GPU each on its own stream: reslib/together.py between two evaluations."""

    def __init__(self, way, recipes, source, device):
        self.device, self.made = device, []
        for recipe in recipes:
            stream = torch.cuda.Stream(device) if device.type == "cuda" else None
            with on_stream(stream):
                self.made.append((Reslib(way, recipe, source, device, say=_silent), stream))
        self.paces = [Pace(device) for _ in recipes]

    def run(self, steps: int) -> float:
        """Seconds for `steps` steps of every seed."""
        synchronize(self.device)
        begun = time.perf_counter()
        with self.made[0][0].settings():
            left = [steps] * len(self.made)
            while any(left):
                open_ones = [number for number, count in enumerate(left) if count]
                for chosen in turn([self.paces[number] for number in open_ones]):
                    number = open_ones[chosen]
                    member, stream = self.made[number]
                    with on_stream(stream):
                        member.one_step()
                        self.paces[number].note()
                    left[number] -= 1
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
        for module in base.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = FullNorm

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


class FullNorm(nn.BatchNorm2d):
    """Batch norm in fp32 of maps in bf16: under vmap its parts ask for maps and statistics of one type."""

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class Processes:
    """A process per recipe, set up and waiting; `run(steps)` lets all of them train at once."""

    def __init__(self, way, recipes, device, root):
        context = multiprocessing.get_context("spawn")
        self.orders, self.answers = [context.SimpleQueue() for _ in recipes], context.Queue()
        threads = max(1, cores() // len(recipes)) if device.type == "cpu" else None
        arguments = (way, str(device), root, threads, self.answers)
        self.workers = [
            context.Process(target=_process, args=(recipe, *arguments, orders), daemon=True)
            for recipe, orders in zip(recipes, self.orders, strict=True)
        ]

    def __enter__(self):
        for worker in self.workers:
            worker.start()
        try:
            self._gather()  # each is ready
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        for worker in self.workers:
            worker.terminate()
            worker.join()

    def run(self, steps: int) -> float:
        """Seconds until the last of them has taken `steps` steps. RuntimeError when one of them dies."""
        for orders in self.orders:
            orders.put(steps)
        return max(self._gather())

    def _gather(self) -> list[float]:
        """What each of them sends; RuntimeError as soon as one ends without it, or after PATIENCE."""
        taken, end = [], time.monotonic() + PATIENCE
        while len(taken) < len(self.workers):
            try:
                seconds = self.answers.get(timeout=0.2)
            except Empty:
                if dead := [w.exitcode for w in self.workers if w.exitcode]:
                    raise RuntimeError(f"a process ended with exit code {dead[0]}") from None
                if time.monotonic() > end:
                    raise RuntimeError(f"a process was not ready after {PATIENCE:.0f} s") from None
                continue
            if isinstance(seconds, str):
                raise RuntimeError(seconds)
            taken.append(seconds)
        return taken


def _process(recipe, way, device, root, threads, answers, orders):
    device = torch.device(device)
    use(device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # as in the process that measures the other ways
    try:
        source = data.load(recipe.dataset, root)
        made = Reslib(way, recipe, source, device, threads=threads, say=_silent)
        answers.put(made.run(2))
        while True:
            answers.put(made.run(orders.get()))
    except Exception as error:
        answers.put(reason(error))


def _silent(text) -> None:
    pass
