"""One forward and backward pass of a network, tried without a trace, and whether two ways of it compute the same."""

from __future__ import annotations

import copy
import time

import torch

from .engine import Step
from .numerics import autocast

TOLERANCE = {"fp32": 0.01, "bf16": 0.1}  # of loss and gradient, relative: how far another pass may be off
NO_WORSE = 1.5  # times as far from double precision as the eager gradient, where that one is further off than this


class Passes:
    """Forward and backward passes of a step's network on one batch, that leave no trace in it."""

    def __init__(self, step: Step, x, y):
        self.step, self.x, self.y = step, x.contiguous(memory_format=step.layout), y

    def seconds(self, loss) -> float:
        """Seconds of one forward and backward pass."""
        return self.run(loss)[0]

    def run(self, loss) -> tuple[float, float, list[torch.Tensor]]:
        """(seconds, loss, gradients) of one pass through `loss`."""
        step, state = self.step, torch.get_rng_state()
        kept = [b.clone() for b in step.model.buffers()]
        try:
            torch.manual_seed(0)
            begun = time.perf_counter()
            with autocast(step.device, step.precision):
                value, _ = loss(self.x, self.y, step.progress)
            value.backward()
            taken = time.perf_counter() - begun
            gradients = [p.grad for p in step.model.parameters() if p.grad is not None]
        finally:
            step.optimizer.zero_grad(set_to_none=True)
            torch.set_rng_state(state)
            with torch.no_grad():
                for buffer, old in zip(step.model.buffers(), kept, strict=True):
                    buffer.copy_(old)
        return taken, float(value.detach()), gradients

    def exact(self) -> tuple[float, float, list[torch.Tensor]]:
        """As `run`, of the eager pass in double precision."""
        begun = time.perf_counter()
        loss = copy.deepcopy(self.step.loss).double()
        value, _ = loss(self.x.double(), self.y, self.step.progress)
        value.backward()
        gradients = [p.grad for p in loss.parameters() if p.grad is not None]
        return time.perf_counter() - begun, float(value.detach()), gradients


def sound(passes: Passes, mine, theirs) -> bool:
    """Whether another pass computes the eager one's loss and gradient, as far as the precision determines them.

    Deep plain nets multiply rounding errors layer by layer: at the start two right gradients in fp32 differ by far more
    than the tolerance. There the other one shall be about as near to double precision as the eager one.
    """
    tolerance = TOLERANCE[passes.step.precision]
    if difference(mine, theirs) <= tolerance:
        return True
    if passes.step.stochastic or abs(mine[1] - theirs[1]) > tolerance * abs(mine[1]):
        return False  # dropout in double precision draws other numbers
    exact = passes.exact()
    return difference(exact, theirs) <= NO_WORSE * difference(exact, mine)


def difference(mine, theirs) -> float:
    """The larger of the relative differences of two passes' losses and gradients."""
    (_, value, gradients), (_, other, others) = mine, theirs
    if len(gradients) != len(others):
        return float("inf")
    off = sum((g - o).double().square().sum() for g, o in zip(gradients, others, strict=True))
    size = sum(g.double().square().sum() for g in gradients)
    return max(abs(value - other) / max(abs(value), 1e-9), float((off / size.clamp(min=1e-18)).sqrt()))
