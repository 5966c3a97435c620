"""Files that are whole or absent: written to a temporary name, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import secrets
import socket
from pathlib import Path

from .errors import UserError, shown

CODE = (".py", ".cpp", ".h")  # endings of the package's own sources, which digests of the code are of
ABANDONED = 3600.0  # seconds: no write takes as long; its process was killed, on this machine or another one


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w"):
    """Open a temporary neighbour of `path` for writing; it takes the name `path` only if the block succeeds.

    What killed processes left half-written under temporary names of the same file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        make_folder(path.parent)
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
        with open(temporary, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with contextlib.suppress(OSError):  # another process was first
                if path.stat().st_mtime - leftover.stat().st_mtime > ABANDONED:  # of one clock, the file system's
                    leftover.unlink()
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(path: Path):
    """Hold the lock file `path`: of all processes that do so, one at a time is in the block.

    Its folder is made. Raises UserError naming the folder when it cannot be written to.
    """
    with lock_file(path) as file:
        lock(file, fcntl.LOCK_EX)
        sign(file)
        yield


@contextlib.contextmanager
def alone_where_possible(path: Path):
    """`alone` for a cache: where files cannot be locked or written, without, and an entry may be lost."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(UserError):
            stack.enter_context(alone(path))
        yield


def lock(file, how: int) -> None:
    """`flock`. Raises BlockingIOError where another process holds the file, UserError where files cannot be locked."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(
            f"{file.name} cannot be locked: {error.strerror or error}; results must lie on a file system with flock "
            "(Lustre: mounted with -o flock)"
        ) from error


def lock_file(path: Path):
    """`path` opened to be locked, its folder made. Raises UserError naming the folder when it cannot be written to."""
    make_folder(path.parent)
    try:
        return open(path, "a")
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror or error}") from error


def make_folder(path: Path) -> None:
    """Make a folder with those above it. Raises UserError naming it when that cannot be, or it may only be read.

    If something else lies in its way, that is named too.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        above = next((p for p in (path, *path.parents) if os.path.lexists(p)), path)
        reason = error.strerror or error if above.is_dir() else f"{above} is in the way, not a folder"
        raise UserError(f"cannot write to {path}: {reason}") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"cannot write to {path}: it may only be read")


def check_place(path: Path) -> None:
    """Raise UserError naming a folder that could not be made or written to; nothing is made."""
    above = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not above.is_dir():
        raise UserError(f"cannot write to {path}: {above} is in the way, not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path}: {above} may only be read")


def sign(file) -> None:
    """Write into a lock file which process holds it; a full disk must not stop that one here."""
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)  # unbuffered: closing must not fail on a full disk either
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())


def holder(path: Path) -> str:
    """Which process holds a lock file that is held, as far as that one could say."""
    try:
        return path.read_text(encoding="utf-8").strip() or "another process"
    except (OSError, ValueError):
        return "another process"


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all. Raises UserError when it cannot be written."""
    with whole_file(path) as file:
        file.write(text)


def write_json(path: Path, value) -> None:
    """Write JSON, whole or not at all; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_of(what: str, text: str | Path) -> Path:
    """An absolute path; UserError naming `what` for text that no path can be."""
    try:
        path = Path(text).expanduser().resolve()
        path.exists()
    except (ValueError, RuntimeError, OSError) as error:  # a zero byte, ~nobody, too long
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{what} {shown(str(text))} cannot be a folder: {reason}") from error
    return path
