"""Fetching CIFAR-10: checked by MD5, unpacked without trusting the archive, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import math
import os
import secrets
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from ..errors import UserError
from ..files import whole_file

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
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
MEMBERS = (*TRAIN_FILES, *TEST_FILES, "batches.meta")


def download(
    root: Path,
    url: str | None = None,
    md5: str = ARCHIVE_MD5,
    timeout: float = 20.0,
    say=print,
    patience: float = math.inf,
) -> Path:
    """Fetch CIFAR-10 to `root`, checked by MD5 and unpacked; an interrupted download leaves no partial files.

    url defaults to $RESLIB_CIFAR10_URL or the original address. patience: give up as soon as the speed so far means
    more than this many seconds in all (the original server is slow at times). Raises UserError when it cannot be had.
    """
    url = url or os.environ.get("RESLIB_CIFAR10_URL", URL)
    root = Path(root)
    archive = root / ARCHIVE
    if not (archive.is_file() and _md5(archive) == md5):
        say(f"downloading {url}")
        digest = hashlib.md5(usedforsecurity=False)
        with whole_file(archive, "wb") as file:
            for block in _blocks(url, timeout, say, patience):
                file.write(block)
                digest.update(block)
            if digest.hexdigest() != md5:
                raise UserError(f"{url}: its MD5 is {digest.hexdigest()}, expected {md5}; nothing was kept")
    return _unpack(archive, root)


def _blocks(url: str, timeout: float, say, patience: float = math.inf):
    """Yield the contents of `url`, telling the progress in tenths; UserError when it fails or ends early."""
    total, done, told, begun = 0, 0, 0, time.monotonic()
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            while block := answer.read(1 << 20):
                done += len(block)
                if total and done * 10 // total > told:
                    told = done * 10 // total
                    say(f"  {done >> 20} of {total >> 20} MiB")
                expected = (time.monotonic() - begun) * max(total, done) / done
                if expected > patience:
                    raise UserError(
                        f"{url} would take {expected / 60:.0f} minutes at this speed, more than {patience / 60:g}: "
                        "`reslib data download` waits for it"
                    )
                yield block
    except UserError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", None) or error
        at = f" after {done} bytes" if done else ""
        raise UserError(f"{url} cannot be downloaded: {reason or type(error).__name__}{at}") from error
    if done < total:
        raise UserError(f"{url} cannot be downloaded: it ended after {done} of {total} bytes")


def _unpack(archive: Path, root: Path) -> Path:
    """Write the known files of the archive to `root/cifar-10-batches-py`, which appears when they are all there."""
    target = root / FOLDER
    temporary = root / f".{FOLDER}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir()
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():  # by name, regular files only: an archive cannot write elsewhere
                folder, _, name = member.name.rpartition("/")
                if folder == FOLDER and name in MEMBERS and member.isfile():
                    with open(temporary / name, "wb") as file:
                        shutil.copyfileobj(tar.extractfile(member), file)
        missing = [name for name in (*TRAIN_FILES, *TEST_FILES) if not (temporary / name).exists()]
        if missing:
            raise UserError(f"{archive} cannot be unpacked: {FOLDER}/{missing[0]} is not in it as a file")
        with contextlib.suppress(OSError):  # exists: its files are replaced one by one
            temporary.rename(target)
            return target
        target.mkdir(exist_ok=True)
        for path in temporary.iterdir():
            path.replace(target / path.name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
