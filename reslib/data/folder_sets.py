"""Small ImageNet-style sets decoded into memory once, with a cache on disk."""

from __future__ import annotations

import io
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError, tell_once
from ..files import whole_file
from .decode import BadImage, centre_view, decode_rgb
from .folders import index_folder
from .image_list import ImageList, cache_folder, fingerprint

TRAINING_NAME = re.compile(r"(?:.*/)?n\d{8}_\d+\.\w+")  # of ImageNet's training images; others: ILSVRC2012_val_00000293
MAX_STORED = 256  # pixels on a side: the shorter side of the paper's single-crop test


class FolderSet(NamedTuple):
    """The images of an ImageNet-style folder at one size, in memory."""

    train_images: torch.Tensor  # (N, S, S, 3) uint8
    train_labels: torch.Tensor  # (N,) int64
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: list[str]
    fingerprint: str
    report: dict


def load_folder_set(root: str | Path, size: int = 0, workers: int = 0) -> FolderSet:
    """Decode a whole ImageNet-style folder into memory; the result is cached on disk under the contents' fingerprint.

    Images are stored at size x size (shorter side resized, centre kept); size 0 keeps images that are already square
    and equal, and otherwise takes their median shorter side, at most 256. Unreadable images are left out and named in
    report["skipped"]; report["trained_on"]: the test images that have names of ImageNet's training images.
    UserError for a broken layout, a class without one readable image, or too little memory.
    """
    started = time.perf_counter()
    root = Path(root).expanduser()
    lists = dict(zip(("train", "test"), index_folder(root), strict=True))
    with ThreadPoolExecutor(workers or (os.cpu_count() or 1)) as pool:  # Pillow decodes without the interpreter lock
        inspected = {split: list(pool.map(_inspect, _contents(images))) for split, images in lists.items()}
        checksums = {split: np.array([crc for crc, _ in rows], np.int64) for split, rows in inspected.items()}
        mark = fingerprint(lists["train"], lists["test"], {"train": checksums["train"], "val": checksums["test"]})
        size = size or _stored_size([shape for rows in inspected.values() for _, shape in rows if shape])
        _check_memory(root, sum(map(len, lists.values())), size)
        path = cache_folder(root.parent, needed=False) / f"{root.name}-{mark}-{size}.safetensors"
        tensors, skipped, cached = *_read_cache(path), True
        if not tensors:
            cached, skipped = False, {}
            for split, images in lists.items():
                _decode_all(images, split, size, pool, tensors, skipped)
            _write_cache(path, tensors, skipped)
    for split, images in lists.items():
        empty = np.flatnonzero(np.bincount(tensors[f"{split}_labels"], minlength=len(images.classes)) == 0)
        if len(empty):
            name = images.classes[empty[0]]
            raise UserError(f"no image of class {name!r} in {split} of {str(root)!r} can be decoded")
    seconds = time.perf_counter() - started
    report = {"skipped": skipped, "size": size, "cached": cached, "cache": str(path), "seconds": seconds}
    names = filter(lambda name: name not in skipped, map(lists["test"].name, range(len(lists["test"]))))
    report["trained_on"] = tuple(i for i, name in enumerate(names) if TRAINING_NAME.fullmatch(name))
    parts = (tensors[f"{split}_{part}"] for split in lists for part in ("images", "labels"))
    return FolderSet(*parts, list(lists["train"].classes), mark, report)


def _contents(images: ImageList) -> Iterator[tuple[ImageList, int]]:
    return ((images, i) for i in range(len(images)))


def _inspect(item: tuple[ImageList, int]) -> tuple[int, tuple[int, int] | None]:
    """Checksum of the bytes, and width and height if the header can be read."""
    data = item[0].read(item[1])
    try:
        with Image.open(io.BytesIO(data)) as image:
            return zlib.crc32(data), image.size
    except Exception:
        return zlib.crc32(data), None


def _check_memory(root: Path, images: int, size: int) -> None:
    needed, there = images * size * size * 3, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there:
        raise UserError(
            f"{str(root)!r}: {images:,} images of {size} pixels take {needed / 2**30:.1f} GiB of memory, here are "
            f"{there / 2**30:.1f}: only ImageNet with all its 1000 classes is read from disk in use"
        )


def _stored_size(shapes: list[tuple[int, int]]) -> int:
    if not shapes:
        return MAX_STORED
    if len(set(shapes)) == 1 and shapes[0][0] == shapes[0][1]:
        return shapes[0][0]
    return min(MAX_STORED, int(np.median([min(shape) for shape in shapes])))


def _decode_all(images: ImageList, split: str, size: int, pool, tensors: dict, skipped: dict) -> None:
    """Add `{split}_images` and `{split}_labels` to tensors, and name -> reason of what cannot be decoded to skipped."""
    stored = np.empty((len(images), size, size, 3), np.uint8)

    def decode(i: int) -> str:
        try:
            image = decode_rgb(images.read(i))
            stored[i] = np.asarray(image) if image.size == (size, size) else centre_view(image, size, size)
            return ""
        except BadImage as reason:
            return str(reason)

    reasons = list(pool.map(decode, range(len(images))))
    good = np.array([not reason for reason in reasons])
    skipped.update({images.name(i): reasons[i] for i in np.flatnonzero(~good)})
    tensors[f"{split}_images"] = torch.from_numpy(stored if good.all() else stored[good])
    tensors[f"{split}_labels"] = torch.from_numpy(images.labels[good])


def _read_cache(path: Path) -> tuple[dict, dict]:
    """Tensors and skipped names of an earlier decoding; empty when there is none or it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            facts = file.metadata()
            return (tensors, json.loads(facts["skipped"])) if facts["checksum"] == _checksum(tensors) else ({}, {})
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return {}, {}


def _write_cache(path: Path, tensors: dict, skipped: dict) -> None:
    facts = {"skipped": json.dumps(skipped), "checksum": _checksum(tensors)}
    try:
        with whole_file(path, "wb") as file:
            save_file(tensors, file.name, facts)
    except (UserError, SafetensorError) as error:  # a full disk: they are in memory all the same
        tell_once(f"note: the decoded images are not kept for the next time: {path}: {' '.join(str(error).split())}")


def _checksum(tensors: dict) -> str:
    """CRC-32 of names, types, shapes and contents: nothing in the file itself tells whether a bit has flipped."""
    crc = 0
    for name, tensor in sorted(tensors.items()):
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(tensor.numpy()), crc)
    return f"{crc:08x}"
