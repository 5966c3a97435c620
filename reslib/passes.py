"""One forward and backward pass of a network, tried without a trace, and whether two ways of it compute the same."""

from __future__ import annotations

import copy
import math
import statistics
import time

import torch

from .engine import Step
from .numerics import autocast

TOLERANCE = {"fp32": 0.01, "bf16": 0.1}  # of loss and gradient, relative: how far another pass may be off
SHARE = 0.01  # of the length of a whole step: what moves by less is not compared alone, there rounding dominates
ALONE = {True: 0.5, False: 0.1}  # how far the change of one tensor may be off, of a parameter and of a statistic
SETTLED = 0.01  # of a statistic itself, how far it may be off besides: a settled average changes by noise alone
NO_WORSE = 1.5  # times as far from double precision as the eager gradient, where eager itself exceeds TOLERANCE


class Passes:
    """Forward and backward passes of a step's network on one batch, that leave no trace in it."""

    def __init__(self, step: Step, x, y):
        self.step, self.x, self.y = step, x.contiguous(memory_format=step.layout), y

    def seconds(self, loss) -> float:
        """Seconds of one forward and backward pass."""
        return self.run(loss)[0]

    def gain(self, loss, rounds: int) -> float:
        """How many times as fast passes through `loss` are as the step's own: the median ratio of turns of both."""
        return statistics.median(self.seconds(self.step.loss) / self.seconds(loss) for _ in range(rounds))

    def run(self, loss) -> tuple[float, float, list[torch.Tensor]]:
        """(seconds, loss, gradients) of one pass through `loss`."""
        step, state = self.step, torch.get_rng_state()
        on_gpu = torch.cuda.get_rng_state(step.device) if step.device.type == "cuda" else None
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
            if on_gpu is not None:
                torch.cuda.set_rng_state(on_gpu, step.device)
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
    """The larger of the relative differences of two passes' losses and gradients, NaN where one of these is."""
    (_, value, gradients), (_, other, others) = mine, theirs
    if len(gradients) != len(others):
        return float("inf")
    off = sum((g - o).double().square().sum() for g, o in zip(gradients, others, strict=True))
    size = sum(g.double().square().sum() for g in gradients)
    parts = abs(value - other) / max(abs(value), 1e-9), float((off / size.clamp(min=1e-18)).sqrt())
    return math.nan if any(map(math.isnan, parts)) else max(parts)  # max alone passes over a NaN that is not first


def unlike_step(names, before, plain, other, allowed: float, precision: str) -> str:
    """Where two whole steps from one state go different ways, in words; "" where they go the same.

    Each a list of tensors in order of `names`, whose values are whether it is a parameter: the state, and what the
    plain and the other step made of it. allowed: how far, relative to the plain step, all parameters together may be
    off; while that is within the precision's tolerance, each that matters is looked at alone, and statistics always.
    """
    moved = {name: (m - b).double() for name, b, m in zip(names, before, plain, strict=True) if m.is_floating_point()}
    off, size = {}, {name: float(m.double().norm()) for name, m in zip(names, plain, strict=True)}
    for name, m, o in zip(names, plain, other, strict=True):
        if name in moved:
            off[name] = float((o - m).double().norm())
        elif not torch.equal(m, o):
            return f"{name} would be another"
    length = {name: float(change.norm()) for name, change in moved.items()}
    parameters = [name for name in moved if names[name]]
    whole, together = (math.hypot(*(d[name] for name in parameters)) for d in (length, off))
    if not together <= allowed * whole:
        return f"a whole step would be off by {100 * together / max(whole, 1e-18):.1f}%"
    for name in moved:
        small = names[name] and (length[name] < SHARE * whole or together > TOLERANCE[precision] * whole)
        settled = 0.0 if names[name] else SETTLED * size[name]
        if not small and not off[name] <= ALONE[names[name]] * length[name] + settled:
            return f"{name} would be off by {100 * off[name] / max(length[name], 1e-18):.1f}%"
    return ""
