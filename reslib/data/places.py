"""Where ImageNet-style sets lie below a data root, and which of them is ImageNet: the one with 1000 classes.

A subset is never taken for ImageNet. It is read as "imagenette", whatever its classes: records and captions give their
number beside that name.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from . import cifar
from .folders import class_folders, index_folder
from .image_list import LAYOUTS, VAL_NAMES
from .parquet import check_parquet, parquet_classes, parquet_files

CLASSES = 1000  # of ILSVRC 2012
CANDIDATES = {  # data set: folders of the data root tried after the root itself
    "imagenette": ("imagenette-112", "imagenette", "imagenette2", "imagenette2-320", "imagenette2-160"),
    "imagenet": ("imagenet", "imagenet-1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "ILSVRC"),
}
NAMES = dict(  # of Imagenette's classes (torchvision.datasets.Imagenette)
    n01440764="tench",
    n02102040="English springer",
    n02979186="cassette player",
    n03000684="chain saw",
    n03028079="church",
    n03394916="French horn",
    n03417042="garbage truck",
    n03425413="gas pump",
    n03445777="golf ball",
    n03888257="parachute",
)


class NotThere(UserError):
    """No ImageNet-style set is there."""


class OtherSet(NotThere):
    """One is there, but not the one asked for."""


class BrokenSet(OtherSet):
    """Something is there in its place that cannot be read."""


def find_root(data_root: str | Path, dataset: str) -> Path:
    """The folder of `dataset`: the data root itself or one of CANDIDATES below it.

    Raises NotThere, OtherSet if what is there has the wrong number of classes, BrokenSet if it is not whole either,
    UserError for Parquet that is damaged.
    """
    data_root, refused, broken = Path(data_root).expanduser(), "", ""
    for folder in (data_root, *(data_root / name for name in CANDIDATES[dataset])):
        count = count_classes(folder)
        if count is None:
            broken = broken or without_training(folder, named=folder != data_root)
            continue
        if (count == CLASSES) == (dataset == "imagenet"):
            return folder
        refused = refused or f"{str(folder)!r} has {count} classes in train"
        if dataset == "imagenet" and folder != data_root and (fault := fault_of(folder)):
            broken = broken or f"{fault}; it has {count} classes in train, ImageNet has {CLASSES}"
    if broken:
        raise BrokenSet(broken)
    looked = ", ".join(CANDIDATES[dataset])
    if refused and dataset == "imagenet":
        raise OtherSet(
            f"{refused}, ImageNet has {CLASSES}: a subset is data set 'imagenette', and is looked for in the data root "
            f"itself, {', '.join(CANDIDATES['imagenette'])}"
        )
    if refused:
        raise OtherSet(f"{refused}: that is data set 'imagenet', not a subset of it")
    raise NotThere(f"no {dataset} under {str(data_root)!r}: looked there and in {looked} for {LAYOUTS}")


def fault_of(folder: Path) -> str:
    """What keeps the set in a folder from being read, besides its number of classes; "" if nothing does."""
    try:
        (check_parquet if parquet_files(folder, ("train",)) else index_folder)(folder)
    except UserError as error:
        return str(error)
    return ""


def without_training(folder: Path, named: bool) -> str:
    """What is wrong with a folder that holds some of a set but no training images; "" of one that holds none of it.

    named: the folder is called as a set is, so that whatever is in it is meant to be one.
    """
    if (folder / "train").is_dir():  # CIFAR-10 as class folders
        return ""
    held_out = parquet_files(folder, VAL_NAMES) or [folder / v for v in VAL_NAMES if (folder / v).is_dir()]
    if held_out or (named and folder.is_dir() and any(folder.iterdir())):
        there = f"{held_out[0].name} but " if held_out else ""
        return f"{str(folder)!r} has {there}no train/ folder or train*.parquet: allowed are {LAYOUTS}"
    return ""


def class_name(folder: str) -> str:
    """A class for people: "tench" for Imagenette's n01440764; others as their folder is called."""
    return NAMES.get(folder, folder)


def count_classes(folder: Path) -> int | None:
    """Number of classes of the ImageNet-style set in a folder, None if there is none. CIFAR-10 is not one."""
    files = parquet_files(folder, ("train",))
    if files:
        return parquet_classes(files)
    train = folder / "train"
    if not train.is_dir() or any((train / name).is_dir() for name in cifar.CLASSES):
        return None
    return len(class_folders(train))
