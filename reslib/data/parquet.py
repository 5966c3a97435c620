"""ImageNet-style sets in Parquet files, in the Hugging Face layout: `image` struct with `bytes`, and `label`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import alone, whole_file
from .image_list import LAYOUTS, VAL_NAMES, ImageList, cache_folder, check_same_classes

CHECKED = 64  # images of what was unpacked before


def parquet_files(root: Path, prefixes: tuple[str, ...]) -> list[Path]:
    """The files named so in a folder or in data/ below it, in order."""
    for folder in (root, root / "data"):
        files = sorted({f for prefix in prefixes for f in folder.glob(f"{prefix}*.parquet")})
        if files:
            return files
    return []


def parquet_classes(files: list[Path]) -> int | None:
    """Number of classes of training files with `image` and `label`; None for files of another kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(files[0])
        if not {"image", "label"} <= set(schema.names):
            return None
        if names := _class_names(schema):
            return len(names)
        labels = pa.concat_tables(pq.read_table(file, columns=["label"]) for file in files)["label"]
        return 1 + max((v for v in labels.unique().to_pylist() if v is not None), default=-1)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"Parquet files like {str(files[0])!r} cannot be read: {_line(error)}") from error


def _class_names(schema) -> list[str]:
    """The names of the classes in the Hugging Face description of the columns; empty without one."""
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return features.get("label", {}).get("names") or []


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def index_parquet(root: Path) -> tuple[ImageList, ImageList]:
    """Training and validation images of Parquet files in the Hugging Face layout. UserError says what is missing."""
    shards = check_parquet(root)  # before gigabytes are copied
    train, val = (_unpack_parquet(root, split, files) for split, files in shards.items())
    check_same_classes(root, train.classes, val.classes)
    return train, val


def check_parquet(root: Path) -> dict[str, list[Path]]:
    """The files of both splits, after a look at their columns and labels alone. UserError names what is wrong."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = {"train": parquet_files(root, ("train",)), "val": parquet_files(root, VAL_NAMES)}
    if not shards["val"]:
        raise UserError(f"{str(root)!r} has train*.parquet but no validation*.parquet: allowed are {LAYOUTS}")
    count = 0
    for files in shards.values():
        where = f"{str(files[0])!r}" + f" and {len(files) - 1} more" * (len(files) > 1)
        try:
            for file in files:
                _check_columns(file, pq.read_schema(file))
            columns = [pq.read_table(file, columns=["label"])["label"] for file in files]
            labels = np.concatenate([column.fill_null(-1).to_numpy() for column in columns])
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"Parquet files like {where} cannot be read: {_line(error)}") from error
        if not len(labels) or (labels < 0).any():
            raise UserError(f"{where}: {int((labels < 0).sum())} of {len(labels)} images have no label")
        names = _class_names(pq.read_schema(files[0]))
        count = count or len(names) or int(labels.max()) + 1  # that of the training images holds
        if labels.max() >= count:
            raise UserError(f"{where}: labels reach {labels.max()} with {count} classes")
        if len(empty := np.flatnonzero(np.bincount(labels, minlength=count) == 0)):
            name = names[empty[0]] if names else str(empty[0])
            others = f", nor of {len(empty) - 1} more" * (len(empty) > 1)
            raise UserError(f"{where}: no image of class {name!r}{others}")
    return shards


def _check_columns(file: Path, schema) -> None:
    """Raise UserError unless a file has images as bytes and whole numbers as labels."""
    import pyarrow as pa

    if missing := {"image", "label"} - set(schema.names):
        raise UserError(
            f"{str(file)!r} has columns {', '.join(schema.names)}, without {' and '.join(sorted(missing))}: needed are "
            "image (with bytes) and label"
        )
    for name, right, allowed in (
        ("image", pa.types.is_struct, "a struct with bytes"),
        ("label", pa.types.is_integer, "whole numbers"),
    ):
        if not right(kind := schema.field(name).type):
            raise UserError(f"{str(file)!r}: column {name} is of type {kind}: allowed is {allowed}")


def _unpack_parquet(root: Path, split: str, files: list[Path]) -> ImageList:
    """Copy the encoded images of Parquet files into one flat file, once: Parquet itself has no fast access to one row.

    Needs as much disk as the Parquet files (about 140 GB for ImageNet).
    """
    import pyarrow.parquet as pq

    schema = pq.read_schema(files[0])
    identity = "".join(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}\n" for f in files)
    stem = cache_folder(root) / f"{split}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    blob, index = stem.with_suffix(".bin"), stem.with_suffix(".npz")
    with alone(stem.with_suffix(".lock")):  # of the processes of a job the first one unpacks
        images = _unpacked(root, blob, index)
        if images is None:
            _unpack(split, files, blob, index)
            images = _unpacked(root, blob, index)
    if images is None:
        raise UserError(f"{blob} is not what was unpacked there a moment ago: is something else writing to it?")
    labels = images.labels
    classes = _class_names(schema) or map(str, range(int(labels.max()) + 1))
    return dataclasses.replace(images, classes=tuple(classes))


def _unpacked(root: Path, blob: Path, index: Path) -> ImageList | None:
    """What was unpacked before, without its classes; None where there is nothing or it is damaged.

    Of the images, which may be 140 GB, CHECKED are compared with their checksums; the others when they are read.
    """
    try:
        with np.load(index, allow_pickle=False) as packed:
            kept = {name: packed[name] for name in ("names", "labels", "offsets", "checksums")}
        count, offsets = len(kept["labels"]), kept["offsets"]
        kinds = [array.dtype.kind for array in kept.values()]
        images = ImageList(str(root), kept["names"], kept["labels"], (), str(blob), offsets, kept["checksums"])
        sample = np.unique(np.linspace(0, count - 1, min(CHECKED, count)).astype(np.int64))
        sound = (
            kinds == ["S", "i", "i", "u"]
            and {len(kept["names"]), len(offsets) - 1, len(kept["checksums"])} == {count}
            and not (np.diff(offsets) < 0).any()
            and blob.stat().st_size == offsets[-1]
            and all(len(images.read(i)) == offsets[i + 1] - offsets[i] for i in sample)
        )
        return images if sound else None
    except Exception:  # numpy and zip raise many kinds on what is no index
        return None


def _unpack(split: str, files: list[Path], blob: Path, index: Path) -> None:
    needed, free = sum(f.stat().st_size for f in files), shutil.disk_usage(blob.parent).free
    if needed > free:
        raise UserError(f"unpacking {split}*.parquet needs {needed >> 20} MiB in {blob.parent}, free are {free >> 20}")
    labels, offsets, names, checksums = [], [0], [], []
    with whole_file(blob, "wb") as file:
        for path, image, label in _rows(files):
            data = (image or {}).get("bytes") or b""
            file.write(data)
            checksums.append(zlib.crc32(data))
            offsets.append(offsets[-1] + len(data))
            labels.append(-1 if label is None else label)
            names.append(f"{path.name}:{len(labels) - 1}".encode())
    with whole_file(index, "wb") as file:
        np.savez(
            file,
            labels=np.array(labels, np.int64),
            offsets=np.array(offsets, np.int64),
            names=np.array(names, "S"),
            checksums=np.array(checksums, np.uint32),
        )


def _rows(files: list[Path]) -> Iterator[tuple[Path, dict | None, int | None]]:
    """(file, image, label) of every row. Raises UserError for a damaged file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        try:
            for batch in pq.ParquetFile(path).iter_batches(256, columns=["image", "label"]):
                for image, label in zip(batch["image"].to_pylist(), batch["label"].to_pylist(), strict=True):
                    yield path, image, label
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{str(path)!r} cannot be read: {_line(error)}") from error
