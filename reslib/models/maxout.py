"""Maxout network, row 1 of Table 6: Goodfellow et al., *Maxout Networks* (2013).

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .initial import initialise, signal


def maxout(x: Tensor, pieces: int) -> Tensor:
    """Largest of `pieces` groups of channels: (N, pieces * C, ...) -> (N, C, ...), piece j in channels jC to (j+1)C.

    The groups are slices, so nothing is copied and the memory format (channels_last) stays.
    """
    return functools.reduce(torch.maximum, x.chunk(pieces, dim=1))


def limited(weight: Tensor, limit: float) -> Tensor:
    """The weights with each unit's norm cut to `limit` (0: none), the max-norm constraint as a part of the forward."""
    if not limit:
        return weight
    norm = weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1))
    return weight * (limit / norm.clamp(min=1e-12)).clamp(max=1.0)


class MaxoutConv(nn.Module):
    """Convolution, batch norm if asked for, maxout of two: (N, C_in, H, W) -> (N, C_out, H', W')."""

    pieces = 2

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        padding: int,
        variance: float,
        batch_norm: bool = False,
        limit: float = 0.0,
    ):
        super().__init__()
        self.conv = initialise(nn.Conv2d(inputs, outputs * self.pieces, kernel, padding=padding), variance)
        self.limit = limit
        self.norm = nn.Identity()
        if batch_norm:  # without a scale, and with the convolution's bias as its shift: no parameter more or less
            self.norm = nn.BatchNorm2d(outputs * self.pieces)
            del self.norm.weight  # a constant in its place: without one CUDA gives no gradient of the shift
            self.norm.register_buffer("weight", torch.ones(outputs * self.pieces), persistent=False)
            self.conv.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        x = F.conv2d(x, limited(conv.weight, self.limit), conv.bias, padding=conv.padding)
        return maxout(self.norm(x), self.pieces)


class MaxoutLinear(nn.Module):
    """Linear layer and maxout: (N, inputs) -> (N, outputs)."""

    def __init__(self, inputs: int, outputs: int, pieces: int, variance: float, limit: float = 0.0):
        super().__init__()
        self.linear = initialise(nn.Linear(inputs, outputs * pieces), variance)
        self.pieces, self.limit = pieces, limit

    def forward(self, x: Tensor) -> Tensor:
        return maxout(F.linear(x, limited(self.linear.weight, self.limit), self.linear.bias), self.pieces)


class MaxoutNet(nn.Module):
    """Maxout network (Goodfellow et al. 2013): three convolutional maxout layers, a dense one, softmax, dropout.

    Widths of the released cifar10.yaml: 96 units 8x8, pool 4/2; 192 units 8x8, pool 4/2; 192 units 5x5, pool 2/2, two
    pieces each; 500 units of five pieces. Pooling windows may hang over the edge, as in that code (maps 33-16, 15-7,
    9-5). Max-norm limits and dropout as there: 0.2 on the input and
    `dropout` elsewhere. FitNets counts this teacher at about 9M parameters, which
    is the same net with two pieces in the dense layer: dense_pieces=2.
    """

    def __init__(self, num_classes: int = 10, image_size: int = 32, dense_pieces: int = 5, dropout: float = 0.5):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                MaxoutConv(3, 96, 8, padding=4, variance=0.0, limit=0.9),
                MaxoutConv(96, 192, 8, padding=3, variance=signal(2, 16, dropout)[1], limit=1.9365),
                MaxoutConv(192, 192, 5, padding=3, variance=signal(2, 16, dropout)[1], limit=1.9365),
            ]
        )
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 2, ceil_mode=True) for k in (4, 4, 2))
        side = image_size
        for layer, pool in zip(self.convs, self.pools, strict=True):
            side += 2 * layer.conv.padding[0] - layer.conv.kernel_size[0] + 1
            side = math.ceil((side - pool.kernel_size) / 2) + 1
        self.dense = MaxoutLinear(192 * side * side, 500, dense_pieces, variance=signal(2, 4, dropout)[1], limit=1.9)
        self.classifier = MaxoutLinear(500, num_classes, pieces=1, variance=1.0, limit=1.9365)  # a linear layer
        initialise(self.classifier.linear, std=0.1)
        # Activations of 0.1, near the release's small start (all weights within +-0.005): thousands of large positive
        # inputs to a layer, doubled by dropout, make the first steps diverge.
        initialise(self.convs[0].conv, std=0.1 * (3 * 8 * 8) ** -0.5)
        self.drop_input = nn.Dropout(0.2 if dropout else 0.0)
        self.drop = nn.Dropout(dropout)
        self.stochastic = dropout > 0

    def guide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map after the second layer (N, 192, 7, 7), which FitNets takes as its hint, and the logits (N, K)."""
        x = self.drop_input(x)
        first, second, third = (nn.Sequential(*pair) for pair in zip(self.convs, self.pools, strict=True))
        hint = second(self.drop(first(x)))
        x = third(self.drop(hint))
        x = x.permute(0, 2, 3, 1).flatten(1)  # a view of a channels_last map
        return hint, self.classifier(self.drop(self.dense(self.drop(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.guide(x)[1]
