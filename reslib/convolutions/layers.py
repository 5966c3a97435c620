"""The shapes of a convolution of stride 1: what decides which algorithm computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Layer:
    """Shapes of a convolution of stride 1: channels in and out, rows and columns of kernel, padding and map.

    precision: "fp32", double precision as well, or "bf16" under autocast.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]
    precision: str = "fp32"

    def __str__(self) -> str:
        (rows, columns), (top, left), (height, width) = self.kernel, self.padding, self.size
        return f"{rows}x{columns} {self.inputs} to {self.outputs}, padding {top} {left}, on {height}x{width}"

    @property
    def result(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return tuple(
            size + 2 * pad - kernel + 1 for size, pad, kernel in zip(self.size, self.padding, self.kernel, strict=True)
        )

    def direct(self, batch: int) -> int:
        """Multiply-adds of the sums over the kernel."""
        return batch * math.prod(self.result) * math.prod(self.kernel) * self.inputs * self.outputs


def layer_of(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Layer | None:
    """The layer of a call of `torch.conv2d`; None where it is none of stride 1 in fp32, fp64 or under bf16 autocast."""
    x = input
    plain = all(value in (1, (1, 1), [1, 1]) for value in (stride, dilation, groups))
    if not plain or isinstance(padding, str) or x.ndim != 4 or (precision := _precision(x, weight)) is None:
        return None
    padding = (padding,) if isinstance(padding, int) else tuple(padding)
    padding = padding * 2 if len(padding) == 1 else padding
    return Layer(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), padding, tuple(x.shape[2:]), precision)


def _precision(x: torch.Tensor, weight: torch.Tensor) -> str | None:
    if not torch.is_autocast_enabled("cpu"):
        return "fp32" if x.dtype in (torch.float32, torch.float64) else None
    # the maps may be fp32, but are convolved in bf16
    narrow = torch.get_autocast_dtype("cpu") == torch.bfloat16 and x.dtype in (torch.float32, torch.bfloat16)
    return "bf16" if narrow and weight.dtype == torch.float32 else None


def channels_last(x: torch.Tensor) -> bool:
    """Whether maps lie in memory with their channels last."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
