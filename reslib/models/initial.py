"""Initial weights without batch norm: He's rule for the nonlinearity, pool and dropout that precede a layer."""

from __future__ import annotations

import functools
import math

import torch
from torch import nn


@functools.cache
def signal(pieces: int = 0, area: int = 1, drop: float = 0.0) -> tuple[float, float]:
    """Mean square and variance over images of what a unit passes on, if it sees standard normal numbers: maxout of
    `pieces` or, with 0, ReLU; then the largest over `area` positions; then dropout with probability `drop`.

    Not computed at import: a process that is forked after PyTorch has started threads waits for threads it lacks.
    """
    x = torch.linspace(-9, 9, 20_001, dtype=torch.float64, device="cpu")  # also under torch.device("meta")
    count = area * max(pieces, 1)
    density = count * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi) * torch.special.ndtr(x) ** (count - 1)
    y = x if pieces else x.relu()
    mean, square = (torch.trapezoid(value * density, x).item() for value in (y, y * y))
    return square / (1 - drop), square / (1 - drop) - mean * mean


def variance_after(pieces: int = 0) -> float:
    """The variance that ReLU (0.34) or a maxout of `pieces` (0.68 of two) passes on."""
    return signal(pieces)[1]


def initialise(layer: nn.Module, variance: float = 0.0, std: float = 0.0) -> nn.Module:
    """Normal weights that turn inputs of this variance into responses of variance one (He et al. 2015), zero biases.

    The weights of a unit sum to zero, so that the positive mean which maxout and ReLU give to every channel is not
    passed on; without that and without batch norm it swamps the differences between images in a few layers. The first
    layer (variance 0) is left as drawn, for inputs of mean square one: neighbouring pixels are nearly equal, and zero
    sums would lose them. `std` overrides the size.
    """
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=std or (fan_in * (variance or 1.0)) ** -0.5)
    if variance:
        with torch.no_grad():
            layer.weight -= layer.weight.flatten(1).mean(1).view(-1, *[1] * (layer.weight.ndim - 1))
    nn.init.zeros_(layer.bias)
    return layer
