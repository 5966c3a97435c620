"""Convolution, batch norm, the addition of a shortcut, ReLU: one call, which a faster way of all may take over."""

from __future__ import annotations

import contextlib
import dataclasses
import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_active = threading.local()


def conv_norm_relu(conv: nn.Module, norm: nn.Module, relu: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor:
    """(N, C, H, W) -> relu(norm(conv(x)) + added), of the shape of conv(x).

    norm: a batch norm, or the identity in a net without.
    """
    # torch.compile fuses what follows the convolution by itself, and could not look into another's loops
    if not torch.compiler.is_compiling() and (other := getattr(_active, "way", None)) is not None:
        y = other(conv, norm, relu, x, added)
        if y is not None:
            return y
    return norm_relu(norm, relu, conv(x), added)


@dataclasses.dataclass(frozen=True)
class Subsampled:
    """The shortcut of option A where dimensions grow (section 3.3): (N, C, H, W) -> (N, C + new_channels, h, w).

    Every stride-th row and column, and zeros as new channels.
    """

    stride: int
    new_channels: int

    def __call__(self, x: Tensor) -> Tensor:
        if x.stride(1) != 1:
            return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        # The gradient of a slice is dense in the order of its dimensions: channels last for maps that have them last.
        x = x.permute(0, 2, 3, 1)[:, :: self.stride, :: self.stride]
        return F.pad(x, (0, self.new_channels)).permute(0, 3, 1, 2)


def two_units(first, second, x: Tensor, added: Tensor | Subsampled | None = None) -> Tensor:
    """conv_norm_relu of `second` after that of `first`, each (conv, norm, relu).

    added: what the second adds; Subsampled, if that is of x.
    """
    if not torch.compiler.is_compiling() and (other := getattr(_active, "two", None)) is not None:
        y = other(first, second, x, added)
        if y is not None:
            return y
    if isinstance(added, Subsampled):
        added = added(x)
    return conv_norm_relu(*second, conv_norm_relu(*first, x), added)


def norm_relu(norm: nn.Module, relu: nn.Module, y: Tensor, added: Tensor | None = None) -> Tensor:
    """relu(norm(y) + added); y may be overwritten where norm is the identity."""
    out = norm(y)
    if added is not None:
        out = out.add_(added)  # in place: batch norm keeps its input, so one activation less is written
    return relu(out)


def normalises(norm: nn.Module, relu: nn.Module) -> bool:
    """Whether the two are a batch norm in training, with weights and moving averages in fp32, and ReLU, unwatched."""
    if type(norm) is not nn.BatchNorm2d or type(relu) is not nn.ReLU or not norm.training or watched(norm, relu):
        return False
    if not norm.affine or not norm.track_running_stats or norm.momentum is None:
        return False
    values = norm.weight, norm.bias, norm.running_mean, norm.running_var
    return all(t.dtype == torch.float32 and t.is_contiguous() for t in values)


def watched(*modules: nn.Module) -> bool:
    """Whether someone waits for a module's own call."""
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return any(getattr(m, kind) for m in modules for kind in kinds)


class UnitsLoss(nn.Module):
    """`loss(x, y, progress)` whose calls of conv_norm_relu go through `_way`, which returns None for what it leaves.

    Those of two_units go through `_two` before.
    """

    _two = None

    def __init__(self, loss: nn.Module):
        super().__init__()
        self.loss = loss

    @property
    def algorithms(self) -> dict:
        """Of the convolutions, as of the loss within."""
        return getattr(self.loss, "algorithms", {})

    def forward(self, x, y, progress):
        with taken_over(self._way, self._two):
            return self.loss(x, y, progress)


def without(loss):
    """The loss that a UnitsLoss is of; any other as it is."""
    return loss.loss if isinstance(loss, UnitsLoss) else loss


@contextlib.contextmanager
def taken_over(way, two=None):
    """Within the block `way(conv, norm, relu, x, added)` of this thread's calls counts, where it is not None.

    two: likewise (first, second, x, added) -> the result of two units.
    """
    before = {name: getattr(_active, name, None) for name in ("way", "two")}
    _active.way, _active.two = way, two
    try:
        yield
    finally:
        _active.way, _active.two = before["way"], before["two"]
