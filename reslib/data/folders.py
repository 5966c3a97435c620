"""Finding the images of an ImageNet-style set on disk: class folders, torchvision's devkit layout, Parquet.

    root/train/<class>/*  root/val/<class>/*       Imagenette, ImageNet after torchvision.datasets.ImageNet unpacked it
    root/train/<class>/*  root/val/*.JPEG + devkit  ImageNet as distributed (labels from the devkit or its meta.bin)
    root/[data/]train*.parquet  validation*.parquet the Hugging Face layout: `image` struct with `bytes`, and `label`

An ImageList holds names and labels only and travels cheaply to worker processes; `read(i)` gives the encoded bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..errors import UserError
from .decode import EXTENSIONS
from .image_list import LAYOUTS, VAL_NAMES, ImageList, check_same_classes
from .parquet import index_parquet, parquet_files

DEVKIT = "ILSVRC2012_devkit_t12/data"


def index_folder(root: str | Path) -> tuple[ImageList, ImageList]:
    """Train and validation images of an ImageNet-style folder, in name order. UserError for a broken layout."""
    root = Path(root).expanduser()
    if parquet_files(root, ("train",)):
        return index_parquet(root)
    if not (root / "train").is_dir():
        raise UserError(f"no images in {str(root)!r}: allowed are {LAYOUTS}")
    train = _index_classes(root, "train")
    held_out = next((name for name in VAL_NAMES if (root / name).is_dir()), None)
    if held_out is None:
        raise UserError(f"{str(root)!r} has train/ but no val/ folder: allowed are {LAYOUTS}")
    if class_folders(root / held_out):
        val = _index_classes(root, held_out)
    else:
        val = _index_flat(root, held_out, train.classes)
    check_same_classes(root, train.classes, val.classes)
    return train, val


# --- Class folders ---------------------------------------------------------------------------------------------------


def _index_classes(root: Path, split: str) -> ImageList:
    classes = class_folders(root / split)
    if not classes:
        raise UserError(f"{str(root / split)!r} holds no class folders: allowed are {LAYOUTS}")
    names, labels = [], []
    for label, wnid in enumerate(classes):
        files = _image_files(root / split / wnid)
        if not files:
            raise UserError(f"class folder {str(root / split / wnid)!r} holds no images ({', '.join(EXTENSIONS)})")
        names += [os.fsencode(f"{split}/{wnid}/{file}") for file in files]
        labels += [label] * len(files)
    return ImageList(str(root), np.array(names), np.array(labels, np.int64), tuple(classes))


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in order, without hidden ones (.ipynb_checkpoints)."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _image_files(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
    )


# --- ImageNet as distributed: validation images in one folder, labels in the devkit ----------------------------------


def _index_flat(root: Path, split: str, classes: tuple[str, ...]) -> ImageList:
    files = _image_files(root / split)
    if not files:
        raise UserError(f"{str(root / split)!r} holds neither class folders nor images: allowed are {LAYOUTS}")
    wnids = _devkit_labels(root)
    if wnids is None:
        raise UserError(
            f"{str(root / split)!r} has {len(files)} images without labels: put them in class folders, or add {DEVKIT} "
            f"or torchvision's meta.bin to {str(root)!r}"
        )
    if len(wnids) != len(files):
        raise UserError(f"{str(root / split)!r} has {len(files)} images but the devkit has {len(wnids)} labels")
    check_same_classes(root, classes, tuple(sorted(set(wnids))))
    number = {wnid: label for label, wnid in enumerate(classes)}
    names = np.array([os.fsencode(f"{split}/{file}") for file in files])
    return ImageList(str(root), names, np.array([number[w] for w in wnids], np.int64), classes)


def _devkit_labels(root: Path) -> list[str] | None:
    """The class folder name of every validation image in name order, or None without a devkit."""
    truth, synsets = root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt", root / DEVKIT / "meta.mat"
    if truth.is_file() and synsets.is_file():
        from scipy.io import loadmat

        try:
            rows = loadmat(synsets, squeeze_me=True)["synsets"]
            wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(rows)}
            return [wnid[int(line)] for line in truth.read_text().split()]
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise UserError(f"the devkit in {str(root / DEVKIT)!r} cannot be read ({type(error).__name__})") from error
    if truth.is_file() or synsets.is_file():
        raise UserError(f"the devkit in {str(root / DEVKIT)!r} lacks {(synsets, truth)[synsets.is_file()].name}")
    if (root / "meta.bin").is_file():
        import torch

        try:
            return list(torch.load(root / "meta.bin", weights_only=True)[1])
        except Exception as error:  # whatever a damaged or hostile file makes the unpickler raise
            raise UserError(f"{root / 'meta.bin'} cannot be read ({type(error).__name__})") from error
    return None
