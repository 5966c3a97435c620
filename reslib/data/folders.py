"""Finding the images of an ImageNet-style set on disk: class folders, torchvision's devkit layout, Parquet.

    root/train/<class>/*  root/val/<class>/*       Imagenette, ImageNet after torchvision.datasets.ImageNet unpacked it
    root/train/<class>/*  root/val/*.JPEG + devkit  ImageNet as distributed (labels from the devkit or its meta.bin)
    root/[data/]train*.parquet  validation*.parquet the Hugging Face layout: `image` struct with `bytes`, and `label`

An ImageList holds names and labels only and travels cheaply to worker processes; `read(i)` gives the encoded bytes.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import whole_file
from .decode import EXTENSIONS

VAL_NAMES = ("val", "validation")
LAYOUTS = (
    "train/<class>/* and val/<class>/*, train/<class>/* and val/* with the ILSVRC2012 devkit, "
    "or train*.parquet and validation*.parquet"
)
CANDIDATES = {  # data set: folders of the data root tried after the root itself
    "imagenette": ("imagenette-112", "imagenette", "imagenette2", "imagenette2-320", "imagenette2-160"),
    "imagenet": ("imagenet", "imagenet-1k", "ILSVRC2012", "ILSVRC/Data/CLS-LOC", "ILSVRC"),
}
DEVKIT = "ILSVRC2012_devkit_t12/data"


@dataclass(frozen=True)
class ImageList:
    """Encoded images on disk with their labels. `names` are bytes: a million Python strings would be copied per worker.

    With `blob`, images lie one after another in that file, image i in bytes offsets[i] to offsets[i + 1].
    """

    root: str
    names: np.ndarray  # (N,) bytes, path relative to root
    labels: np.ndarray  # (N,) int64
    classes: tuple[str, ...]
    blob: str = ""
    offsets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return os.fsdecode(self.names[i])

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i; empty if the file cannot be read, which decoding then reports."""
        try:
            if not self.blob:
                return Path(self.root, self.name(i)).read_bytes()
            with open(self.blob, "rb") as file:
                file.seek(int(self.offsets[i]))
                return file.read(int(self.offsets[i + 1] - self.offsets[i]))
        except OSError:
            return b""

    def sizes(self) -> np.ndarray:
        """Encoded size of every image in bytes."""
        if self.blob:
            return np.diff(self.offsets)
        with ThreadPoolExecutor(8) as pool:
            paths = (Path(self.root, os.fsdecode(n)) for n in self.names)
            return np.fromiter(pool.map(lambda p: p.stat().st_size, paths), np.int64, len(self))


def find_root(data_root: str | Path, dataset: str) -> Path:
    """The folder of `dataset`: the data root itself or one of CANDIDATES below it. UserError if there is none."""
    data_root = Path(data_root).expanduser()
    tried = [data_root, *(data_root / name for name in CANDIDATES[dataset])]
    for folder in tried:
        if (folder / "train").is_dir() or _parquet(folder, ("train",)):
            return folder
    looked = ", ".join(CANDIDATES[dataset])
    raise UserError(f"no {dataset} under {str(data_root)!r}: looked there and in {looked} for {LAYOUTS}")


def index_folder(root: str | Path) -> tuple[ImageList, ImageList]:
    """Train and validation images of an ImageNet-style folder, in name order. UserError for a broken layout."""
    root = Path(root).expanduser()
    if _parquet(root, ("train",)):
        return _index_parquet(root)
    if not (root / "train").is_dir():
        raise UserError(f"no images in {str(root)!r}: allowed are {LAYOUTS}")
    train = _index_classes(root, "train")
    held_out = next((name for name in VAL_NAMES if (root / name).is_dir()), None)
    if held_out is None:
        raise UserError(f"{str(root)!r} has train/ but no val/ folder: allowed are {LAYOUTS}")
    if any(entry.is_dir() for entry in os.scandir(root / held_out)):
        val = _index_classes(root, held_out)
    else:
        val = _index_flat(root, held_out, train.classes)
    _check_same_classes(root, train.classes, val.classes)
    return train, val


def fingerprint(train: ImageList, val: ImageList, contents: dict[str, np.ndarray] | None = None) -> str:
    """Sixteen hexadecimal digits for file names, labels, sizes and, where given, a checksum of every image's bytes."""
    digest = hashlib.sha256()
    for split, images in (("train", train), ("val", val)):
        for part in ("\n".join(images.classes).encode(), b"\0".join(images.names.tolist()), images.labels.tobytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
        digest.update(images.sizes().astype("<i8").tobytes())
        if contents is not None:
            digest.update(contents[split].astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def cache_folder(beside: Path) -> Path:
    """A writable folder for derived files: beside the data, else the user's cache, else the temporary folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reslib"
    for folder in (beside / ".reslib-cache", user, Path(tempfile.gettempdir()) / f"reslib-cache-{getpass.getuser()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    raise UserError(
        f"no writable folder for decoded images: tried beside {str(beside)!r}, {user} and the temporary one"
    )


# --- Class folders ---------------------------------------------------------------------------------------------------


def _index_classes(root: Path, split: str) -> ImageList:
    classes = sorted(entry.name for entry in os.scandir(root / split) if entry.is_dir())
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


def _image_files(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(EXTENSIONS) and not entry.name.startswith(".") and entry.is_file()
    )


def _check_same_classes(root: Path, train: tuple[str, ...], val: tuple[str, ...]) -> None:
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        shown = [f"only in {where}: {', '.join(c[:5])}" for where, c in (("train", only_train), ("val", only_val)) if c]
        count = len(only_train) + len(only_val)
        raise UserError(f"train and val of {str(root)!r} differ in {count} classes; {'; '.join(shown)}")


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
    _check_same_classes(root, classes, tuple(sorted(set(wnids))))
    number = {wnid: label for label, wnid in enumerate(classes)}
    names = np.array([os.fsencode(f"{split}/{file}") for file in files])
    return ImageList(str(root), names, np.array([number[w] for w in wnids], np.int64), classes)


def _devkit_labels(root: Path) -> list[str] | None:
    """The class folder name of every validation image in name order, or None without a devkit."""
    truth, synsets = root / DEVKIT / "ILSVRC2012_validation_ground_truth.txt", root / DEVKIT / "meta.mat"
    if truth.is_file() and synsets.is_file():
        from scipy.io import loadmat

        rows = loadmat(synsets, squeeze_me=True)["synsets"]
        wnid = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in np.atleast_1d(rows)}
        return [wnid[int(line)] for line in truth.read_text().split()]
    if (root / "meta.bin").is_file():
        import torch

        return list(torch.load(root / "meta.bin", weights_only=True)[1])
    return None


# --- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet(root: Path, prefixes: tuple[str, ...]) -> list[Path]:
    for folder in (root, root / "data"):
        files = sorted({f for prefix in prefixes for f in folder.glob(f"{prefix}*.parquet")})
        if files:
            return files
    return []


def _index_parquet(root: Path) -> tuple[ImageList, ImageList]:
    shards = {"train": _parquet(root, ("train",)), "val": _parquet(root, VAL_NAMES)}
    if not shards["val"]:
        raise UserError(f"{str(root)!r} has train*.parquet but no validation*.parquet: allowed are {LAYOUTS}")
    train, val = (_unpack_parquet(root, split, files) for split, files in shards.items())
    for split, images in (("train", train), ("val", val)):
        empty = np.flatnonzero(np.bincount(images.labels, minlength=len(train.classes)) == 0)
        if split == "train" and len(empty):
            raise UserError(f"train*.parquet in {str(root)!r} has no images of {len(empty)} classes, first {empty[0]}")
        if images.labels.max() >= len(train.classes):
            raise UserError(
                f"{split} labels in {str(root)!r} reach {images.labels.max()} with {len(train.classes)} classes"
            )
    _check_same_classes(root, train.classes, val.classes)
    return train, val


def _unpack_parquet(root: Path, split: str, files: list[Path]) -> ImageList:
    """Copy the encoded images of Parquet files into one flat file, once: Parquet itself has no fast access to one row.

    Needs as much disk as the Parquet files (about 140 GB for ImageNet).
    """
    import pyarrow.parquet as pq

    schema = pq.read_schema(files[0])
    if not {"image", "label"} <= set(schema.names):
        raise UserError(
            f"{str(files[0])!r} has columns {', '.join(schema.names)}: needed are image (with bytes) and label"
        )
    identity = "".join(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}\n" for f in files)
    stem = cache_folder(root) / f"{split}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    blob, index = stem.with_suffix(".bin"), stem.with_suffix(".npz")
    if not index.is_file():
        needed, free = sum(f.stat().st_size for f in files), shutil.disk_usage(stem.parent).free
        if needed > free:
            raise UserError(
                f"unpacking {split}*.parquet needs {needed >> 20} MiB in {stem.parent}, free are {free >> 20}"
            )
        labels, offsets, names = [], [0], []
        with whole_file(blob, "wb") as file:
            for path in files:
                for batch in pq.ParquetFile(path).iter_batches(256, columns=["image", "label"]):
                    for image, label in zip(batch["image"].to_pylist(), batch["label"].to_pylist(), strict=True):
                        data = (image or {}).get("bytes") or b""
                        file.write(data)
                        offsets.append(offsets[-1] + len(data))
                        labels.append(-1 if label is None else label)
                        names.append(f"{path.name}:{len(labels) - 1}".encode())
        with whole_file(index, "wb") as file:
            np.savez(
                file, labels=np.array(labels, np.int64), offsets=np.array(offsets, np.int64), names=np.array(names)
            )
    packed = np.load(index)
    labels = packed["labels"]
    if not len(labels) or (labels < 0).any():
        raise UserError(
            f"{split}*.parquet in {str(root)!r}: {int((labels < 0).sum())} of {len(labels)} images have no label"
        )
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    classes = features.get("label", {}).get("names") or map(str, range(int(labels.max()) + 1))
    return ImageList(str(root), packed["names"], labels, tuple(classes), str(blob), packed["offsets"])
