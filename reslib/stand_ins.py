"""Which data set a preset computes on, and what may stand in for the paper's where that is not at hand."""

from __future__ import annotations

from . import data
from .data.places import NotThere, find_root
from .presets import Preset

SYNTHETIC = {"cifar": "synthetic", "imagenet": "synthetic-imagenet"}


def dataset_for(preset: Preset, kind: str, root=None, download: bool = False, say=print) -> str:
    """The data set of kind "cifar" or "imagenet" that a preset computes on: synthetic for smoke, else what is found.

    `paper` means ImageNet itself, found or not: its 600,000 iterations are of use on nothing smaller. With its
    iterations changed a preset is a rehearsal, for which a subset or the synthetic set may stand in.
    """
    if preset.base == "smoke":
        return SYNTHETIC[kind]
    if kind == "imagenet" and preset.base == "paper" and "iterations" not in preset.changes:
        return "imagenet"
    return data.choose_dataset(kind, root, download=download, say=say)


def absent(datasets: dict[str, str], root=None) -> str:
    """Why ImageNet is not here although it is one of these data sets; "" where it is, or is not asked for."""
    if "imagenet" in datasets.values():
        try:
            find_root(data.data_root(root), "imagenet")
        except NotThere as error:
            return str(error)
    return ""
