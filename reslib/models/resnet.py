"""Plain and residual networks, CIFAR-10 (section 4.2) and ImageNet (Table 1): one code path, one argument apart.

Module names follow torchvision (`conv1`, `bn1`, `layer1.0.conv1`, `downsample.0`, `fc`), so its weights load as
they are.
Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError, choose
from .conv_norm_relu import Subsampled, conv_norm_relu, two_units

IMAGENET_BLOCKS = {  # depth: (blocks per stage, bottleneck), Table 1
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
INITIALISATIONS = ("he", "xavier", "gaussian")
OPTIONS = ("shortcut", "stride_on", "preactivation", "batch_norm", "init", "width")  # what a user may choose
DEEPEST = 10_000  # layers; Table 6 ends at 1202


def cifar_resnet(depth: int, residual: bool = True, **options) -> ResNet:
    """Network of depth 6n+2 for 32x32 images: three stages of 2n 3x3 convolutions, 16, 32 and 64 filters."""
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1 or depth > DEEPEST:
        near = min(max(8, 6 * round((depth - 2) / 6) + 2), 1202 if depth > DEEPEST else depth + 6)
        kind = "resnet" if residual else "plain"
        raise UserError(
            f"unknown model '{kind}{depth}': CIFAR depth must be 6n+2 (at most {DEEPEST}), ImageNet depth one of "
            f"{', '.join(map(str, IMAGENET_BLOCKS))}; did you mean {kind}{near}?"
        )
    width = _width(options.pop("width", 16))
    return ResNet((n, n, n), (width, 2 * width, 4 * width), residual=residual, **options)


def imagenet_resnet(depth: int, residual: bool = True, **options) -> ResNet:
    """Network of Table 1: 7x7 stem, four stages, basic blocks up to 34 layers and bottlenecks above."""
    blocks, bottleneck = IMAGENET_BLOCKS[depth]
    options.setdefault("shortcut", "B")
    width = _width(options.pop("width", 64))
    widths = tuple(width * 2**i for i in range(4))
    return ResNet(blocks, widths, residual=residual, bottleneck=bottleneck, imagenet_stem=True, **options)


def _width(value) -> int:
    if type(value) is not int or not 1 <= value <= 4096:
        raise UserError(f"width {value!r} is not allowed: a whole number of filters from 1 to 4096")
    return value


class ResNet(nn.Module):
    """(N, 3, H, W) -> (N, num_classes) logits.

    residual: add the shortcut of every block; without it the same layers form the plain net.
    shortcut: "A" zero-padded identity, "B" projection where dimensions grow, "C" projection everywhere (section 3.3).
    stride_on: bottleneck layer that carries the stride, "1x1" as in the paper ("v1"), "3x3" as in torchvision ("v1.5").
    preactivation: batch norm and ReLU before each convolution, a clean identity path (He et al., 2016).
    batch_norm, init: False and "xavier" or "gaussian" (std 0.01) are for the study of gradients only.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        num_classes: int = 10,
        residual: bool = True,
        shortcut: str = "A",
        bottleneck: bool = False,
        imagenet_stem: bool = False,
        stride_on: str = "1x1",
        preactivation: bool = False,
        batch_norm: bool = True,
        init: str = "he",
    ):
        super().__init__()
        choose("shortcut", shortcut, "ABC")
        choose("stride_on", stride_on, ("1x1", "3x3"))
        choose("init", init, INITIALISATIONS)
        for name, value in (("preactivation", preactivation), ("batch_norm", batch_norm)):
            if not isinstance(value, bool):
                raise UserError(f"{name} {value!r} is not allowed: true or false")
        self.residual, self.preactivation, self.batch_norm = residual, preactivation, batch_norm
        self.activation_checkpointing = False  # trades time for memory, the numbers stay the same
        norm = _batch_norm if batch_norm else _no_norm
        if imagenet_stem:
            self.conv1 = _conv(3, widths[0], 7, 2, bias=not batch_norm)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = _conv(3, widths[0], 3, 1, bias=not batch_norm)
            self.maxpool = nn.Identity()
        # With pre-activation the first unit's own batch norm follows the stem of a CIFAR net directly.
        self.bn1 = nn.Identity() if preactivation and not imagenet_stem else norm(widths[0])
        self.relu = nn.Identity() if preactivation and not imagenet_stem else nn.ReLU(inplace=True)
        expansion = 4 if bottleneck else 1
        channels = widths[0]
        self.stages = []
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            layers = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                layers.append(
                    Block(
                        channels, width, width * expansion, stride, residual, shortcut, stride_on, preactivation, norm
                    )
                )
                channels = width * expansion
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            self.stages.append(f"layer{stage}")
        self.bn_last = norm(channels) if preactivation else nn.Identity()
        self.fc = nn.Linear(channels, num_classes)
        self._initialise(init)

    def _initialise(self, init: str) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if init == "he":  # fan-out, normal [13 in the paper]
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                elif init == "xavier":
                    nn.init.xavier_normal_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.fc.bias)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, C, h, w), the map that is pooled before the classifier."""
        x = self.maxpool(conv_norm_relu(self.conv1, self.bn1, self.relu, x))
        for stage in self.stages:
            for block in getattr(self, stage):
                if self.activation_checkpointing and self.training:
                    x = checkpoint(block, x, use_reentrant=False, context_fn=_frozen_statistics(block))
                else:
                    x = block(x)
        return F.relu(self.bn_last(x), inplace=True) if self.preactivation else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean((2, 3)))  # (N, C, h, w) -> (N, C) -> (N, classes)


class Block(nn.Module):
    """Two 3x3 convolutions, or a 1x1, 3x3, 1x1 bottleneck when out_channels differs from width (Figure 5)."""

    def __init__(self, in_channels, width, out_channels, stride, residual, shortcut, stride_on, preactivation, norm):
        super().__init__()
        bias = norm is _no_norm
        bottleneck = out_channels != width
        first, second = (stride, 1) if stride_on == "1x1" or not bottleneck else (1, stride)
        self.residual, self.preactivation = residual, preactivation
        self.conv1 = _conv(in_channels, width, 1 if bottleneck else 3, first, bias)
        self.bn1 = norm(in_channels if preactivation else width)
        self.conv2 = _conv(width, width, 3, second, bias)
        self.bn2 = norm(width)
        self.conv3 = _conv(width, out_channels, 1, 1, bias) if bottleneck else None
        self.bn3 = norm(width if preactivation else out_channels) if bottleneck else None
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        self.subsampled = None
        grows = stride != 1 or in_channels != out_channels
        if residual and (shortcut == "C" or (shortcut == "B" and grows)):
            projection = _conv(in_channels, out_channels, 1, stride, bias)
            self.downsample = nn.Sequential(projection, nn.Identity() if preactivation else norm(out_channels))
        elif residual and grows:
            self.subsampled = Subsampled(stride, out_channels - in_channels)

    def identity(self, x: torch.Tensor) -> torch.Tensor:
        """The shortcut: a projection, or x subsampled and zero-padded to the new number of channels (option A)."""
        if self.downsample is not None:
            return self.downsample(x)
        return x if self.subsampled is None else self.subsampled(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._preactivated(x) if self.preactivation else self._original(x)

    def _original(self, x):
        units = [(self.conv1, self.bn1, self.relu), (self.conv2, self.bn2, self.relu)]
        if self.conv3 is not None:
            units.append((self.conv3, self.bn3, self.relu))
        added = None
        if self.residual:  # two units may subsample by themselves, but not after a first one, which leaves another x
            added = self.subsampled if self.subsampled and self.conv3 is None else self.identity(x)
        for unit in units[:-2]:
            x = conv_norm_relu(*unit, x)
        return two_units(*units[-2:], x, added)

    def _preactivated(self, x):
        ready = F.relu(self.bn1(x))  # not in place: without batch norm this is x, which the identity still needs
        last, out = self.conv2, conv_norm_relu(self.conv1, self.bn2, self.relu, ready)
        if self.conv3 is not None:
            last, out = self.conv3, conv_norm_relu(self.conv2, self.bn3, self.relu, out)
        out = last(out)
        if not self.residual:
            return out
        # A projection reads the activated input; the identity path stays untouched.
        return out + self.identity(ready if self.downsample is not None else x)


def _conv(in_channels, out_channels, size, stride, bias=False):
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=bias)


def _batch_norm(channels):
    return nn.BatchNorm2d(channels)


def _no_norm(channels):
    return nn.Identity()


class _FrozenStatistics:
    """Keeps batch norm's moving averages from being updated a second time when a block is computed again."""

    def __init__(self, block: nn.Module):
        self.norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]

    def __enter__(self):
        self.momenta = [m.momentum for m in self.norms]
        self.counts = [m.num_batches_tracked.clone() for m in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *error):
        for norm, momentum, count in zip(self.norms, self.momenta, self.counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def _frozen_statistics(block):
    from contextlib import nullcontext

    return lambda: (nullcontext(), _FrozenStatistics(block))
