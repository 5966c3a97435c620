"""What a plan costs: multiply-adds per image, images/s from the records, hours left, and the makespan on N devices.

A network without a measurement gets the speed of the measured network nearest in multiply-adds, scaled by their ratio.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from . import complexity
from .errors import UserError
from .models import build_model, family_and_depth, is_imagenet
from .recipe import Recipe, parse_options
from .runs import Run, check_summary, is_locked, read_json

LARGEST_COUNTED = 14  # layers; a deeper CIFAR net has this much and its further equal blocks
SMALL = 32  # pixels at which an ImageNet net is counted whose images are a multiple of it: convolutions grow by area


@dataclass(frozen=True)
class State:
    """Where a run of the plan stands."""

    status: str  # done, diverged, running, interrupted, missing, damaged
    iteration: int = 0
    seconds: float = 0.0  # spent up to that iteration


@dataclass(frozen=True)
class Measurement:
    """The speed of one run, from its record."""

    model: str
    multiply_adds: int
    images_per_second: float
    preset: str
    device: str  # "" for a run that has not ended: its device is not recorded yet
    images: float  # trained, the weight of this measurement


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
    shortcut = recipe.shortcut if family_and_depth(recipe.model)[1] else None
    return network_cost(recipe.model, shortcut, recipe.options, recipe.crop_size, classes)[0]


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


def measurements(results: Path, preset: str) -> list[Measurement]:
    """images/s of every ended run below `results`; those of the smoke preset count for itself alone."""
    found = []
    for path in Path(results).glob("*/runs/*/summary.json"):
        folder = path.parts[-4]
        if folder == "smoke" != preset:
            continue
        try:
            s = json.loads(path.read_bytes())
            model, speed = path.parent.name.split("-")[0], float(s["images_per_second"])
            if speed > 0:
                adds, images = int(s["multiply_adds"]), speed * float(s["seconds"])
                found.append(Measurement(model, adds, speed, folder, s["device_name"], images))
        except (OSError, ValueError, KeyError, TypeError):  # damaged: `reslib verify` says so
            continue
    return found


def unfinished(run: Run, state: State, preset: str) -> list[Measurement]:
    """The speed of a run that has not ended, if it was evaluated at least once."""
    if not state.seconds or state.status not in ("running", "interrupted"):
        return []
    images = state.iteration * run.recipe.batch_size
    model = run.recipe.run_name.split("-")[0]
    return [Measurement(model, cost(run.recipe), images / state.seconds, preset, "", images)]


def main_device(found: list[Measurement]) -> str:
    """The device that trained most of the images."""
    images: dict[str, float] = {}
    for m in found:
        if m.device:
            images[m.device] = images.get(m.device, 0) + m.images
    return max(images, key=lambda name: (images[name], name)) if images else ""


def speed_of(recipe: Recipe, preset: str, found: list[Measurement], given: dict[str, float]) -> Speed:
    """images/s of a recipe: given, measured on the same network, or scaled from the nearest one."""
    if recipe.model in given:
        return Speed(given[recipe.model], "given")
    adds, model = cost(recipe), recipe.run_name.split("-")[0]
    same = [m for m in found if m.model == model and m.multiply_adds == adds]
    same = [m for m in same if m.preset == preset] or same
    if same:
        where = "" if same[0].preset == preset else f" at {same[0].preset}"
        return Speed(_median([m.images_per_second for m in same]), f"measured{where}")
    speeds: dict[tuple[int, str], list[float]] = {}
    for name, value in given.items():
        speeds.setdefault((adds_of_given(name, recipe), name), []).append(value)
    for m in found:
        if m.multiply_adds:
            speeds.setdefault((m.multiply_adds, m.model), []).append(m.images_per_second)
    if not speeds or not adds:
        return Speed(math.nan, "not measured")
    nearest = min(speeds, key=lambda kind: (abs(math.log(kind[0] / adds)), kind[1]))
    return Speed(_median(speeds[nearest]) * nearest[0] / adds, f"scaled from {nearest[1]}")


def adds_of_given(model: str, recipe: Recipe) -> int:
    """Multiply-adds of a network whose speed was given by name: at 224 pixels for an ImageNet net, else 32."""
    size = 32 if not is_imagenet(model) else recipe.crop_size if is_imagenet(recipe.model) else 224
    return cost(Recipe(model=model, crop_size=size))


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


def _median(values: list[float]) -> float:
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
