"""What this process may use of the machine: cores, memory, GPUs shared or not, a place for caches. No PyTorch here."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path

from .files import folder_of

BF16_FLAGS = ("avx512_bf16", "amx_bf16")
CGROUP = Path("/sys/fs/cgroup")  # of the container, as seen within it (version 2)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor (/proc/cpuinfo); empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processor() -> str:
    """The processor's name, family and model, and which instructions for bf16 it has: marketing names are shared."""
    found = cpuinfo()
    named = [found.get("model name") or platform.processor() or platform.machine()]
    named += [f"{field.removeprefix('cpu ')} {found[field]}" for field in ("cpu family", "model") if field in found]
    return ", ".join(named + [flag for flag in BF16_FLAGS if flag in found.get("flags", "").split()])


def multi_process_service() -> bool:
    """Whether processes share the GPU through NVIDIA's Multi-Process Service: whether its control daemon has a pipe."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()


def available_memory() -> int | None:
    """Bytes of main memory that new processes can have, within a container's limit; None if the system is silent."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None
    try:
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        statistics = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # none, or "max": no limit
        return free
    cached = int(statistics.get("inactive_file", 0))  # given back when asked for
    return max(0, min(free, limit - used + cached))


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


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of the device or of the machine."""
    signs = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # the latter is PyTorch's
    return named or any(sign in str(error) for sign in signs)
