"""Network in network, row 2 of Table 6: Lin et al., *Network In Network* (2013).

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .initial import initialise, signal, variance_after


class MLPConv(nn.Module):
    """A k x k convolution followed by an MLP slid over the map, that is 1x1 convolutions, with ReLU between."""

    def __init__(
        self, inputs: int, widths: tuple[int, ...], kernel: int, variance: float = 0.0, final_relu: bool = True
    ):
        super().__init__()
        self.conv = initialise(nn.Conv2d(inputs, widths[0], kernel, padding=kernel // 2), variance)
        last = len(widths) - 2
        self.mlp = nn.ModuleList(
            initialise(nn.Conv2d(a, b, 1), variance_after(), std=0.0 if final_relu or i < last else 0.01)
            for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.final_relu = final_relu

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution's output before its ReLU, and the block's output."""
        hidden = x = self.conv(x)
        for layer in self.mlp:
            x = layer(F.relu(x))
        return hidden, F.relu(x) if self.final_relu else x


class NIN(nn.Module):
    """Network in network (Lin et al. 2013): three mlpconv blocks, overlapping 3/2 pools, dropout, global average pool.

    Maximum after the first block, average after the second, as in the authors' release. Departure: no ReLU on the K
    class maps. It lets a class die for good, and the DSN authors took it off too.
    """

    def __init__(self, num_classes: int = 10, dropout: float = 0.5, second_pool: type[nn.Module] = nn.AvgPool2d):
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                MLPConv(3, (192, 160, 96), 5),
                MLPConv(96, (192, 192, 192), 5, variance=signal(0, 9, dropout)[1]),
                MLPConv(192, (192, 192, num_classes), 3, variance=signal(0, 9, dropout)[1], final_relu=False),
            ]
        )
        self.pools = nn.ModuleList(
            [nn.MaxPool2d(3, 2, ceil_mode=True), second_pool(3, 2, ceil_mode=True), nn.AdaptiveAvgPool2d(1)]
        )
        self.drop = nn.Dropout(dropout)
        self.stochastic = dropout > 0

    def hidden_and_logits(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The three k x k convolutions' outputs before ReLU, and the logits (N, K)."""
        maps = []
        for block, pool in zip(self.blocks, self.pools, strict=True):
            hidden, x = block(self.drop(x) if maps else x)
            maps.append(hidden)
            x = pool(x)
        return maps, x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden_and_logits(x)[1]
