"""Convolution, batch norm, addition of the shortcut and ReLU of a thin net as six Triton kernels (kernels.py)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from ..models.conv_norm_relu import normalises, watched
from . import kernels

FILTERS = (16, 32, 64)  # that these kernels are laid out for; where there are more, cuDNN is at home
PRODUCTS = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}  # type of maps: of a product's operands
# Of how the work is dealt out: registers and shared memory of an H100 suffice, and about two programs come to each of
# its multiprocessors at the paper's batch.
PROGRAMS = 256
TILE_VALUES = 8192  # of a tile of a map, at most
MAX_TILES = 1024  # whose sums every program joins for itself
SUMS_AT_ONCE = 4096  # values of these sums that are read at a time
LAUNCH = {"num_warps": 4}  # of every kernel
PRODUCT_LAUNCH = {}  # beside it, of those that multiply
JOINED_VALUES = 64  # of a weight's gradient, by a program that joins shares


def unit(conv: nn.Module, norm: nn.Module, relu: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor | None:
    """relu(norm(conv(x)) + added) in training for maps (N, C, H, W), channels last; None where that cannot be so.

    It can under bf16 autocast, for 3x3 convolutions of stride 1 or 2 without bias, to 16, 32 or 64 filters, from 3 or
    as many, and a batch norm with weights and moving averages, all in fp32.
    """
    kind = _type_of_maps(x)
    if kind is None or not normalises(norm, relu) or watched(conv) or not _fits(conv, x, kind):
        return None
    if norm.num_features != conv.out_channels:  # PyTorch says so in words
        return None
    size = x.shape[0], conv.out_channels, *_size_after(x, conv.stride[0])
    rows = size[0] * size[2] * size[3]
    if rows < 2 or _parts(rows, _tile(rows, conv.out_channels)) > MAX_TILES:
        return None
    if added is not None:
        if added.dtype != kind or added.shape != size:
            return None
        added = added.contiguous(memory_format=torch.channels_last)
    averages = norm.running_mean, norm.running_var, norm.num_batches_tracked
    settings = conv.stride[0], norm.momentum, norm.eps, kind
    return _Unit.apply(x, conv.weight, norm.weight, norm.bias, added, averages, settings)


def _type_of_maps(x) -> torch.dtype | None:
    """bf16 under autocast; fp32 where Triton's interpreter computes on a processor, whose bf16 is not rounded."""
    if triton.knobs.runtime.interpret:
        return torch.float32
    bf16 = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    return torch.bfloat16 if bf16 and x.is_cuda else None


def _fits(conv, x, kind) -> bool:
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.padding, conv.padding_mode) == ((3, 3), (1, 1), "zeros")
        and conv.stride in ((1, 1), (2, 2))
        and (conv.dilation, conv.groups, conv.bias) == ((1, 1), 1, None)
        and conv.out_channels in FILTERS
        and conv.in_channels in (3, *FILTERS)
        and conv.weight.dtype == torch.float32
        and x.ndim == 4
        and x.dtype in (torch.float32, kind)
        and x.is_contiguous(memory_format=torch.channels_last)
        and max(x.numel(), x.numel() // conv.in_channels * conv.out_channels) < 2**31  # indices are 32 bits wide
        and not (x.requires_grad and (conv.in_channels == 3 or x.dtype != kind))
    )


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)


def _size_after(x: Tensor, stride: int) -> tuple[int, int]:
    """Height and width of the convolution's output."""
    return _parts(x.shape[2], stride), _parts(x.shape[3], stride)


def _power(number: int) -> int:
    """The power of two that is no smaller."""
    return 1 << (number - 1).bit_length()


def _tile(rows: int, channels: int) -> int:
    """Rows of a program: at least 64, at most what its values allow, in between as many as give all programs work."""
    return max(64, min(_power(_parts(rows, PROGRAMS)), TILE_VALUES // channels))


class _Unit(torch.autograd.Function):
    """(x, weights, added, averages, settings) -> relu(batch norm(conv(x)) + added), channels last.

    averages: running mean, running variance, number of batches, which are moved. settings: stride, momentum and epsilon
    of batch norm, type of maps.
    """

    @staticmethod
    def forward(ctx, x, weight, scale, shift, added, averages, settings):
        stride, momentum, epsilon, kind = settings
        outputs, inputs = weight.shape[:2]
        height, width = _size_after(x, stride)
        y = x.new_empty(x.shape[0], height, width, outputs, dtype=kind).permute(0, 3, 1, 2)
        out = torch.empty_like(y)
        rows = y.numel() // outputs
        tile = _tile(rows, outputs)
        tiles = _parts(rows, tile)
        moments, kept = x.new_empty(tiles, 2, outputs, dtype=torch.float32), scale.new_empty(4, outputs)
        sizes = {"H": x.shape[2], "W": x.shape[3], "HY": height, "WY": width, "STRIDE": stride}
        sizes |= {"INPUTS": inputs, "OUTPUTS": outputs}
        kernels.convolve[(tiles,)](
            x, weight, y, moments, rows, *weight.stride(),
            **sizes, PADDED=max(16, inputs), ROWS=tile, PRODUCT=PRODUCTS[kind], **LAUNCH, **PRODUCT_LAUNCH,
        )  # fmt: skip
        kernels.activate[(tiles,)](
            y, y if added is None else added, out, moments, scale, shift, *averages, kept, rows, momentum, epsilon,
            CHANNELS=outputs, ROWS=tile, TILES=tiles, ADDED=added is not None,
            SOME=SUMS_AT_ONCE // outputs, **LAUNCH,
        )  # fmt: skip
        ctx.sizes, ctx.added = sizes, added is not None
        ctx.save_for_backward(x, weight, y, kept, *([out] if ctx.added else []))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        x, weight, y, kept, *out = ctx.saved_tensors
        inputs, outputs = ctx.sizes["INPUTS"], ctx.sizes["OUTPUTS"]
        slope = slope.contiguous(memory_format=torch.channels_last)
        rows = y.numel() // outputs
        tile = _tile(rows, outputs)
        tiles = _parts(rows, tile)
        masked = torch.empty_like(y) if ctx.added else slope  # through ReLU
        sums = kept.new_empty(tiles, 2, outputs)
        common = {"ADDED": ctx.added} | LAUNCH
        kernels.reduce[(tiles,)](
            slope, y, out[0] if out else y, masked, sums, kept, rows, CHANNELS=outputs, ROWS=tile, **common
        )
        wanted, product = ctx.needs_input_grad[0], PRODUCTS[y.dtype]
        of_y = torch.empty_like(y) if wanted else y
        of_weight, of_scale, of_shift = torch.empty_like(weight), kept.new_empty(outputs), kept.new_empty(outputs)
        padded = _power(inputs)
        columns = min(256 if outputs == 16 else 128, _power(9 * padded))
        parts, block = _parts(9 * padded, columns), 64
        steps = _parts(rows, block * max(1, PROGRAMS // parts))
        number = _parts(rows, block * steps)
        shares = kept.new_empty(number, parts * columns, outputs)
        kernels.correlate[(parts, number)](
            masked, y, x, kept, sums, shares, of_y, of_scale, of_shift, rows, **ctx.sizes,
            PADDED=padded, COLUMNS=columns, ROWS=block, STEPS=steps, TILES=tiles, SOME=SUMS_AT_ONCE // outputs,
            PRODUCT=product, WANTED=wanted, **common, **PRODUCT_LAUNCH,
        )  # fmt: skip
        few = max(1, JOINED_VALUES // outputs)
        kernels.join[(_parts(9 * padded, few),)](
            shares, of_weight, parts * columns, *of_weight.stride(),
            INPUTS=inputs, PADDED=padded, OUTPUTS=outputs, ROWS=few, NUMBER=number, SOME=64, **LAUNCH,
        )  # fmt: skip
        of_x = None
        if wanted:
            of_x, of_rows = torch.empty_like(x), x.numel() // inputs
            tile = _tile(of_rows, max(inputs, outputs))
            kernels.transpose[(_parts(of_rows, tile),)](
                of_y, weight, of_x, of_rows, *weight.stride(),
                **ctx.sizes, ROWS=tile, PRODUCT=product, **LAUNCH, **PRODUCT_LAUNCH,
            )  # fmt: skip
        return of_x, of_weight, of_scale, of_shift, masked if ctx.added else None, None, None
