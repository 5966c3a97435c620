"""`reslib list`: the networks with their sizes, the studies, the presets and the data sets."""

from __future__ import annotations

from ..cli import checking_arguments
from ..errors import choose
from ..models import is_imagenet, model_names
from ..presets import PRESETS
from ..recipe import CHOICES
from ..schedule_plan import network_cost
from ..studies import STUDIES
from .status import aligned

SECTIONS = ("models", "studies", "presets", "data")
DATA = {
    "cifar10": "CIFAR-10: 50,000 training and 10,000 test images of 32 pixels",
    "synthetic": "its embedded stand-in, made by code: 10,000 and 2,000 images of 32 pixels",
    "imagenet": "ImageNet (ILSVRC 2012), read from disk in use",
    "imagenette": "ten classes of ImageNet (or another subset of it), held in memory",
    "synthetic-imagenet": "their embedded stand-in: 2,000 and 1,000 images of 64 pixels",
}


def add_arguments(parser) -> None:
    parser.add_argument("section", nargs="?", default="", help=f"one of {', '.join(SECTIONS)} (default: all)")


def main(arguments) -> int:
    with checking_arguments():
        if arguments.section:
            choose("section", arguments.section, SECTIONS)
    wanted = [arguments.section] if arguments.section else SECTIONS
    for number, section in enumerate(wanted):
        print(*([""] if number else []), *globals()[section](), sep="\n")
    return 0


def models() -> list[str]:
    """The lines of `reslib list models`: input, parameters and multiply-adds of every network."""
    rows = [("model", "input", "parameters", "multiply-adds")]
    for name in model_names():
        size, classes = (224, 1000) if is_imagenet(name) else (32, 10)
        adds, parameters = network_cost(name, None, "", size, classes)
        rows.append((name, f"{size}x{size}", f"{parameters:,}", f"{adds:,}"))
    return [
        *aligned(rows, right=(2, 3)),
        "also: plain and resnet of any CIFAR depth 6n+2, and package.module:Factory for a network of one's own",
    ]


def studies() -> list[str]:
    """The lines of `reslib list studies`: networks and runs of every figure and table."""
    rows = [("study", "data", "networks and runs at quick and at paper")]
    for name, (study, kind) in STUDIES.items():
        dataset = {"cifar": "cifar10", "imagenet": "imagenet"}[kind]
        quick, full = (study(PRESETS[p], dataset, 0) for p in ("quick", "paper"))
        rows.append((name, kind, f"{_size(quick)}; {_size(full)}"))
    return aligned(rows)


def _size(recipes) -> str:
    return f"{len({r.model for r in recipes})} networks, {len({r.digest for r in recipes})} runs"


def presets() -> list[str]:
    """The lines of `reslib list presets`."""
    return aligned([("preset", "purpose"), *((p.name, p.purpose) for p in PRESETS.values())])


def data() -> list[str]:
    """The lines of `reslib list data`."""
    return aligned([("data set", ""), *((name, DATA[name]) for name in CHOICES["dataset"])])
