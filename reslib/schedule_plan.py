"""What a plan costs: multiply-adds per image, images/s from the records, hours left, and the makespan on N devices.

Speeds are compared as multiply-adds per second (speeds.py). A network without a measurement gets the median rate of the
measured ones nearest in multiply-adds.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch
from torch.overrides import TorchFunctionMode

from . import complexity, gradient_plan
from .errors import UserError
from .models import build_model, family_and_depth, is_imagenet
from .networks import shortcut_of
from .presets import Preset, cifar_recipe
from .recipe import Recipe, parse_options
from .runs import Run, check_summary, is_locked, read_json
from .speeds import NEAR, Measured, Measurement, kind, times_apart

LARGEST_COUNTED = 14  # layers; a deeper CIFAR net has this much and its further equal blocks
CIFAR_SIZE = 32  # pixels on a side
SMALL = 32  # pixels at which an ImageNet net is counted whose images are a multiple of it: convolutions grow by area


@dataclass(frozen=True)
class State:
    """Where a run of the plan stands."""

    status: str  # done, diverged, running, interrupted, missing, damaged
    iteration: int = 0
    seconds: float = 0.0  # spent up to that iteration


@dataclass(frozen=True)
class Speed:
    """images/s, and where they come from: given, measured, scaled, or not measured."""

    images_per_second: float  # NaN when nothing is known
    source: str


def state_of(run: Run) -> State:
    """The state of one run, from its files alone."""
    if not run.ended and not run.recipe_file.exists():
        return State("running" if is_locked(run.path) else "missing")  # or it is being prepared
    try:
        run.check_recipe()
        status = ""
        if run.ended:
            check_summary(summary := read_json(run.summary_file), run.recipe, run.summary_file)
            status = summary["status"]
    except UserError:
        return State("damaged")
    if status:
        return State("done" if status == "finished" else status, run.recipe.iterations)
    iteration, seconds = progress(run.metrics_file)
    return State("running" if is_locked(run.path) else "interrupted", iteration, seconds)


def progress(metrics_file: Path) -> tuple[int, float]:
    """Iteration and seconds of the last evaluation of a run; (0, 0) before the first."""
    try:
        header, *rows = metrics_file.read_text(encoding="utf-8").split()
        last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
        return int(last["iteration"]), float(last["seconds"])
    except (OSError, ValueError, KeyError, IndexError):
        return 0, 0.0


def cost(recipe: Recipe) -> int:
    """Multiply-adds of one image through the recipe's network."""
    classes = 1000 if recipe.dataset == "imagenet" else 10
    size = recipe.crop_size if "image" in recipe.dataset else CIFAR_SIZE  # a preset may have another one for ImageNet
    return network_cost(recipe.model, shortcut_of(recipe), recipe.options, size, classes)[0]


@cache
def network_cost(model: str, shortcut: str | None, options: str, size: int, classes: int) -> tuple[int, int]:
    """(multiply-adds, parameters) of a network for images of `size` pixels, counted by complexity.py.

    One small image is passed through on the CPU: the first use of the meta device costs seconds of imports. Both
    numbers of a CIFAR net of 6n+2 layers grow by the same amount with every n, so deep ones follow from shallow ones.
    """
    family, depth = family_and_depth(model)
    if depth > LARGEST_COUNTED and depth % 6 == 2 and not is_imagenet(model):
        first, second = (network_cost(f"{family}{d}", shortcut, options, size, classes) for d in (8, 14))
        n = (depth - 2) // 6
        return tuple(a + (n - 1) * (b - a) for a, b in zip(first, second, strict=True))
    counted = SMALL if is_imagenet(model) and size % SMALL == 0 else size
    with _without_drawing(), _one_thread():
        network = build_model(model, classes, shortcut, **parse_options(options))
        whole, convolutions = (complexity.count(network, counted, fc=fc, channels=3) for fc in (True, False))
    return convolutions * (size // counted) ** 2 + whole - convolutions, complexity.parameters(network)


class _without_drawing(TorchFunctionMode):  # noqa: N801 (used as a context)
    """Weights are not initialised within the block: drawing 60 million numbers takes long, and nobody looks at them."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function.__name__ in ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"):
            return arguments[0] if arguments else options["tensor"]
        return function(*arguments, **(options or {}))


@contextlib.contextmanager
def _one_thread():
    """PyTorch computes on one thread within the block: where training runs beside this, several wait for each other,
    ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def unfinished(run: Run, state: State, preset: str) -> list[Measurement]:
    """The speed of a run that has not ended, if it was evaluated at least once."""
    if not state.seconds or state.status not in ("running", "interrupted"):
        return []
    images = state.iteration * run.recipe.batch_size
    model = run.recipe.run_name.split("-")[0]
    return [Measurement(model, cost(run.recipe), images / state.seconds, preset, "", images)]


def speed_of(recipe: Recipe, preset: str, networks: list[Measured], given: dict[str, float]) -> Speed:
    """images/s of a recipe: given, measured on the same network, or scaled from those nearest in multiply-adds.

    networks: what is measured and not disturbed. Scaled is the median rate of those not more than NEAR times as far
    away as the nearest, of the network's own kind where there are any, else on images of the same size: never from
    CIFAR-10 to ImageNet or back.
    """
    if recipe.model in given:
        return Speed(given[recipe.model], "given")
    adds, model = cost(recipe), recipe.run_name.split("-")[0]
    for m in networks:
        if (m.model, m.multiply_adds) == (model, adds):
            return Speed(m.images_per_second, "measured" if m.preset == preset else f"measured at {m.preset}")
    known = [m for m in networks if m.multiply_adds and m.model not in given]
    known += [Measured(name, adds_of_given(name, recipe), value, preset) for name, value in given.items()]
    known = [m for m in known if is_imagenet(m.model) == is_imagenet(model)]
    known = [m for m in known if kind(m.model) == kind(model)] or known
    if not known or not adds:
        return Speed(math.nan, "not measured")
    known = sorted((times_apart(m.multiply_adds, adds), m.model, m.rate) for m in known)
    near = [m for m in known if m[0] <= NEAR * known[0][0]]
    more = f" and {len(near) - 1} more" if len(near) > 1 else ""
    return Speed(median(rate for _, _, rate in near) / adds, f"scaled from {near[0][1]}{more}")


def gradients(preset: Preset, seeds: int, networks: list[Measured], given: dict[str, float]) -> tuple[int, float]:
    """(networks, hours) of the gradients study, which trains no runs: the passes along its nets' first iterations."""
    times, budget = len(preset.seeds_of("", seeds)), gradient_plan.budget_of(preset)
    counts = Counter(recipe.model for recipe in gradient_plan.nets(preset, "cifar10", seeds=1))
    seconds = 0.0
    for model, count in counts.items():  # initialisation and batch norm change next to nothing
        speed = speed_of(cifar_recipe(model, preset), preset.name, networks, given)
        images = (budget.steps + len(budget.at)) * budget.batch_size
        seconds += times * count * images / speed.images_per_second
    return times * counts.total(), seconds / 3600


def adds_of_given(model: str, recipe: Recipe) -> int:
    """Multiply-adds of a network whose speed was given by name: at 224 pixels for an ImageNet net, else 32."""
    if not is_imagenet(model):
        return cost(Recipe(model=model))
    like = recipe if is_imagenet(recipe.model) else Recipe(model=model, dataset="imagenet", crop_size=224)
    return cost(Recipe(model=model, dataset=like.dataset, crop_size=like.crop_size, scale_range=like.scale_range))


def hours_left(recipe: Recipe, state: State, speed: Speed) -> float:
    """Hours until the run ends: at its own pace where it has one, NaN when no speed is known."""
    if state.status in ("done", "diverged"):
        return 0.0
    left = recipe.iterations - state.iteration
    if state.iteration and state.seconds and speed.source != "given":
        return left * state.seconds / state.iteration / 3600
    return left * recipe.batch_size / speed.images_per_second / 3600


def makespan(hours: list[float], devices: int) -> float:
    """Hours until all are done on `devices` equal devices: each, longest first, goes to the device free first."""
    free = [0.0] * devices
    for value in sorted(hours, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + value)
    return max(free)
