"""Thin nets on a processor with matrix tiles (Intel AMX): convolution, batch norm, addition, ReLU in one go.

There the sums of a convolution take a tenth of the time that its maps take through memory, and PyTorch's kernels for 16
to 64 filters reach a small part of either. Here both ways of a unit go image by image, so that what lies between the
steps stays in a core's caches; the loops are C++ (units.cpp), compiled once per machine (native.py).
"""

from __future__ import annotations

from .. import native, tune
from ..fused_norm import FusedLoss
from ..models.conv_norm_relu import without
from .unit import two_units, unit

NAME = "tile units"  # in records and messages


class TilesLoss(FusedLoss):
    """`loss(x, y, progress)` with units on tiles, which `units` counts; what these leave is as by `loss` alone."""

    field, table, refused = "units", tune.UNITS, f"no {NAME}"

    def __init__(self, loss):
        super().__init__(without(loss))
        self.fuses, self.units = isinstance(loss, FusedLoss), 0
        self.beside = " | fused norms" * self.fuses

    @property
    def taken(self) -> int:
        """Units on tiles, up to now."""
        return self.units

    @staticmethod
    def unavailable(step) -> str:
        """Why no unit of a step can be computed so; empty if some can."""
        return unavailable(step.precision)

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
