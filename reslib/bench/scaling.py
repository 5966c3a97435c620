"""How cost grows: images/s and memory against depth, batch size and width.

Of the fast path on a GPU, of eager steps elsewhere.
"""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time

from .. import tune
from ..errors import UserError
from ..machine import available_memory
from .contenders import Reslib, recipe_for
from .growth import CROSSING
from .memory import MIB, peak_memory

DEPTHS = (20, 32, 44, 56, 110, 218, 542, 1202)
BATCHES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
WIDTHS = (8, 16, 32, 64)
SPARE = 2**30  # bytes of main memory that are not asked for: the system kills whoever takes the last of it
UNKNOWN = 8 * 2**30  # what may be used where the system does not say what is free


def scaling(
    source, device, rounds, seconds, root=None, memory=True, depths=(), batches=(), widths=(), say=print, end=math.inf,
    keep=lambda records: None,
):  # fmt: skip
    """Records (axis, value, model, batch_size, width, images_per_second, ...); one that does not fit says why.

    What a point needs of main memory is reckoned from the one before it on its axis, in proportion to the value.
    end: points that would begin after it (time.monotonic) are left out, and said to be. keep(records) is called after
    each point.
    """
    depth, size, filters = CROSSING["depth"], CROSSING["batch"], CROSSING["width"]
    grid = [("depth", d, f"resnet{d}", size, filters) for d in depths or DEPTHS]
    grid += [("batch", b, f"resnet{depth}", b, filters) for b in batches or BATCHES]
    grid += [("width", w, f"resnet{depth}", size, w) for w in widths or WIDTHS]
    records = []
    for axis, value, model, batch, width in grid:
        record = {"axis": axis, "value": value, "model": model, "batch_size": batch, "width": width}
        if time.monotonic() >= end:
            records.append(record | {"failed": "left out: time limit"})
            continue
        if reason := _too_large(record, records):
            records.append(record | {"failed": reason})
            say(f"  {axis} {value}: {reason}")
            continue
        try:
            record |= _one(model, batch, width, source, device, rounds, seconds, root, memory, end)
            say(f"  {axis} {value}: {record['images_per_second']:.0f} images/s")
        except (RuntimeError, MemoryError, UserError) as error:
            record["failed"] = " ".join(str(error).split())[:200]
            say(f"  {axis} {value}: {record['failed']}")
        finally:
            gc.collect()  # a network refers to itself
            tune.release_memory()
        records.append(record)
        keep(records)
    return records


def _too_large(record: dict, before: list[dict]) -> str:
    """Why a point would not fit into main memory, or ""."""
    smaller = [r for r in before if r["axis"] == record["axis"] and (r.get("peak_memory_mib") or {}).get("process")]
    if not smaller:
        return ""
    free = UNKNOWN if (free := available_memory()) is None else free
    needed = smaller[-1]["peak_memory_mib"]["process"] * MIB * record["value"] / smaller[-1]["value"]
    if needed + SPARE <= free:
        return ""
    return f"left out: about {needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"


def _one(model, batch, width, source, device, rounds, seconds, root, memory, end) -> dict:
    recipe = recipe_for(model, batch, source, "" if width == CROSSING["width"] else f"width={width}")
    way = "fast" if device.type == "cuda" else "eager"  # a compilation per point would take longer than the points
    # first, as this process keeps what it takes
    peak = peak_memory(way, recipe, root, device, steps=2) if memory else None
    if memory and peak is None and device.type == "cpu" and sys.platform.startswith("linux"):
        raise MemoryError("its process was killed, most likely for its memory")
    made = Reslib(way, recipe, source, device)
    once = made.run(1)
    steps = max(1, round(seconds / max(once, 1e-6)))
    rates = []
    while len(rates) < rounds and (not rates or time.monotonic() < end):
        rates.append(steps * batch / made.run(steps))
    result = {
        "contender": way,
        "what": made.what,
        "precision": made.precision,
        "images_per_second": statistics.median(rates),
        "images_per_second_turns": rates,
        "setup_seconds": made.setup_seconds,
    }
    made.close()
    return result | ({"peak_memory_mib": peak} if memory else {})
