"""`load(dataset, root)` finds a data set; `batches_for(recipe, source, device)` turns it into training batches."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from ..errors import UserError, choose
from ..files import folder_of
from ..recipe import CHOICES
from . import cifar, synthetic
from .memory import MemoryBatches, check_fits
from .sets import DataSource, ImageSet, fingerprint, image_set

__all__ = [
    "DataSource",
    "ImageSet",
    "MemoryBatches",
    "batches_for",
    "check_recipe",
    "choose_dataset",
    "data_root",
    "load",
]

DOWNLOAD_PATIENCE = 600.0  # seconds
SYNTHETIC_SIZES = {"synthetic": (32, 10_000, 2_000), "synthetic-imagenet": (64, 2_000, 1_000)}  # pixels, train, test


def data_root(root: str | Path | None = None) -> Path:
    """The data root: the argument, $RESLIB_DATA, or ~/.cache/reslib-data. A given root must exist."""
    given = root or os.environ.get("RESLIB_DATA")
    path = folder_of("data root", given or "~/.cache/reslib-data")
    if given and not path.is_dir():
        raise UserError(f"data root {str(given)!r} is not a folder")
    return path


def choose_dataset(kind: str, root: str | Path | None = None, download: bool = False, say=print) -> str:
    """The real set where it is found (or can be downloaded), else the synthetic one, said loudly.

    kind: "cifar" gives "cifar10" or "synthetic"; "imagenet" gives "imagenet", "imagenette" or "synthetic-imagenet".
    RESLIB_DOWNLOAD=off never downloads; a download that would take over ten minutes is given up. Raises UserError for
    a folder that is named as ImageNet and has not its classes.
    """
    choose("kind of data", kind, ("cifar", "imagenet"))
    path = data_root(root)
    if kind == "cifar":
        if cifar.find(path):
            return "cifar10"
        reason = f"no CIFAR-10 under {path}"
        if download and os.environ.get("RESLIB_DOWNLOAD") != "off":
            try:
                cifar.download(path, say=say, patience=DOWNLOAD_PATIENCE)
                return "cifar10"
            except UserError as error:
                reason = f"{reason}, and {error}"
        say(
            f"*** SYNTHETIC DATA *** {reason}: using the embedded synthetic set. Its errors say nothing about CIFAR-10."
        )
        return "synthetic"
    from .places import NotThere, OtherSet, count_classes, find_root

    refused = None
    for name in ("imagenet", "imagenette"):
        try:
            folder = find_root(path, name)
            if name == "imagenette":
                say(f"note: no ImageNet under {path}: a subset of {count_classes(folder)} classes stands in, {folder}")
            return name
        except OtherSet as error:
            refused = refused or error
        except NotThere:
            continue
    if refused:  # somebody's ImageNet with a class missing: synthetic images are not what is wanted
        raise refused
    say(f"*** SYNTHETIC DATA *** no ImageNet-style folders under {path}: using larger synthetic images.")
    return "synthetic-imagenet"


@lru_cache(maxsize=2)
def _load(dataset: str, path: Path) -> DataSource:
    if dataset in SYNTHETIC_SIZES:
        size, train_count, test_count = SYNTHETIC_SIZES[dataset]
        train = image_set(*synthetic.make("train", train_count, size), dataset, 10)
        test = image_set(*synthetic.make("test", test_count, size), dataset, 10)
        classes = [str(name) for name in synthetic.CLASSES]
        return DataSource(dataset, train, test, classes, fingerprint(train, test), "generated", synthetic=True)
    if dataset == "cifar10":
        found = cifar.find(path)
        if not found:
            raise UserError(f"no CIFAR-10 under {path}: set RESLIB_DATA, or run `reslib data download`")
        train, test = cifar.load(*found)
        return DataSource(dataset, train, test, list(cifar.CLASSES), fingerprint(train, test), found[0])
    from . import imagenet

    return imagenet.load(dataset, path)


def load(dataset: str, root: str | Path | None = None) -> DataSource:
    """The named data set from the data root. Raises UserError when it is missing or damaged, naming the file."""
    choose("dataset", dataset, CHOICES["dataset"])
    return _load(dataset, Path() if dataset in SYNTHETIC_SIZES else data_root(root))


def check_recipe(recipe) -> None:
    """Raise UserError for a recipe that no CIFAR-10 allows, before its images are read."""
    if recipe.dataset in ("cifar10", "synthetic"):
        check_fits(recipe, SYNTHETIC_SIZES["synthetic"][0], recipe.dataset)  # the stand-in has CIFAR-10's size


def batches_for(recipe, source: DataSource, device):
    """The object that yields this recipe's batches (see MemoryBatches for what it offers)."""
    if "image" in recipe.dataset:  # ImageNet-style sets, whatever the augmentation
        from .imagenet import batches_for as imagenet_batches

        return imagenet_batches(recipe, source, device)
    return MemoryBatches(recipe, source, device)
