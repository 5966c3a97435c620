"""Peak memory of a contender, in a process of its own: what one contender freed cannot hide what the next one needs."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

MIB = 2**20


def peak_memory(name: str, recipe, root, device, workers=None, steps: int = 3) -> dict[str, float] | None:
    """MiB at most held while training: of the GPU's memory, or of the process with its libraries, without its workers.

    None where it cannot be measured (no such count on this system, or out of memory).
    """
    if device.type == "cuda":
        return _on_gpu(name, recipe, root, device, workers, steps)
    arguments = (name, recipe, root, str(device), workers, steps, torch.get_num_threads())
    # Not a Pool: its processes may not start the usual loop's workers.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_on_processor, *arguments).result()
        except (RuntimeError, MemoryError):  # BrokenProcessPool, of a process that was killed, is among them
            return None


def _on_gpu(name, recipe, root, device, workers, steps):
    from .. import data
    from .contenders import contender

    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        made = contender(name, recipe, data.load(recipe.dataset, root), device, root, workers, say=_silent)
        made.run(steps)
    except torch.OutOfMemoryError:
        return None
    made.close()
    return {"device": (torch.cuda.max_memory_allocated(device) - before) / MIB}


def _on_processor(name, recipe, root, device, workers, steps, threads):
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    torch.set_num_threads(threads)
    from .. import data
    from .contenders import contender

    made = contender(name, recipe, data.load(recipe.dataset, root), torch.device(device), root, workers, say=_silent)
    made.run(steps)
    made.close()
    unit = 1024 if os.uname().sysname == "Linux" else 1  # kilobytes there, bytes on macOS
    own = _high_water() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"process": own / MIB}


def _high_water() -> int:
    """Bytes of main memory that this process held at most; 0 where the system does not say.

    Linux starts `ru_maxrss` of a new process at what its parent held, which may be more than this one ever will.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, StopIteration):
        return 0


def _silent(text: str) -> None:
    """Nothing is said twice: the parent has said it."""
