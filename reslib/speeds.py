"""How fast runs on record were trained: images/s per network and device.

Speeds are compared as multiply-adds per second, the median over a network's runs (of two the faster). Other work on the
machine can make a run slow and nothing can make it fast: a network with less than half the rate of others of its kind
and size counts as not measured.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high

from .names import family_and_depth, is_imagenet
from .presets import BOTTLENECKS

NEAR = 2.0  # times as many multiply-adds, or half as many: still near in size
DAMAGED = OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError  # a record: `reslib verify` says so
DISTURBED = 0.5  # share of the usual rate below which a network was trained beside other work


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
class Measured:
    """The speed of one network: the median over its runs, of the plan's preset where it has any there."""

    model: str
    multiply_adds: int
    images_per_second: float
    preset: str

    @property
    def rate(self) -> float:
        """Multiply-adds per second, of images/s times those of one image."""
        return self.multiply_adds * self.images_per_second


def measurements(results: Path, preset: str) -> list[Measurement]:
    """images/s of every ended run below `results`, by device; those of the smoke preset count for itself alone."""
    found = []
    for path in Path(results).glob("*/runs/*/summary.json"):
        folder = path.parts[-4]
        if folder == "smoke" != preset:
            continue
        try:
            s = json.loads(path.read_bytes())
            if s.get("status") == "diverged" and s.get("test_error") is None:  # in its first steps: no speed
                continue
            model, adds = path.parent.name.split("-")[0], int(s["multiply_adds"])
            for device, speed, images in _by_device(path.parent, s):
                if speed > 0:
                    found.append(Measurement(model, adds, speed, folder, device, images))
        except DAMAGED:
            continue
    return found


def _by_device(folder: Path, summary: dict) -> list[tuple[str, float, float]]:
    """(device, images/s, images) of a run: of the whole, or of each device's sessions where there were several."""
    sessions = [s for s in summary.get("sessions") or [] if s.get("to_iteration", 0) > s.get("from_iteration", 0)]
    if len({s["device_name"] for s in sessions}) < 2:
        speed = float(summary["images_per_second"])
        return [(summary["device_name"], speed, speed * float(summary["seconds"]))]
    batch = summary["images_per_second"] * summary["seconds"] / summary["iterations"]  # images of one iteration
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        points = [(int(row["iteration"]), float(row["seconds"])) for row in csv.DictReader(file)]
    trained: dict[str, tuple[float, float]] = {}
    for s in sessions:  # from its first evaluation to its last
        inside = [(i, t) for i, t in points if s["from_iteration"] <= i <= s["to_iteration"]]
        if len(inside) > 1:
            (first, began), (last, ended) = inside[0], inside[-1]
            images, seconds = trained.get(s["device_name"], (0.0, 0.0))
            trained[s["device_name"]] = images + (last - first) * batch, seconds + ended - began
    return [(device, images / seconds, images) for device, (images, seconds) in trained.items() if seconds > 0]


def main_device(found: list[Measurement], here: str = "") -> str:
    """The device that trained most of the images; `here`, whatever its threads, where it trained any."""
    images: dict[str, float] = {}
    for m in found:
        if m.device:
            images[m.device] = images.get(m.device, 0) + m.images
    mine = [name for name in images if here and name.partition(" (")[0] == here.partition(" (")[0]]
    return max(mine or images, key=lambda name: (images[name], name)) if images else ""


def measured(found: list[Measurement], preset: str) -> list[Measured]:
    """One entry per network, that is per name and multiply-adds, in the order of these."""
    networks: dict[tuple[str, int], list[Measurement]] = {}
    for m in found:
        networks.setdefault((m.model, m.multiply_adds), []).append(m)
    entries = []
    for (model, adds), runs in sorted(networks.items()):
        runs = [m for m in runs if m.preset == preset] or runs
        where = preset if runs[0].preset == preset else ", ".join(sorted({m.preset for m in runs}))
        entries.append(Measured(model, adds, median_high(m.images_per_second for m in runs), where))
    return entries


def disturbed(networks: list[Measured]) -> list[Measured]:
    """Those with less than DISTURBED of the median rate of their like: networks of their kind and near in size."""

    kinds: dict[str, list[Measured]] = {}
    for m in filter(lambda m: m.multiply_adds, networks):
        kinds.setdefault(kind(m.model), []).append(m)

    def usual(one: Measured) -> float:
        like = (m for m in kinds[kind(one.model)] if times_apart(m.multiply_adds, one.multiply_adds) <= NEAR)
        return median_high(m.rate for m in like)

    return [m for like in kinds.values() for m in like if m.rate < DISTURBED * usual(m)]


def kind(model: str) -> str:
    """Networks of one kind need about the same time per multiply-add, whatever their depth."""
    if not family_and_depth(model)[1]:
        return model
    if not is_imagenet(model):
        return "plain and residual nets of CIFAR-10"
    return "bottlenecks" if family_and_depth(model)[1] >= BOTTLENECKS else "basic blocks"


def times_apart(a: int, b: int) -> float:
    """How many times the larger is the smaller."""
    return max(a, b) / min(a, b)
