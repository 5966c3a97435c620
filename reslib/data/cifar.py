"""CIFAR-10 in every form people have it: torchvision layout, Parquet (Hugging Face), class folders, download."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..files import whole_file
from .sets import ImageSet, image_set

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
FOLDER = "cifar-10-batches-py"
TRAIN_FILES = {  # MD5 as published with the data set
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
TEST_FILES = {"test_batch": "40351d587109b95175f43aff81a1287e"}
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"


def find(root: Path) -> tuple[str, Path] | None:
    """The form and place of CIFAR-10 below `root`: ("torchvision" | "parquet" | "folders", path), or None."""
    root = Path(root)
    for folder in (root, root / FOLDER):
        if (folder / "data_batch_1").exists() or (folder / "test_batch").exists():
            return "torchvision", folder
    for folder in (root, root / "cifar10", root / "cifar-10"):
        for place in (folder, folder / "data", folder / "plain_text"):
            if list(place.glob("train*.parquet")) and _holds_cifar(place):
                return "parquet", place
        if all((folder / split / CLASSES[0]).is_dir() for split in ("train", "test")):
            return "folders", folder
    return None


def load(form: str, path: Path) -> tuple[ImageSet, ImageSet]:
    """Train and test set. Raises UserError naming the file and the fault, before anything is trained."""
    read = {"torchvision": _load_batches, "parquet": _load_parquet, "folders": _load_folders}[form]
    train, test = read(Path(path))
    if train.images.shape[1:3] != (32, 32) or test.images.shape[1:3] != (32, 32):
        raise UserError(f"{path}: images are {tuple(train.images.shape[1:3])} pixels, CIFAR-10 has (32, 32)")
    if len(test) > len(train):
        raise UserError(f"{path}: {len(train)} training and {len(test)} test images: train and test look swapped")
    return train, test


def _load_batches(folder: Path):
    return _batches(folder, TRAIN_FILES), _batches(folder, TEST_FILES)


def _batches(folder: Path, files: dict[str, str]) -> ImageSet:
    images, labels = [], []
    for name, md5 in files.items():
        path = folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        found = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if found != md5:
            raise UserError(f"{path} is damaged: its MD5 is {found}, CIFAR-10 has {md5}")
        batch = restricted_unpickle(data, str(path))
        images.append(batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # (N, H, W, 3)
        labels.extend(batch[b"labels"])
    return image_set(np.concatenate(images), np.asarray(labels), str(folder), len(CLASSES))


class _NumpyOnly(pickle.Unpickler):
    """Builds numpy arrays and plain containers; any other name in the file is refused, so nothing can be executed."""

    allowed = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}

    def find_class(self, module, name):
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        if name == "_reconstruct":
            return _reconstruct
        return getattr(np, name)


def _reconstruct(kind, shape, code):
    return np.ndarray.__new__(np.ndarray, shape, code)


def restricted_unpickle(data: bytes, what: str):
    """Read a pickle that holds numpy arrays only. Raises UserError for anything else, without executing it."""
    try:
        return _NumpyOnly(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UserError(f"{what} is not a CIFAR-10 batch: {error}") from error


def _holds_cifar(folder: Path) -> bool:
    import pyarrow.parquet as pq

    path = sorted(folder.glob("train*.parquet"))[0]
    try:
        return "img" in pq.read_schema(path).names
    except Exception:  # damaged: say so when it is read
        return True


def _load_parquet(folder: Path):
    return tuple(_parquet(folder, split) for split in ("train", "test"))


def _parquet(folder: Path, split: str) -> ImageSet:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(folder.glob(f"{split}*.parquet"))
    if not paths:
        raise UserError(f"{folder}: no {split}*.parquet beside the other files")
    images, labels = [], []
    for path in paths:
        try:
            table = pq.read_table(path, columns=["img", "label"])
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} is not a readable Parquet file with img and label: {error}") from error
        for row, cell in enumerate(table.column("img").to_pylist()):
            images.append(_decode(cell["bytes"] if cell else None, f"{path} row {row}"))
        labels.extend(table.column("label").to_pylist())
    return image_set(_stack(images, str(folder)), np.asarray(labels), f"{folder}/{split}", len(CLASSES))


def _load_folders(folder: Path):
    return tuple(_folders(folder / split) for split in ("train", "test"))


def _folders(folder: Path) -> ImageSet:
    found = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if found != sorted(CLASSES):
        raise UserError(f"{folder}: class folders are {found}, CIFAR-10 has {sorted(CLASSES)}")
    images, labels = [], []
    for label, name in enumerate(CLASSES):
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
        if not files:
            raise UserError(f"{folder / name}: no .png or .jpg files in this class")
        images.extend(_decode(p.read_bytes(), str(p)) for p in files)
        labels.extend([label] * len(files))
    return image_set(_stack(images, str(folder)), np.asarray(labels), str(folder), len(CLASSES))


def _decode(data: bytes | None, what: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data or b"")) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise UserError(f"{what}: not a readable image ({error})") from error


def _stack(images: list[np.ndarray], what: str) -> np.ndarray:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        raise UserError(f"{what}: images of several sizes {sorted(shapes)[:4]}, CIFAR-10 has (32, 32, 3)")
    return np.stack(images) if images else np.zeros((0, 32, 32, 3), np.uint8)


def download(root: Path, url: str | None = None, md5: str = ARCHIVE_MD5, timeout: float = 20.0, say=print) -> Path:
    """Fetch CIFAR-10 to `root`, checked by MD5 and unpacked; an interrupted download leaves no partial files.

    url defaults to $RESLIB_CIFAR10_URL or the original address. Raises UserError when it cannot be had.
    """
    url = url or os.environ.get("RESLIB_CIFAR10_URL", URL)
    root = Path(root)
    archive = root / "cifar-10-python.tar.gz"
    if not (archive.exists() and _md5(archive) == md5):
        say(f"downloading {url}")
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer, whole_file(archive, "wb") as file:
                total, done, told = int(answer.headers.get("Content-Length") or 0), 0, 0
                while block := answer.read(1 << 20):
                    file.write(block)
                    digest.update(block)
                    done += len(block)
                    if total and done * 10 // total > told:
                        told = done * 10 // total
                        say(f"  {done >> 20} of {total >> 20} MiB")
                if digest.hexdigest() != md5:
                    raise UserError(f"{url}: its MD5 is {digest.hexdigest()}, expected {md5}; nothing was kept")
        except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{url} cannot be downloaded: {getattr(error, 'reason', error)}") from error
    try:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():  # by name, regular files only: an archive cannot write elsewhere
                folder, _, name = member.name.rpartition("/")
                if folder == FOLDER and name in (*TRAIN_FILES, *TEST_FILES, "batches.meta") and member.isfile():
                    with whole_file(root / FOLDER / name, "wb") as file:
                        file.write(tar.extractfile(member).read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}") from error
    return root / FOLDER


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
