"""Convolution, batch norm, addition of the shortcut and ReLU by the loops of units.cpp: one operation each way."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from .. import native
from ..models.conv_norm_relu import normalises, watched

SIDE, DEEP = 16, 32  # rows of a tile; numbers of such a row, which are channels
NORM_MULTIPLE = 129  # doubles of work per filter, as norm_loops.h's `work_of`


def unit(conv: nn.Module, norm: nn.Module, relu: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor | None:
    """relu(norm(conv(x)) + added) in training for maps (N, C, H, W), channels last; None where that cannot be so.

    It can under bf16 autocast, for 3x3 convolutions of stride 1 without bias and a batch norm with weights and moving
    averages, all in fp32; between maps of a multiple of 32 channels, in rows of 1, 2, 4, 8 or a multiple of 16 pixels,
    and from 16 channels to 16, in rows of a multiple of 32.
    """
    if not _fits(conv, x) or not normalises(norm, relu) or norm.num_features != conv.out_channels:
        return None
    if added is not None:
        if added.dtype != x.dtype or added.shape != (len(x), conv.out_channels, *x.shape[2:]):
            return None
        added = added.contiguous(memory_format=torch.channels_last)
    norm.num_batches_tracked.add_(1)
    averages = norm.running_mean, norm.running_var
    weight = conv.weight.contiguous(memory_format=torch.channels_last)
    return _Unit.apply(x, weight, norm.weight, norm.bias, added, averages, norm.momentum, norm.eps)


def _fits(conv: nn.Module, x: Tensor) -> bool:
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.padding, conv.padding_mode) == ((3, 3), (1, 1), "zeros")
        and (conv.stride, conv.dilation, conv.groups, conv.bias) == ((1, 1), (1, 1), 1, None)
        and not watched(conv)
        and conv.weight.dtype == torch.float32
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and (x.device.type, x.dtype, x.ndim) == ("cpu", torch.bfloat16, 4)
        and x.shape[1] == conv.in_channels
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.numel() > x.shape[1]
        and _sizes_fit(conv.in_channels, conv.out_channels, x.shape[3])
    )


def _sizes_fit(inputs: int, outputs: int, width: int) -> bool:
    if inputs == outputs == SIDE:
        return width % DEEP == 0
    return inputs % DEEP == outputs % DEEP == 0 and (width % SIDE == 0 or SIDE % width == 0)


class _Unit(torch.autograd.Function):
    """(x, weight, scale, shift, added, (running mean, running variance), momentum, epsilon) -> maps, channels last."""

    @staticmethod
    def forward(ctx, x, weight, scale, shift, added, averages, momentum, epsilon):
        size = len(x), len(weight), *x.shape[2:]
        raw = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        y = torch.empty_like(raw)
        moments = scale.new_empty(4, len(weight))  # mean, deviation, scale, bias
        settings = ctypes.c_double(momentum), ctypes.c_double(epsilon)
        _call("unit_forward", (x, weight, raw, added, y), x, weight, (scale, shift, *averages), settings, (moments,))
        ctx.save_for_backward(x, weight, raw, moments, None if added is None else y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slopes):
        x, weight, raw, moments, y = ctx.saved_tensors
        slopes = slopes.contiguous(memory_format=torch.channels_last)
        of_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        of_weight, of_added = torch.empty_like(weight), None if y is None else torch.empty_like(raw)
        of_scale, of_shift = moments.new_empty(len(weight)), moments.new_empty(len(weight))
        maps = slopes, x, weight, raw, y, of_x, of_weight, of_added
        _call("unit_backward", maps, x, weight, (moments,), (), (of_scale, of_shift))
        return of_x, of_weight, of_scale, of_shift, of_added, None, None, None


def _call(function: str, maps, x: Tensor, weight: Tensor, channels, settings, results) -> None:
    """Run a function of units.cpp for inputs x and kernels of this shape."""
    images, inputs, height, width = x.shape
    work = torch.empty(NORM_MULTIPLE * len(weight), dtype=torch.float64)
    maps, channels, results = ([_address(t) for t in group] for group in (maps, channels, results))
    size = ctypes.c_long(images), height, width, inputs, len(weight)
    last = ctypes.c_void_p(work.data_ptr()), torch.get_num_threads()
    if getattr(native.loops(), function)(*maps, *size, *channels, *settings, *results, *last):
        raise MemoryError("no memory for the tiles of a convolution")


def _address(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
