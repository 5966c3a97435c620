"""Decoded images kept beside the data set, since decoding 60,000 small files takes longer than reading their pixels."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..errors import UserError, tell_once
from ..files import whole_file

FOLDER = ".reslib-cache"
VERSION = 1  # of what is stored


def cached(root: Path, kind: str, files: Iterable[Path], decode: Callable[[], dict[str, np.ndarray]]) -> dict:
    """What `decode()` gives, read from `root/.reslib-cache` when names, sizes and times of `files` are as they were.

    The arrays are stored without pickle. A cache that is damaged or cannot be written is done without.
    """
    digest = hashlib.sha256(f"{VERSION} {kind}".encode())
    for path in files:
        stat = path.stat()
        digest.update(f"\0{path.relative_to(root).as_posix()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    place = root / FOLDER / f"{kind}-{digest.hexdigest()[:16]}.npz"
    with contextlib.suppress(Exception):  # absent or damaged, which zip's check sums tell: decode again
        with np.load(place, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if all(isinstance(array, np.ndarray) for array in arrays.values()):  # numpy gives the bytes of other members
            return arrays
    arrays = decode()
    if any(array.dtype.hasobject for array in arrays.values()):  # not images and labels: the caller will say so
        return arrays
    try:
        with whole_file(place, "wb") as file:
            np.savez(file, **arrays)
        for old in place.parent.glob(f"{kind}-*.npz"):
            if old != place:
                old.unlink()
    except (OSError, UserError) as error:
        tell_once(f"note: the decoded images are not kept for the next time: {error}")
    return arrays
