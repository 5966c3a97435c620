"""How cost grows: images/s and memory against depth, batch size and width, of reslib's fast path."""

from __future__ import annotations

import math
import statistics
import time

from ..errors import UserError
from .contenders import Reslib, recipe_for
from .memory import peak_memory

DEPTHS = {"cuda": (20, 32, 44, 56, 110, 218, 542, 1202), "cpu": (20, 32, 44, 56, 110, 218)}
BATCHES = {"cuda": (32, 64, 128, 256, 512, 1024, 2048, 4096), "cpu": (32, 64, 128, 256, 512, 1024)}
WIDTHS = {"cuda": (8, 16, 32, 64), "cpu": (8, 16, 32, 64)}
DEPTHS["mps"], BATCHES["mps"], WIDTHS["mps"] = DEPTHS["cpu"], BATCHES["cpu"], WIDTHS["cpu"]


def scaling(
    source, device, rounds, seconds, root=None, memory=True, depths=(), batches=(), widths=(), say=print, end=math.inf
):
    """Records (axis, value, model, batch_size, width, images_per_second, ...); one that does not fit says why.

    end: points that would begin after it (time.monotonic) are left out, and said to be.
    """
    depths = depths or DEPTHS[device.type]
    grid = [("depth", d, f"resnet{d}", 128, 16) for d in depths]
    grid += [("batch", b, "resnet20", b, 16) for b in batches or BATCHES[device.type]]
    grid += [("width", w, "resnet20", 128, w) for w in widths or WIDTHS[device.type]]
    records = []
    for axis, value, model, batch, width in grid:
        record = {"axis": axis, "value": value, "model": model, "batch_size": batch, "width": width}
        if time.monotonic() >= end:
            records.append(record | {"failed": "left out: time limit"})
            continue
        try:
            record |= _one(model, batch, width, source, device, rounds, seconds, root, memory)
            say(f"  {axis} {value}: {record['images_per_second']:.0f} images/s")
        except (RuntimeError, MemoryError, UserError) as error:
            record["failed"] = " ".join(str(error).split())[:200]
            say(f"  {axis} {value}: {record['failed']}")
        records.append(record)
    return records


def _one(model, batch, width, source, device, rounds, seconds, root, memory) -> dict:
    recipe = recipe_for(model, batch, source, "" if width == 16 else f"width={width}")
    way = "fast" if device.type == "cuda" else "eager"  # a compilation per point would take longer than the points
    made = Reslib(way, recipe, source, device)
    once = made.run(1)
    steps = max(1, round(seconds / max(once, 1e-6)))
    rates = [steps * batch / made.run(steps) for _ in range(rounds)]
    result = {
        "contender": way,
        "precision": made.precision,
        "images_per_second": statistics.median(rates),
        "images_per_second_turns": rates,
        "setup_seconds": made.setup_seconds,
    }
    made.close()
    if memory:
        result["peak_memory_mib"] = peak_memory(way, recipe, root, device, steps=2)
    return result
