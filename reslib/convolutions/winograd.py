"""3x3 convolutions with a quarter of the multiply-adds, in bf16 with 4/9: Winograd's minimal filtering, on a processor.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv:1509.09308, 2015). PyTorch's own
convolutions on a processor are direct sums, already at about the rate of a large matrix product: only fewer
multiply-adds are faster. What lies between the steps must stay in the core's cache, which tensor operations cannot do,
so the loops are C++ (winograd.cpp, winograd_bf16.cpp), compiled once per machine by the compiler that torch.compile
needs as well. Results are the direct sum's up to rounding: about twice its error in fp32, with tiles of 4x4 outputs,
and in bf16, with tiles of 2x2, since what is multiplied is rounded once more.
"""

from __future__ import annotations

import ctypes
import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import native
from .layers import Layer

OUT = {"fp32": 4, "bf16": 2}  # outputs of a tile along a side; it has two inputs more
OPERATIONS = {"fp32": 14, "bf16": 4}  # of either transform in one dimension: multiply, add, or both in one
PAIRS = 16  # of bf16 values in a register: channels come in multiples of it
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}  # of maps; kernels are fp32


def transformed(layer: Layer, batch: int) -> int:
    """Multiply-adds of the products of tiles and of their transforms, by columns and by rows; and of the kernels'."""
    outputs, operations = OUT[layer.precision], OPERATIONS[layer.precision]
    inputs, pairs = outputs + 2, layer.inputs * layer.outputs
    tiles = batch * math.prod(-(-side // outputs) for side in layer.result)
    transforms = operations * (2 * inputs * layer.inputs + (inputs + outputs) * layer.outputs)
    return tiles * (inputs * inputs * pairs + transforms) + inputs * inputs * 9 * pairs


def unavailable(precision: str) -> str:
    """Why no layer can be computed so in this precision; empty if some can."""
    if reason := native.unavailable():
        return reason
    if precision == "bf16" and not native.loops().bf16_pairs():
        return "in bf16 for processors alone that multiply pairs of such values (AVX512-BF16)"
    return ""


def promising(layer: Layer, batch: int) -> bool:
    """Whether this algorithm can compute a layer, and a trial is worth its time."""
    same = layer.padding[0] == layer.padding[1] <= 2
    possible = layer.kernel == (3, 3) and same and min(layer.result) > 0 and batch > 0
    if not possible or layer.inputs % 4 or layer.outputs % 4 or unavailable(layer.precision):
        return False
    lanes = _lanes(layer.precision)
    return layer.inputs % lanes == layer.outputs % lanes == 0


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
    """What `torch.conv2d` of stride 1 gives for a layer: (N, C, H, W) -> (N, K, H', W'), channels last.

    In double precision, which is there to compare with, by direct sums.
    """
    if layer.precision == "bf16":
        x = x.bfloat16()
    elif x.dtype != torch.float32:
        return F.conv2d(x, weight, bias, padding=layer.padding)
    y = _convolve(x, weight, layer.padding[0])
    return y if bias is None else y + bias[:, None, None].to(y.dtype)


# --- As operators of PyTorch ------------------------------------------------------------------------------------------


@torch.library.custom_op("reslib::winograd", mutates_args=(), device_types="cpu")
def _convolve(x: Tensor, weight: Tensor, padding: int) -> Tensor:
    """(N, C, H, W), (K, C, 3, 3) in fp32 -> (N, K, H + 2 padding - 2, W + 2 padding - 2): maps in fp32 or bf16."""
    if weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(f"a kernel {tuple(weight.shape)} does not fit maps {tuple(x.shape)}")
    x = x.contiguous(memory_format=torch.channels_last)
    y = _empty_result(x, weight, padding)
    kernels = weight.permute(2, 3, 1, 0).reshape(9, -1).contiguous()  # (9, C K)
    if x.dtype == torch.float32:
        kernels = _spread(weight) @ kernels  # (36, C K); in bf16 the loops do that
    _check_types(kernels, x)
    _call("convolve", (x, kernels, y), x, len(weight), padding)
    return y


@torch.library.custom_op("reslib::winograd_kernel_gradient", mutates_args=(), device_types="cpu")
def _kernel_gradient(x: Tensor, slopes: Tensor, padding: int) -> Tensor:
    """The gradient (K, C, 3, 3) of a kernel in fp32, from the inputs (N, C, H, W) and the gradient of the outputs."""
    x, slopes = (t.contiguous(memory_format=torch.channels_last) for t in (x, slopes))
    pair = x.shape[1], slopes.shape[1]
    wide = x.dtype == torch.float32
    kernels = torch.empty(36 if wide else 9, pair[0] * pair[1])
    _check_types(kernels, x, slopes)
    _call("kernel_gradient", (x, slopes, kernels), x, pair[1], padding)
    gradient = (_spread(x).T @ kernels if wide else kernels).view(3, 3, *pair).permute(3, 2, 0, 1)
    return gradient.contiguous(memory_format=torch.channels_last)


@_convolve.register_fake
def _empty_result(x, weight, padding):
    height, width = (side + 2 * padding - 2 for side in x.shape[2:])
    shape = len(x), len(weight), height, width
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@_kernel_gradient.register_fake
def _(x, slopes, padding):
    shape = slopes.shape[1], x.shape[1], 3, 3
    return torch.empty(shape, dtype=torch.float32, device=x.device, memory_format=torch.channels_last)


def _remember(ctx, inputs, output):
    x, weight, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx, slopes):
    x, weight = ctx.saved_tensors
    of_x = of_weight = None
    if ctx.needs_input_grad[0]:  # the full correlation with the turned kernel
        of_x = _convolve(slopes, weight.flip(2, 3).transpose(0, 1), 2 - ctx.padding)
    if ctx.needs_input_grad[1]:
        of_weight = _kernel_gradient(x, slopes, ctx.padding)
    return of_x, of_weight, None


_convolve.register_autograd(_gradients, setup_context=_remember)


def _spread(like: Tensor) -> Tensor:
    """(36, 9): from a kernel's nine weights to the 36 values it is multiplied by, in winograd.cpp's order."""
    return _kernel_transform().to(like.dtype)


@functools.cache
@torch.inference_mode(False)  # whoever asks first, it shall serve the backward pass too
def _kernel_transform() -> Tensor:
    """Interpolation at 0, +-A, +-B, infinity: powers of the point over the product of its distances to the others."""
    points = [0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)]
    values = torch.tensor(points, dtype=torch.float64)
    distances = (values[:, None] - values).fill_diagonal_(1).prod(1)
    rows = values[:, None] ** torch.arange(3) / distances[:, None]
    rows = torch.cat([rows, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)])  # (6, 3)
    return torch.kron(rows, rows).float()


def _lanes(precision: str) -> int:
    """Channels come in multiples of it."""
    return native.loops().lanes() if precision == "fp32" else PAIRS


def _check_types(kernels: Tensor, *maps: Tensor) -> None:
    """Raise TypeError unless the maps are of one type that the loops have, and the kernels fp32."""
    types = [tensor.dtype for tensor in (*maps, kernels)]
    if len(set(types[:-1])) > 1 or types[0] not in PRECISIONS or types[-1] != torch.float32:
        found = ", ".join(map(str, types))
        raise TypeError(f"Winograd's convolution is for maps all in fp32 or all in bf16, kernels in fp32; not {found}")


def _call(function: str, arrays, x: Tensor, outputs: int, padding: int) -> None:
    """Run a function of the loops on three arrays, for inputs x and so many channels of the output."""
    precision, (batch, channels, height, width) = PRECISIONS[x.dtype], x.shape
    lanes = _lanes(precision)
    if channels % lanes or outputs % lanes or not 0 <= padding <= 2:
        raise ValueError(f"no Winograd convolution of {channels} to {outputs} channels with padding {padding} here")
    sizes = batch, height, width, channels, outputs, padding, torch.get_num_threads()
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in arrays)
    name = function if precision == "fp32" else f"{function}_bf16"
    if getattr(native.loops(), name)(*pointers, *sizes):
        raise MemoryError("no memory for the tiles of a convolution")
