"""CIFAR-10 in every form people have it: torchvision layout, Parquet (Hugging Face), class folders, download."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from pathlib import Path

import numpy as np

from ..errors import UserError, shown
from .array_cache import cached
from .download import FOLDER, TEST_FILES, TRAIN_FILES, download
from .sets import ImageSet, check_apart, image_set

__all__ = ["CLASSES", "download", "find", "load", "restricted_unpickle"]

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
COUNTS = (50_000, 10_000)  # training and test images


def find(root: Path) -> tuple[str, Path] | None:
    """The form and place of CIFAR-10 below `root`: ("torchvision" | "parquet" | "folders", path), or None."""
    root = Path(root)
    for folder in (root, root / FOLDER):
        if any((folder / name).exists() for name in (*TRAIN_FILES, *TEST_FILES)):
            return "torchvision", folder
    for folder in (root, root / "cifar10", root / "cifar-10"):
        for place in (folder, folder / "data", folder / "plain_text"):
            if list(place.glob("train*.parquet")) and _holds_cifar(place):
                return "parquet", place
        if any((folder / "train" / name).is_dir() for name in CLASSES):
            return "folders", folder
    return None


def load(form: str, path: Path, say=print) -> tuple[ImageSet, ImageSet]:
    """Train and test set. Raises UserError naming the file and the fault, before anything is trained.

    say(text) is told when images are missing, or in both sets (the original has no image in both, pixel for pixel).
    """
    read = {"torchvision": _load_batches, "parquet": _load_parquet, "folders": _load_folders}[form]
    train, test = read(Path(path))
    for part in (train, test):
        if part.images.shape[1:3] != (32, 32):
            raise UserError(f"{path}: images are {tuple(part.images.shape[1:3])} pixels, CIFAR-10 has (32, 32)")
    if (len(train), len(test)) != COUNTS:
        say(f"note: {path} holds {len(train)} training and {len(test)} test images; CIFAR-10 has {COUNTS}")
    check_apart(train, test, str(path), say)
    return train, test


def _load_batches(folder: Path):
    return _batches(folder, TRAIN_FILES), _batches(folder, TEST_FILES)


def _batches(folder: Path, files: dict[str, str]) -> ImageSet:
    parts = []
    for name, md5 in files.items():
        path = folder / name
        data = _read(path)
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != md5:
            raise UserError(f"{path} is damaged: its MD5 is {found}, CIFAR-10 has {md5}")
        batch = restricted_unpickle(data, str(path))
        if not isinstance(batch, dict) or not {b"data", b"labels"} <= set(batch):
            raise UserError(f"{path} is not a CIFAR-10 batch: data and labels are not in it")
        images, labels = batch[b"data"], batch[b"labels"]
        if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != 3072:
            raise UserError(f"{path}: data has shape {np.shape(images)}, expected (N, 3072)")
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise UserError(f"{path}: labels are not a list of whole numbers")
        images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, H, W, 3)
        parts.append(image_set(images, labels, str(path), len(CLASSES)))
    return ImageSet.joined(parts)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


class _NumpyOnly(pickle.Unpickler):
    """Builds numpy arrays and plain containers; any other name in the file is refused, so nothing can be executed."""

    allowed = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),  # as numpy 2 writes it
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    }

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        if name == "_reconstruct":
            return _reconstruct
        return getattr(np, name)


def _reconstruct(kind, shape, code):
    return np.ndarray.__new__(np.ndarray, (0,), code)  # the shape follows with the contents


def restricted_unpickle(data: bytes, what: str):
    """Read a pickle that holds numpy arrays only. Raises UserError for anything else, without executing it."""
    try:
        return _NumpyOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{what} is not a CIFAR-10 batch: {error or type(error).__name__}") from error


def _holds_cifar(folder: Path) -> bool:
    import pyarrow.parquet as pq

    path = sorted(folder.glob("train*.parquet"))[0]
    try:
        return "img" in pq.read_schema(path).names
    except Exception:  # damaged: say so when it is read
        return True


def _load_parquet(folder: Path):
    files = {split: _shards(folder, split) for split in ("train", "test")}
    return _decoded(
        folder, "cifar10-parquet", files, lambda split: _parquet(files[split], f"{folder}/{split}"), str(folder)
    )


def _shards(folder: Path, split: str) -> list[Path]:
    """The split's files; a set whose names say "00000-of-00003" must be complete."""
    paths = sorted(folder.glob(f"{split}*.parquet"))
    if not paths:
        raise UserError(f"{folder}: no {split}*.parquet beside the other files")
    for path in paths:
        match = re.search(r"-of-(\d+)", path.stem)
        if match and int(match[1]) != len(paths):
            raise UserError(f"{folder}: {path.name} is one of {int(match[1])} files, but {len(paths)} are there")
    return paths


def _parquet(paths: list[Path], what: str) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, labels = [], []
    for path in paths:
        try:
            table = pq.read_table(path, columns=["img", "label"])
            cells = table.column("img").to_pylist()
            labels.extend(table.column("label").to_pylist())
        except (OSError, KeyError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} is not a readable Parquet file with img and label: {reason}") from error
        for row, cell in enumerate(cells):
            data = cell.get("bytes") if isinstance(cell, dict) else cell
            images.append(_decode(data, f"{path} row {row}"))
    return _stack(images, what), np.asarray(labels)


def _load_folders(folder: Path):
    files = {split: _class_files(folder / split) for split in ("train", "test")}

    def decode(split):
        images = [_decode(_read(path), str(path)) for paths in files[split] for path in paths]
        return _stack(images, f"{folder / split}"), np.repeat(np.arange(len(CLASSES)), [len(p) for p in files[split]])

    flat = {split: [path for paths in classes for path in paths] for split, classes in files.items()}
    return _decoded(folder, "cifar10-folders", flat, decode, str(folder))


def _class_files(folder: Path) -> list[list[Path]]:
    """The image files of each class, in the order of CLASSES."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing beside the other split")
    found = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if found != sorted(CLASSES):
        raise UserError(f"{folder}: class folders are {found}, CIFAR-10 has {sorted(CLASSES)}")
    classes = []
    for name in CLASSES:
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
        if not files:
            raise UserError(f"{folder / name}: no .png or .jpg files in this class")
        classes.append(files)
    return classes


def _decoded(folder: Path, kind: str, files: dict[str, list[Path]], decode, what: str) -> tuple[ImageSet, ImageSet]:
    """Both splits as `decode(split) -> (images, labels)` gives them, cached beside the data."""

    def arrays():
        pairs = {split: decode(split) for split in files}
        return {f"{split}_{n}": pair[i] for split, pair in pairs.items() for i, n in enumerate(("images", "labels"))}

    stored = cached(folder, kind, [path for paths in files.values() for path in paths], arrays)
    return tuple(
        image_set(stored[f"{split}_images"], stored[f"{split}_labels"], f"{what}/{split}", len(CLASSES))
        for split in ("train", "test")
    )


def _decode(data: bytes | None, what: str) -> np.ndarray:
    from PIL import Image

    if not isinstance(data, bytes):
        raise UserError(f"{what}: {shown(data)} is not an encoded image")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode[0] in "FI":  # floats, which may be no numbers, and 16 bits: converting would clip them
                raise ValueError(f"its pixels are of mode {image.mode}, allowed are 8 bits")
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise UserError(f"{what}: not a readable image ({error})") from error


def _stack(images: list[np.ndarray], what: str) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise UserError(f"{what}: images of several sizes {sorted(shapes)[:4]}, CIFAR-10 has (32, 32, 3)")
    return np.stack(images) if images else np.zeros((0, 32, 32, 3), np.uint8)
