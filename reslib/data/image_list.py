"""Encoded images on disk with their labels, whatever the layout: what finding them gives and decoding takes."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..machine import user_cache

VAL_NAMES = ("val", "validation")
SAMPLE = 512  # images of the validation set that are looked for among the training images
LAYOUTS = (
    "train/<class>/* and val/<class>/*, train/<class>/* and val/* with the ILSVRC2012 devkit, "
    "or train*.parquet and validation*.parquet"
)


@dataclass(frozen=True)
class ImageList:
    """Encoded images on disk with their labels. `names` are bytes: a million Python strings would be copied per worker.

    With `blob`, images lie one after another in that file, image i in bytes offsets[i] to offsets[i + 1], whose CRC-32
    is checksums[i].
    """

    root: str
    names: np.ndarray  # (N,) bytes, path relative to root
    labels: np.ndarray  # (N,) int64
    classes: tuple[str, ...]
    blob: str = ""
    offsets: np.ndarray | None = None
    checksums: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The i-th image's path below the root."""
        return os.fsdecode(self.names[i])

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i; empty if it cannot be read or is damaged, which decoding then reports."""
        try:
            if not self.blob:
                return Path(self.root, self.name(i)).read_bytes()
            with open(self.blob, "rb") as file:
                file.seek(int(self.offsets[i]))
                data = file.read(int(self.offsets[i + 1] - self.offsets[i]))
            return data if zlib.crc32(data) == self.checksums[i] else b""
        except OSError:
            return b""

    def sizes(self) -> np.ndarray:
        """Encoded size of every image in bytes."""
        if self.blob:
            return np.diff(self.offsets)
        with ThreadPoolExecutor(8) as pool:
            paths = (Path(self.root, os.fsdecode(n)) for n in self.names)
            return np.fromiter(pool.map(lambda p: p.stat().st_size, paths), np.int64, len(self))


def shared_in_sample(train: ImageList, val: ImageList, sizes: dict[str, np.ndarray]) -> tuple[int, int]:
    """(how many, of how many) evenly spaced images of `val` are, byte for byte, also in `train`.

    sizes: encoded sizes of "train" and "val". Only files of equal size are read: seconds for all of ImageNet, where
    reading everything takes an hour. Of a leak of 1 % of the images a sample of SAMPLE sees nothing once in 170 times.
    """
    sample = np.unique(np.linspace(0, len(val) - 1, min(SAMPLE, len(val))).astype(np.int64))
    alike = np.flatnonzero(np.isin(sizes["train"], sizes["val"][sample]) & (sizes["train"] > 0))
    with ThreadPoolExecutor(8) as pool:
        trained = set(pool.map(lambda i: _hash(train.read(i)), alike.tolist()))
        looked_at = list(pool.map(lambda i: _hash(val.read(i)), sample.tolist()))
    trained.discard(_hash(b""))  # what cannot be read is no image that both have
    return sum(mark in trained for mark in looked_at), len(sample)


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def fingerprint(
    train: ImageList,
    val: ImageList,
    contents: dict[str, np.ndarray] | None = None,
    sizes: dict[str, np.ndarray] | None = None,
) -> str:
    """Sixteen hexadecimal digits for file names, labels, sizes and, where given, a checksum of every image's bytes."""
    digest = hashlib.sha256()
    sizes = sizes or {"train": train.sizes(), "val": val.sizes()}
    for split, images in (("train", train), ("val", val)):
        classes = os.fsencode("\n".join(images.classes))
        for part in (classes, b"\0".join(images.names.tolist()), images.labels.tobytes()):
            digest.update(len(part).to_bytes(8, "little") + part)
        digest.update(sizes[split].astype("<i8").tobytes())
        if contents is not None:
            digest.update(contents[split].astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def cache_folder(beside: Path, needed: bool = True) -> Path:
    """A writable folder for derived files: beside the data, else the user's cache, else the temporary folder.

    Where there is none: UserError, or the folder beside the data all the same if it is not needed.
    """
    user = user_cache()
    for folder in (beside / ".reslib-cache", user, Path(tempfile.gettempdir()) / f"reslib-cache-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    if not needed:
        return beside / ".reslib-cache"
    raise UserError(
        f"no writable folder for decoded images: tried beside {str(beside)!r}, {user} and the temporary one"
    )


def check_same_classes(root: Path, train: tuple[str, ...], val: tuple[str, ...]) -> None:
    """Raise UserError naming the classes that only one of the two splits has."""
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        shown = [f"only in {where}: {', '.join(c[:5])}" for where, c in (("train", only_train), ("val", only_val)) if c]
        count = len(only_train) + len(only_val)
        raise UserError(
            f"train and val of {str(root)!r} differ in {count} class{'es' * (count > 1)}; {'; '.join(shown)}"
        )
