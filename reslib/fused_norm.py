"""Batch norm, addition of the shortcut and ReLU in one go, on a processor where a trial finds that faster.

Outside the convolutions these three are nearly all of a step, and done one after the other they read and write every
map about twice as often as needed. The loops are C++ (norm_loops.h), compiled once per machine (native.py). Results are
PyTorch's up to rounding; sums are joined in double precision.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from . import native, tune
from .models.conv_norm_relu import UnitsLoss, norm_relu, normalises

TYPES = {torch.float32: 0, torch.bfloat16: 1}  # of maps, as the loops name them


class FusedLoss(UnitsLoss):
    """`loss(x, y, progress)` with batch norm, addition and ReLU in one go; `fused` counts the calls that were.

    field, table, refused, beside, taken, unavailable: see unit_trials.py.
    """

    fuses = True
    field, table, refused, beside = "fused", tune.FUSED, "batch norm and ReLU not fused", ""

    def __init__(self, loss: nn.Module):
        super().__init__(loss)
        self.fused = 0

    @property
    def taken(self) -> int:
        """Calls that were fused, up to now."""
        return self.fused

    @staticmethod
    def unavailable(step) -> str:
        """Why nothing of a step can be fused; empty if something can."""
        if not any(isinstance(module, nn.BatchNorm2d) for module in step.model.modules()):
            return "the network has no batch norm"
        return native.unavailable()

    def _way(self, conv, norm, relu, x, added):
        y = conv(x)
        result = norm_add_relu(norm, relu, y, added)
        self.fused += result is not None
        return norm_relu(norm, relu, y, added) if result is None else result


def norm_add_relu(norm: nn.Module, relu: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor | None:
    """relu(norm(x) + added) for maps (N, C, H, W), channels last; None where these loops cannot compute it.

    They can in training, for fp32 or bf16 maps of a multiple of eight channels, and fp32 weights and moving averages.
    """
    if not normalises(norm, relu):
        return None
    fits = x.device.type == "cpu" and x.dtype in TYPES and x.ndim == 4 and x.numel() > x.shape[1]
    if not fits or not x.is_contiguous(memory_format=torch.channels_last) or x.shape[1] % native.loops().norm_width():
        return None
    if added is not None and (added.dtype != x.dtype or added.shape != x.shape):
        return None
    norm.num_batches_tracked.add_(1)
    averages = norm.running_mean, norm.running_var
    return _NormAddReLU.apply(x, norm.weight, norm.bias, added, averages, norm.momentum, norm.eps)


class _NormAddReLU(torch.autograd.Function):
    """(x, weight, bias, added, (running mean, running variance), momentum, epsilon) -> maps as x."""

    @staticmethod
    def forward(ctx, x, weight, bias, added, averages, momentum, epsilon):
        channels = x.shape[1]
        y = torch.empty_like(x)
        added = None if added is None else added.contiguous(memory_format=torch.channels_last)
        moments = x.new_empty(4, channels, dtype=torch.float32)  # mean, deviation, scale, bias
        vectors = weight, bias, *averages
        _call("norm_forward", (x, added, y), vectors, (ctypes.c_double(momentum), ctypes.c_double(epsilon)), (moments,))
        ctx.save_for_backward(x, None if added is None else y, moments)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slopes):
        x, y, moments = ctx.saved_tensors
        slopes = slopes.contiguous(memory_format=torch.channels_last)
        of_x, of_added = torch.empty_like(x), None if y is None else torch.empty_like(x)
        of_weight, of_bias = moments.new_empty(x.shape[1]), moments.new_empty(x.shape[1])
        _call("norm_backward", (slopes, x, y, of_x, of_added), (moments,), (), (of_weight, of_bias))
        return of_x, of_weight, of_bias, of_added, None, None, None


def work_for(channels: int) -> Tensor:
    """Room for the sums of the loops over maps of so many channels."""
    size = native.loops().norm_work
    size.restype = ctypes.c_long
    return torch.empty(size(channels), dtype=torch.float64)


def _call(function: str, maps, channels, settings, results) -> None:
    """Run a function of fused_norm.cpp on maps, arrays per channel and numbers, with arrays per channel as results."""
    like = next(tensor for tensor in maps if tensor is not None)
    number = like.shape[1]
    work = work_for(number)
    maps, channels, results = ([_address(t) for t in group] for group in (maps, channels, results))
    size = ctypes.c_long(like.numel() // number), number
    last = ctypes.c_void_p(work.data_ptr()), torch.get_num_threads()
    getattr(native.loops(), function)(TYPES[like.dtype], *maps, *size, *channels, *settings, *results, *last)


def _address(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
