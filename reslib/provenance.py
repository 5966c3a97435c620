"""Where a number comes from: the commit, the software and the machine of a run."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from .files import CODE
from .machine import cpuinfo, processor

PACKAGE = Path(__file__).resolve().parent


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()


@cache
def commit() -> tuple[str, bool | None]:
    """The commit of the source and whether the package differed from it; ("unknown", None) outside a checkout."""
    try:
        if not (PACKAGE.parent / ".git").exists():  # installed: a repository further up is another project's
            raise OSError
        head = git("rev-parse", "HEAD")
        dirty = bool(git("status", "--porcelain", "--", str(PACKAGE)))
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("RESLIB_COMMIT", "unknown"), None
    return head, dirty


@cache
def is_shallow() -> bool:
    """Whether the checkout lacks its history, or is none."""
    try:
        return git("rev-parse", "--is-shallow-repository") != "false"
    except (OSError, subprocess.SubprocessError):
        return True


@cache
def has_commit(name: str) -> bool:
    """Whether the checkout of the package has this commit; True where that cannot be told, as in a shallow clone."""
    try:
        if is_shallow():
            return True
        return git("cat-file", "-t", name) == "commit"
    except subprocess.CalledProcessError:
        return False
    except (OSError, subprocess.SubprocessError):
        return True


def within_checkout(path: Path) -> bool:
    """Whether a path lies in the git checkout that the package comes from."""
    root = PACKAGE.parent
    return (root / ".git").exists() and Path(path).resolve().is_relative_to(root)


@cache
def source() -> str:
    """Twelve hexadecimal digits over the package's Python and C++ files: the code, whatever git knows of it."""
    return digest([file for kind in CODE for file in PACKAGE.rglob(f"*{kind}")], PACKAGE)


def digest(files: Iterable[Path], root: Path) -> str:
    """Twelve hexadecimal digits over names below `root` and contents of files."""
    found = hashlib.sha256()
    for file in sorted(files):
        found.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def git(*arguments: str, strip: bool = True, text: bool = True) -> str | bytes:
    """What git says of the checkout of the package, as text or bytes. Raises OSError and SubprocessError."""
    done = subprocess.run(
        ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=text, check=True, timeout=30
    )
    return done.stdout.strip() if strip else done.stdout


def device_name(device: torch.device) -> str:
    """The marketing name of the accelerator, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = cpuinfo().get("model name") or platform.processor() or platform.machine()
    return f"{name} ({_threads()})"


def _threads() -> str:
    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count > 1)}"


def environment(device: torch.device) -> dict:
    """Evidence about software and machine, as it stands in summary.json."""
    head, dirty = commit()
    return {
        "commit": head,
        "dirty": dirty,
        "source": source(),
        "device": device.type,
        "device_name": device_name(device),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),  # a plain str: a checkpoint with torch's own class of it cannot be read back
        "torchvision": version("torchvision"),  # not imported: that takes seconds
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
    }
