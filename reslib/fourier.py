"""Convolutions of large kernels as products of discrete Fourier transforms, on a processor where that is faster.

A correlation of maps is a product per frequency. At a kernel of 8x8 on 16x16 that is a tenth of the multiply-adds; at
3x3 it saves too little. The transforms of such small maps are matrix products themselves, of any length, not powers of
two alone, so that everything runs at the rate of a large matrix product; the rounding error is that of the direct sum.
Maxout, NIN and DSN have such layers. Which of a network's layers are computed so is measured on the machine at hand
(`wins`); loss and gradient of the whole pass are compared before it is used (compilation.py).
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SAVING = 4  # times fewer multiply-adds make a layer worth a trial: thin products run further below the machine's rate
MARGIN = 1.1  # times faster it must be on a layer alone
ROUNDS = 2


@dataclass(frozen=True)
class Layer:
    """Shapes of a convolution of stride 1: channels in and out, rows and columns of kernel, padding and map."""

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]

    def __str__(self) -> str:
        (rows, columns), (top, left), (height, width) = self.kernel, self.padding, self.size
        return f"{rows}x{columns} {self.inputs} to {self.outputs}, padding {top} {left}, on {height}x{width}"

    @property
    def periods(self) -> tuple[int, int]:
        """Lengths of the transforms. Wrapped around, the padding before a map is the padding after it as well."""
        return tuple(
            size + (pad if pad < kernel else 2 * pad)
            for size, pad, kernel in zip(self.size, self.padding, self.kernel, strict=True)
        )

    @property
    def result(self) -> tuple[int, int]:
        """Rows and columns of the output."""
        return tuple(
            size + 2 * pad - kernel + 1 for size, pad, kernel in zip(self.size, self.padding, self.kernel, strict=True)
        )

    def direct(self, batch: int) -> int:
        """Multiply-adds of the sums over the kernel."""
        return batch * math.prod(self.result) * math.prod(self.kernel) * self.inputs * self.outputs

    def transformed(self, batch: int) -> int:
        """Multiply-adds by way of the frequencies: the transforms, and four real products for a complex one."""
        rows, columns = self.periods
        half = columns // 2 + 1

        def transform(height, width):
            return 2 * half * width * height + 4 * half * rows * height

        pairs = self.inputs * self.outputs
        maps = batch * (self.inputs * transform(*self.size) + self.outputs * transform(*self.result))
        return maps + pairs * transform(*self.kernel) + 4 * batch * rows * half * pairs

    def promising(self, batch: int) -> bool:
        """Whether so many multiply-adds are saved that a trial is worth its time."""
        return min(self.result) > 0 and self.direct(batch) > SAVING * self.transformed(batch)


def layer_of(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Layer | None:
    """The layer of a call of `torch.conv2d`; None where it is none of stride 1 in single or double precision."""
    x = input
    plain = all(value in (1, (1, 1), [1, 1]) for value in (stride, dilation, groups))
    if not plain or isinstance(padding, str) or x.ndim != 4 or x.dtype not in (torch.float32, torch.float64):
        return None
    padding = (padding,) if isinstance(padding, int) else tuple(padding)
    padding = padding * 2 if len(padding) == 1 else padding
    return Layer(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), padding, tuple(x.shape[2:]))


@functools.lru_cache(maxsize=256)
@torch.inference_mode(False)  # what is kept shall serve the backward pass too, whoever asks first
def _waves(period: int, start: int, count: int, frequencies: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi f p / period for frequencies f and positions p from `start` on: (frequencies, count) each."""
    f = torch.arange(frequencies, dtype=torch.float64)[:, None]
    p = torch.arange(start, start + count, dtype=torch.float64)
    angle = 2 * math.pi / period * (f * p % period)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _transform(maps: Tensor, periods: tuple[int, int], start: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Real and imaginary part (columns // 2 + 1, rows, M) of maps (W, H, M) that lie `start` rows and columns in."""
    (rows, columns), (width, height, number) = periods, maps.shape
    half = columns // 2 + 1
    cos, sin = _waves(columns, start[1], width, half, maps.dtype)
    along = torch.stack([cos, -sin], 1).flatten(0, 1) @ maps.reshape(width, -1)  # real, imaginary of every frequency
    along = along.view(half, 2 * height, number)
    cos, sin = _waves(rows, start[0], height, rows, maps.dtype)
    return torch.cat([cos, sin], 1) @ along, torch.cat([-sin, cos], 1) @ along


def _inverse(real: Tensor, imaginary: Tensor, periods: tuple[int, int], result: tuple[int, int]) -> Tensor:
    """The first rows and columns (W, H, M) of the real maps with this half of their spectrum."""
    (rows, columns), (height, width), number = periods, result, real.shape[-1]
    half = columns // 2 + 1
    cos, sin = (wave.T for wave in _waves(rows, 0, height, rows, real.dtype))
    along = torch.cat([cos, sin]) @ real + torch.cat([-sin, cos]) @ imaginary  # (half, 2 height, M)
    cos, sin = _waves(columns, 0, width, half, real.dtype)
    twice = torch.full((half, 1), 2.0, dtype=real.dtype)  # the other half of the spectrum is the conjugate
    twice[0] = 1.0
    if columns % 2 == 0:
        twice[-1] = 1.0
    back = torch.stack([cos * twice, -sin * twice], 1).flatten(0, 1).T / (rows * columns)
    return (back @ along.reshape(2 * half, height * number)).view(width, height, number)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
    """What `torch.conv2d` of stride 1 gives for a layer: (N, C, H, W) -> (N, K, H', W')."""
    (batch, inputs), outputs = x.shape[:2], len(weight)
    height, width = layer.size
    maps = x.permute(3, 2, 0, 1).reshape(width, height, batch * inputs)
    kernels = weight.permute(3, 2, 1, 0).reshape(*reversed(layer.kernel), inputs * outputs)
    a, b = (part.view(-1, batch, inputs) for part in _transform(maps, layer.periods, layer.padding))
    c, d = (part.view(-1, inputs, outputs) for part in _transform(kernels, layer.periods, (0, 0)))
    real = torch.baddbmm(torch.bmm(a, c), b, d)  # (a + ib)(c - id): a correlation
    imaginary = torch.baddbmm(torch.bmm(b, c), a, d, alpha=-1)
    shape = (-1, layer.periods[0], batch * outputs)
    y = _inverse(real.view(shape), imaginary.view(shape), layer.periods, layer.result)
    y = y.view(*reversed(layer.result), batch, outputs)
    y = (y if bias is None else y + bias).permute(2, 3, 1, 0)
    # in the order of the direct sum's output: dropout draws its numbers in the order of the memory
    return y.contiguous(memory_format=torch.channels_last if _channels_last(x) else torch.contiguous_format)


def _channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class Convolutions(TorchFunctionMode):
    """While active, calls of `conv2d` for these layers go by way of the frequencies; `met` lists all layers called."""

    def __init__(self, layers=()):
        super().__init__()
        self.layers, self.met = frozenset(layers), {}

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function is F.conv2d and (layer := layer_of(*arguments, **options)):
            self.met[layer] = None
            if layer in self.layers:
                return conv2d(*_maps_and_weights(*arguments, **options), layer)
        return function(*arguments, **options)


def _maps_and_weights(input, weight, bias=None, *others, **named):
    return input, weight, bias


class FourierLoss(nn.Module):
    """`loss(x, y, progress)` with the convolutions of some layers by way of the frequencies."""

    def __init__(self, loss: nn.Module, layers):
        super().__init__()
        self.loss, self.layers = loss, tuple(layers)

    def forward(self, x, y, progress):
        with self.convolutions():
            return self.loss(x, y, progress)

    def convolutions(self) -> Convolutions:
        """A context in which the model computes as here."""
        return Convolutions(self.layers)


def layers_met(passes) -> list[Layer]:
    """The convolutions of stride 1 in one pass of a network (passes.Passes), in the order of their first call."""
    with Convolutions() as mode:
        passes.run(passes.step.loss)
    return list(mode.met)


def wins(layer: Layer, batch: int, layout, clock=time.perf_counter) -> bool:
    """Whether a layer alone is faster so on random maps, forward and backward: the best of turns of both ways."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(batch, layer.inputs, *layer.size, generator=drawn).contiguous(memory_format=layout)
    weight = torch.randn(layer.outputs, layer.inputs, *layer.kernel, generator=drawn).contiguous(memory_format=layout)
    ways = {
        "direct": lambda: F.conv2d(x, weight, padding=layer.padding),
        "transformed": lambda: conv2d(x, weight, None, layer),
    }
    taken = {way: [] for way in ways}
    for tensor in (x, weight):
        tensor.requires_grad_()
    for _ in range(ROUNDS):
        for way, call in ways.items():
            begun = clock()
            call().square().sum().backward()
            taken[way].append(clock() - begun)
            x.grad = weight.grad = None
    return min(taken["transformed"]) * MARGIN < min(taken["direct"])
