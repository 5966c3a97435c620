"""Convolution, batch norm, addition of the shortcut and ReLU by the loops of units.cpp: one operation each way."""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor, nn

from .. import native
from ..fused_norm import work_for
from ..models.conv_norm_relu import Subsampled, normalises, watched

SIDE, DEEP = 16, 32  # rows of a tile; numbers of such a row, which are channels


def unit(conv: nn.Module, norm: nn.Module, relu: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor | None:
    """relu(norm(conv(x)) + added) in training for maps (N, C, H, W), channels last; None where that cannot be so.

    It can under bf16 autocast, for 3x3 convolutions without bias and a batch norm with weights and moving averages, all
    in fp32. With stride 1 between maps of a multiple of 32 channels, in rows of 1, 2, 4, 8 or a multiple of 16 pixels,
    and from 16 channels to 16, in rows of a multiple of 32; with stride 2 from maps of a multiple of 16 channels and an
    even height to those of a multiple of 32, whose rows are as with stride 1.
    """
    if not _takes(x) or not _fits(conv, norm, relu, x.shape) or not _adds(added, conv, x, x.shape):
        return None
    return _Unit.apply(x, added, *_parameters(conv, norm))


def two_units(first, second, x: Tensor, added: Tensor | Subsampled | None = None) -> Tensor | None:
    """`unit` of `second` after that of `first`, each (conv, norm, relu): added is what the second adds, or how of x.

    What the first leaves is not stored: the second makes it from the first one's convolution, and makes it anew on the
    way back. A shortcut that is x itself, or x subsampled as the first convolution does, has its gradient added to that
    convolution's.
    """
    if not _takes(x) or not _fits(*first, x.shape):
        return None
    middle = _shape(first[0], x.shape)
    if second[0].stride != (1, 1) or not _fits(*second, middle):
        return None
    shortcut = "none" if added is None else "identity" if added is x else "other"
    if isinstance(added, Subsampled):
        widths = x.shape[1] + added.new_channels, first[0].out_channels, second[0].out_channels
        if added.stride == first[0].stride[0] == 2 and added.new_channels >= 0 and len(set(widths)) == 1:
            shortcut = "subsampled"
        else:
            added = added(x)
    if shortcut != "subsampled" and not _adds(added, second[0], x, middle):
        return None
    other = added if shortcut == "other" else None
    return _TwoUnits.apply(x, other, shortcut, *_parameters(*first[:2]), *_parameters(*second[:2]))


def _takes(x: Tensor) -> bool:
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    maps = (x.device.type, x.dtype, x.ndim) == ("cpu", torch.bfloat16, 4)
    if not autocast or not maps or not x.numel() or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return not native.unavailable() and bool(native.loops().tile_units())


def _fits(conv: nn.Module, norm: nn.Module, relu: nn.Module, shape) -> bool:
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.padding, conv.padding_mode) == ((3, 3), (1, 1), "zeros")
        and conv.stride in ((1, 1), (2, 2))
        and (conv.dilation, conv.groups, conv.bias) == ((1, 1), 1, None)
        and not watched(conv)
        and conv.weight.dtype == torch.float32
        and normalises(norm, relu)
        and (shape[1], conv.out_channels) == (conv.in_channels, norm.num_features)
        and _sizes_fit(conv.in_channels, conv.out_channels, conv.stride[0], *shape[2:])
        and math.prod(_shape(conv, shape)) > conv.out_channels  # of one value there is no variance: PyTorch's error
    )


def _sizes_fit(inputs: int, outputs: int, stride: int, height: int, width: int) -> bool:
    if height % stride or width % stride:
        return False
    width //= stride
    if stride == 1 and inputs == outputs == SIDE:
        return width % DEEP == 0
    return inputs % (DEEP // stride) == outputs % DEEP == 0 and (width % SIDE == 0 or SIDE % width == 0)


def _shape(conv: nn.Module, shape) -> tuple:
    """Of what a convolution that fits makes of maps of this shape."""
    return shape[0], conv.out_channels, *(side // conv.stride[0] for side in shape[2:])


def _adds(added: Tensor | None, conv: nn.Module, x: Tensor, shape) -> bool:
    """Whether it can be added to what a convolution makes of maps of this shape."""
    return added is None or (added.dtype == x.dtype and added.shape == _shape(conv, shape))


def _parameters(conv: nn.Module, norm: nn.Module) -> tuple:
    """(kernel, scale, shift, (running mean, running variance, momentum, epsilon, stride)) of a unit computed now."""
    norm.num_batches_tracked.add_(1)
    kernel = conv.weight.contiguous(memory_format=torch.channels_last)
    others = norm.running_mean, norm.running_var, norm.momentum, norm.eps, conv.stride[0]
    return kernel, norm.weight, norm.bias, others


class _Unit(torch.autograd.Function):
    """(x, added, *_parameters) -> maps, channels last."""

    @staticmethod
    def forward(ctx, x, added, *parameters):
        raw, moments, y = _forward(x, parameters, added)
        ctx.save_for_backward(x, parameters[0], raw, moments, None if added is None else y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slopes):
        x, kernel, raw, moments, y = ctx.saved_tensors
        of_x, of_added, _, *of_parameters = _backward(slopes, x, kernel, raw, moments, y, ctx.needs_input_grad[0])
        return of_x, of_added, *of_parameters, None


class _TwoUnits(torch.autograd.Function):
    """(x, added, shortcut, *_parameters of the first, *_parameters of the second) -> maps, channels last.

    shortcut: "none", "identity" (x is what is added), "subsampled" (x is, as by Subsampled), "other" (`added` is).
    """

    @staticmethod
    def forward(ctx, x, added, shortcut, *parameters):
        first, second = parameters[:4], parameters[4:]
        middle, before, _ = _forward(x, first, stores=False)
        if shortcut == "subsampled":
            added = Subsampled(2, len(second[0]) - x.shape[1])(x)
        raw, moments, y = _forward(middle, second, x if shortcut == "identity" else added, before)
        ctx.shortcut = shortcut
        kept = x, first[0], middle, before, second[0], raw, moments, None if shortcut == "none" else y
        ctx.save_for_backward(*kept)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slopes):
        x, first, middle, before, second, raw, moments, y = ctx.saved_tensors
        found = _backward(slopes, middle, second, raw, moments, y, before=before)
        of_middle, of_added, sums, *of_second = found
        plus = of_added if ctx.shortcut in ("identity", "subsampled") else None
        wanted = ctx.needs_input_grad[0]
        of_x, _, _, *of_first = _backward(of_middle, x, first, middle, before, None, wanted, plus=plus, sums=sums)
        return of_x, of_added if ctx.shortcut == "other" else None, None, *of_first, None, *of_second, None


def _forward(x, parameters, added=None, before=None, stores=True):
    """(convolution, moments, output) of a unit; before: moments of the norm that x, a convolution, still needs."""
    kernel, scale, shift, (*averages, momentum, epsilon, stride) = parameters
    sides = (side // stride for side in x.shape[2:])
    raw = torch.empty(len(x), len(kernel), *sides, dtype=x.dtype, memory_format=torch.channels_last)
    y = torch.empty_like(raw) if stores else None
    moments = scale.new_empty(4, len(kernel))  # mean, deviation, scale, bias
    added = None if added is None else added.contiguous(memory_format=torch.channels_last)
    settings = ctypes.c_double(momentum), ctypes.c_double(epsilon)
    _call("unit_forward", (x, kernel, raw, added, y, before), x, raw, (scale, shift, *averages), settings, (moments,))
    return raw, moments, y


def _backward(slopes, x, kernel, raw, moments, y, wanted=True, before=None, plus=None, sums=None):
    """Gradients of (x, what was added, -, kernel, scale, shift); in the third place sums for the norm of `before`.

    wanted: whether that of x is. The rest is as unit_backward in units.cpp has it.
    """
    slopes = slopes.contiguous(memory_format=torch.channels_last)
    of_x = torch.empty_like(x) if wanted else None
    of_kernel, of_added = torch.empty_like(kernel), None if y is None else torch.empty_like(raw)
    below = None if before is None else torch.empty(2 * x.shape[1], dtype=torch.float64)
    of_scale, of_shift = moments.new_empty(len(kernel)), moments.new_empty(len(kernel))
    maps = slopes, x, kernel, raw, y, plus, of_x, of_kernel, of_added, before, sums, below
    _call("unit_backward", maps, x, raw, (moments,), (), (of_scale, of_shift))
    return of_x, of_added, below, of_kernel, of_scale, of_shift


def _call(function: str, maps, x: Tensor, raw: Tensor, channels, settings, results) -> None:
    """Run a function of units.cpp, of inputs x and a convolution of this shape."""
    images, outputs, height, width = raw.shape
    work = work_for(outputs)
    maps, channels, results = ([_address(t) for t in group] for group in (maps, channels, results))
    size = ctypes.c_long(images), height, width, x.shape[1], outputs, x.shape[2] // height
    last = ctypes.c_void_p(work.data_ptr()), torch.get_num_threads()
    if getattr(native.loops(), function)(*maps, *size, *channels, *settings, *results, *last):
        raise MemoryError("no memory for the tiles of a convolution")


def _address(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
