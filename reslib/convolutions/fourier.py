"""Convolutions of large kernels as products of discrete Fourier transforms, on a processor where that is faster.

A correlation of maps is a product per frequency. At a kernel of 8x8 on 16x16 that is a tenth of the multiply-adds; at
3x3 it saves too little. The transforms of such small maps are matrix products themselves, of any length, not powers of
two alone, so that everything runs at the rate of a large matrix product; the rounding error is that of the direct sum.
Maxout, NIN and DSN have such layers.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from .layers import Layer

SAVING = 4  # times fewer multiply-adds make a layer worth a trial: thin products run further below the machine's rate


def periods(layer: Layer) -> tuple[int, int]:
    """Lengths of the transforms. Wrapped around, the padding before a map is the padding after it as well."""
    return tuple(
        size + (pad if pad < kernel else 2 * pad)
        for size, pad, kernel in zip(layer.size, layer.padding, layer.kernel, strict=True)
    )


def transformed(layer: Layer, batch: int) -> int:
    """Multiply-adds by way of the frequencies: the transforms, and four real products for a complex one."""
    rows, columns = periods(layer)
    half = columns // 2 + 1

    def transform(height, width):
        return 2 * half * width * height + 4 * half * rows * height

    pairs = layer.inputs * layer.outputs
    maps = batch * (layer.inputs * transform(*layer.size) + layer.outputs * transform(*layer.result))
    return maps + pairs * transform(*layer.kernel) + 4 * batch * rows * half * pairs


def unavailable(precision: str) -> str:
    """Why no layer can be computed so in this precision; empty if some can."""
    return "" if precision == "fp32" else f"for fp32 alone, not {precision}"


def promising(layer: Layer, batch: int) -> bool:
    """Whether so many multiply-adds are saved that a trial is worth its time."""
    return (
        layer.precision == "fp32" and min(layer.result) > 0 and layer.direct(batch) > SAVING * transformed(layer, batch)
    )


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
    a, b = (part.view(-1, batch, inputs) for part in _transform(maps, periods(layer), layer.padding))
    c, d = (part.view(-1, inputs, outputs) for part in _transform(kernels, periods(layer), (0, 0)))
    real = torch.baddbmm(torch.bmm(a, c), b, d)  # (a + ib)(c - id): a correlation
    imaginary = torch.baddbmm(torch.bmm(b, c), a, d, alpha=-1)
    shape = (-1, periods(layer)[0], batch * outputs)
    y = _inverse(real.view(shape), imaginary.view(shape), periods(layer), layer.result)
    y = y.view(*reversed(layer.result), batch, outputs)
    return (y if bias is None else y + bias).permute(2, 3, 1, 0)
