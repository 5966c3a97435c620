"""Batch norm, the addition of a shortcut, ReLU: one call, which a faster way of all three may take over."""

from __future__ import annotations

import contextlib
import threading

import torch
from torch import Tensor, nn

_active = threading.local()


def norm_relu(norm: nn.Module, relu: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor:
    """(N, C, H, W) -> relu(norm(x) + added), same shape.

    norm: a batch norm, or the identity in a net without; x may be overwritten then.
    """
    # torch.compile fuses the three by itself, and could not look into another's loops
    if not torch.compiler.is_compiling() and (other := getattr(_active, "way", None)) is not None:
        y = other(norm, relu, x, added)
        if y is not None:
            return y
    out = norm(x)
    if added is not None:
        out = out.add_(added)  # in place: batch norm keeps its input, so one activation less is written
    return relu(out)


@contextlib.contextmanager
def taken_over(way):
    """Within the block `way(norm, relu, x, added)` of this thread's calls counts, where it does not return None."""
    before = getattr(_active, "way", None)
    _active.way = way
    try:
        yield
    finally:
        _active.way = before
