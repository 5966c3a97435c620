"""What this process may use of the machine: cores, main memory, a place for caches. No PyTorch here."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .files import folder_of


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """Bytes of main memory that new processes can have; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def user_cache() -> Path:
    """The folder for what can be made again: $XDG_CACHE_HOME/reslib, by default ~/.cache/reslib.

    In the temporary folder for a user without a home. Raises UserError for an $XDG_CACHE_HOME that cannot be a folder.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return folder_of("XDG_CACHE_HOME", given) / "reslib"
    try:
        return Path.home() / ".cache" / "reslib"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"reslib-cache-{os.getuid()}"
