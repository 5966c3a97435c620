"""Contenders side by side in one process: alternating rounds, medians, spread."""

from __future__ import annotations

import math
import statistics
import time

from ..errors import reason
from ..models import build_model
from ..recipe import parse_options
from .contenders import LONG_RUN, contender, recipe_for
from .memory import peak_memory
from .roofline import Roofline, floors

EVALUATIONS = 128  # of such a run, every 500 iterations


def compare(
    names, model, batch, source, device, rounds, seconds, root=None, workers=None, memory=True, say=print, end=math.inf
):
    """Every contender's images/s on one model and batch size, over `rounds` turns of about `seconds`: one record.

    A contender that cannot be set up is named with the reason; without the first, the measure, there is no comparison.
    end: no turn begins after it (time.monotonic), but for the first.
    """
    recipe = recipe_for(model, batch, source)
    made, failed = [], {}
    try:
        for name in names:
            _set_up(name, made, failed, say, recipe=recipe, source=source, device=device, root=root, workers=workers)
        roofline = Roofline(device, size=None if seconds >= 1 else 512)  # a glance waits for no large product
        rates, parts = _turns(made, rounds, seconds, batch, roofline, end)
        machine = roofline.summary()
        net = build_model(model, len(source.classes), **parse_options(recipe.options))
        rows = []
        for c in made:
            row = _row(c, rates[c.name], rates[names[0]], parts[c.name] or [c.parts(3)], batch)
            limits = floors(net, recipe.crop_size, batch, c.precision, machine)
            row |= limits
            row["multiply_adds_per_second"] = limits["multiply_adds_per_step"] / row["seconds_per_step"]
            row["share_of_matrix_rate"] = limits["arithmetic_floor_seconds"] / row["seconds_per_step"]
            c.settle()
            rows.append(row)
    finally:
        for c in made:
            c.close()
    made.clear()
    for row in rows if memory else ():
        try:
            row["peak_memory_mib"] = peak_memory(row["contender"], recipe, root, device, workers)
        except Exception as error:  # the speeds are worth keeping
            say(f"  {row['contender']}: peak memory not measured, {reason(error)}")
    return {
        "model": model,
        "batch_size": batch,
        "rounds": len(rates[names[0]]),
        "machine": machine,
        "contenders": rows,
        "failed": failed,
    }


def _set_up(name: str, made: list, failed: dict, say, **what) -> None:
    """Add a contender to those made, or to `failed` with the reason; the first, the measure, must be there.

    what: further arguments of `contender`.
    """
    say(f"  {name}: setting up")
    try:
        made.append(contender(name, **what, cold=True, say=say))
    except Exception as error:
        if not made and not failed:
            raise
        failed[name] = reason(error)
        say(f"  {name}: failed, {failed[name]}")
        return
    say(f"  {name}: {made[-1].what}; ready after {made[-1].setup_seconds:.1f} s")


def _turns(made, rounds: int, seconds: float, batch: int, roofline: Roofline, end: float) -> tuple[dict, dict]:
    """Every contender's images/s and the parts of its step, turn by turn, and in each turn the machine's own rates."""
    steps = {c.name: _steps_for(c, seconds) for c in made}
    rates, parts = {c.name: [] for c in made}, {c.name: [] for c in made}
    for number in range(rounds):
        if number and time.monotonic() >= end:
            break
        for c in made if number % 2 == 0 else reversed(made):  # what drifts, drifts for all
            c.run(_warm(c))
            rates[c.name].append(steps[c.name] * batch / c.run(steps[c.name]))
            if not getattr(c, "captured", False):
                parts[c.name].append(c.parts(2))  # of the same turn: they drift with the speed
            c.settle()
        roofline.measure()
    return rates, parts


def _warm(c) -> int:
    """Untimed steps at the start of a turn: what the workers prepared while others were measured is used up."""
    return 1 + (4 * getattr(c, "workers", 0) if c.device.type == "cuda" else 0)


def _steps_for(c, seconds: float) -> int:
    once = c.run(2) / 2
    return max(2, round(seconds / max(once, 1e-6)))


def _row(c, rates: list[float], reference: list[float], parts: list[dict], batch: int) -> dict:
    """A contender's numbers; ratios are taken turn by turn, so that a slow minute counts on both sides."""
    rate = statistics.median(rates)
    ratios = [mine / other for mine, other in zip(rates, reference, strict=True)]
    per_image = c.evaluation()
    whole = c.setup_seconds + LONG_RUN * batch / rate + EVALUATIONS * 10_000 * per_image
    return {
        "contender": c.name,
        "what": c.what,
        "precision": c.precision,
        "images_per_second": rate,
        "images_per_second_turns": rates,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "seconds_per_step": batch / rate,
        "setup_seconds": c.setup_seconds,
        "speed": getattr(c, "speed", {}),
        "parts": {name: statistics.median(turn[name] for turn in parts) for name in parts[0]},
        "parts_are_of_the_eager_step": getattr(c, "captured", False),
        "evaluation_images_per_second": 1 / per_image,
        "seconds_to_the_end_of_64k": whole,
    }
