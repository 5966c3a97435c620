"""Thin nets on a processor with matrix tiles (Intel AMX): convolution, batch norm, addition, ReLU in one go.

There the sums of a convolution take a tenth of the time that its maps take through memory, and PyTorch's kernels for 16
to 64 filters reach a small part of either. Here both ways of a unit go image by image, so that what lies between the
steps stays in a core's caches; the loops are C++ (units.cpp), compiled once per machine (native.py).
"""

from __future__ import annotations

from .. import native, trials, tune
from ..errors import first_line
from ..fused_norm import FusedLoss
from ..models.conv_norm_relu import without
from ..passes import Passes, difference, sound
from ..tune import LONG, MARGIN, Choice
from .unit import two_units, unit

NAME = "tile units"  # in records and messages
ROUNDS = 9  # turns of both ways of a whole pass


class TilesLoss(FusedLoss):
    """`loss(x, y, progress)` with units on tiles, which `units` counts; what these leave is as by `loss` alone."""

    def __init__(self, loss):
        super().__init__(without(loss))
        self.fuses, self.units = isinstance(loss, FusedLoss), 0

    def _way(self, conv, norm, relu, x, added):
        y = unit(conv, norm, relu, x, added)
        self.units += y is not None
        return super()._way(conv, norm, relu, x, added) if y is None and self.fuses else y

    def _two(self, first, second, x, added):
        y = two_units(first, second, x, added)
        self.units += 2 * (y is not None)
        return y


def unavailable(precision: str) -> str:
    """Why no unit can be computed so in this precision; empty if some can."""
    if precision != "bf16":
        return "in bf16 alone"
    if reason := native.unavailable():
        return reason
    return "" if native.loops().tile_units() else "for processors and compilers alone that know matrix tiles (AMX)"


def choose(step, chosen: Choice, batch, left: int, limit=None, before=None, say=print) -> TilesLoss | None:
    """A step's loss on tiles: where the run was begun so, was asked for so, or a trial finds it faster.

    The arguments are those of compilation.accelerate; the step is as it would train without.
    """
    begun = bool(before and before.get("units"))
    sure = begun or bool(chosen.units)
    if chosen.units is False or chosen.compile or (not sure and (before or left < LONG)):
        return None
    if reason := unavailable(step.precision):
        if sure:
            say(f"no {NAME}: {reason}")
        return None
    x, y = batch()
    passes = Passes(step, x[: len(x) // step.parts], y[: len(y) // step.parts])
    loss = TilesLoss(step.loss)
    if not sure and limit is not None and limit < 10 * ROUNDS * passes.seconds(step.loss):
        return None
    try:
        theirs = passes.run(loss)
    except MemoryError as error:
        say(f"no {NAME}: {first_line(error)}")
        return None
    if not loss.units or begun:  # it was judged then
        return loss if loss.units else None
    mine = passes.run(step.loss)
    if not sound(passes, mine, theirs):
        say(f"no {NAME}: loss or gradient would be off by {100 * difference(mine, theirs):.1f}%")
        return None
    return loss if sure or _known_to_win(passes, loss, chosen) else None


def _known_to_win(passes: Passes, loss: TilesLoss, chosen: Choice) -> bool:
    """Whether passes on tiles take less time, tried once per machine, network and what else is done."""
    key = trials.network_key(passes.step, passes.x, chosen) + " | fused norms" * loss.fuses
    return trials.remembered(tune.UNITS, key, lambda: passes.gain(loss, ROUNDS) > MARGIN)
