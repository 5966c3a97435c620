"""Highway networks, rows 5 and 6 of Table 6: Srivastava et al., *Training Very Deep Networks* (2015).

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .initial import initialise, variance_after

HIGHWAY32 = {"widths": (32, 48, 64), "depths": (10, 10, 10), "head": 64}  # see HighwayNet


class HighwayConv(nn.Module):
    """y = H(x) T(x) + x (1 - T(x)), H a 3x3 convolution and ReLU, T a 3x3 convolution and sigmoid: (N, C, H, W) kept.

    One convolution makes both: its first C channels are H's, the others T's, whose bias starts negative (carry).
    """

    def __init__(self, channels: int, gate_bias: float):
        super().__init__()
        self.conv = initialise(nn.Conv2d(channels, 2 * channels, 3, padding=1), variance_after())
        nn.init.normal_(self.conv.weight[channels:], std=(9 * channels) ** -0.5)  # the sigmoid gate: Xavier
        nn.init.constant_(self.conv.bias[channels:], gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        h, t = self.conv(x).chunk(2, dim=1)
        return x + t.sigmoid() * (h.relu() - x)


class HighwayNet(nn.Module):
    """Convolutional highway network (Srivastava et al. 2015) of three stages, each a plain 3x3 convolution that sets
    the width and then highway layers; 2x2 max pools between; a 1x1 convolution, global average pool, softmax.

    highway19: the authors' release (32, 80, 128 channels; 5 + 6 + 6 layers; 1x1 to 100; gate bias -2; dropout 0.2 on
    the input, after the pools and before the softmax). 17 + 1 + 1 = 19 layers, 2.26M parameters with K = 10 outputs
    (the release has 100 outputs for CIFAR-10, of which 90 stay unused).
    highway32: the paper gives only its depth and 1.25M parameters. Assumed here, not taken from the authors: the same
    form with three equal stages of ten layers, 30 + 1 + 1 = 32, a 1x1 convolution as wide as the last stage, and
    widths that rise in multiples of 16. 32, 48, 64 is then the only choice that comes to 1.25M; gate bias as above.
    """

    def __init__(
        self,
        num_classes: int = 10,
        widths: tuple[int, int, int] = (32, 80, 128),
        depths: tuple[int, int, int] = (5, 6, 6),
        head: int = 100,
        gate_bias: float = -2.0,
        dropout: float = 0.2,
    ):
        super().__init__()
        stages = []
        for inputs, width, depth in zip((3, *widths), widths, depths, strict=False):
            first = initialise(nn.Conv2d(inputs, width, 3, padding=1), variance_after() if inputs > 3 else 0.0)
            stages.append(nn.Sequential(first, nn.ReLU(), *(HighwayConv(width, gate_bias) for _ in range(depth - 1))))
        self.stages = nn.ModuleList(stages)
        self.head = initialise(nn.Conv2d(widths[-1], head, 1), variance_after())
        self.classifier = initialise(nn.Linear(head, num_classes), variance_after())
        self.drop = nn.Dropout(dropout)
        self.stochastic = dropout > 0

    def forward(self, x: Tensor) -> Tensor:
        for i, stage in enumerate(self.stages):
            x = stage(self.drop(F.max_pool2d(x, 2) if i else x))
        x = self.head(x).relu().mean((2, 3))  # (N, head)
        return self.classifier(self.drop(x))
