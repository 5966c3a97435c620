"""Convolution, batch norm, addition of the shortcut and ReLU of a thin net as six Triton kernels (kernels.py)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from ..models.conv_norm_relu import normalises, watched
from . import kernels
from .plans import MAX_TILES, Plan, parts, plan_of, power, tile

FILTERS = (16, 32, 64)  # that these kernels are laid out for; where there are more, cuDNN is at home
PRODUCTS = {torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}  # type of maps: of a product's operands
SUMS_AT_ONCE = 4096  # values of the sums of tiles that are read at a time
SHARES_AT_ONCE = 64  # shares of a weight's gradient that are read at a time
JOINED_VALUES = 64  # of a weight's gradient, by a program that joins shares


def unit(conv: nn.Module, norm: nn.Module, relu: nn.Module, x: Tensor, added: Tensor | None = None) -> Tensor | None:
    """relu(norm(conv(x)) + added) in training for maps (N, C, H, W), channels last; None where that cannot be so.

    It can under bf16 autocast, for 3x3 convolutions of stride 1 or 2 without bias, to 16, 32 or 64 filters, from 3 or
    as many, and a batch norm with weights and moving averages, all in fp32; up to 524,288 pixels of 16 filters in a
    batch, 131,072 of 64 (see plans.MAX_TILES).
    """
    kind = _type_of_maps(x)
    if kind is None or not normalises(norm, relu) or watched(conv) or not _fits(conv, x, kind):
        return None
    if norm.num_features != conv.out_channels:  # PyTorch says so in words
        return None
    size = x.shape[0], conv.out_channels, *_size_after(x, conv.stride[0])
    rows = size[0] * size[2] * size[3]
    if rows < 2 or any(
        parts(rows, tile(kernel, plan_of(kernel, before, size[1]), rows, size[1])) > MAX_TILES
        for kernel, before in (("convolve", conv.in_channels), ("reduce", size[1]))
    ):
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


def _size_after(x: Tensor, stride: int) -> tuple[int, int]:
    """Height and width of the convolution's output."""
    return parts(x.shape[2], stride), parts(x.shape[3], stride)


class _Unit(torch.autograd.Function):
    """(x, weights, added, averages, settings) -> relu(batch norm(conv(x)) + added), channels last.

    averages: running mean, running variance, number of batches, which are moved. settings: stride, momentum and epsilon
    of batch norm, type of maps.
    """

    @staticmethod
    def forward(ctx, x, weight, scale, shift, added, averages, settings):
        stride, momentum, epsilon, kind = settings
        ctx.launch = launch = Launch(x, weight, stride, kind)
        y, moments, of_tile = launch.convolve(x, weight)
        out, kept = launch.activate(y, added, moments, of_tile, scale, shift, averages, momentum, epsilon)
        ctx.added = added is not None
        ctx.save_for_backward(x, weight, y, kept, *([out] if ctx.added else []))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        x, weight, y, kept, *out = ctx.saved_tensors
        launch, slope = ctx.launch, slope.contiguous(memory_format=torch.channels_last)
        masked, sums = launch.reduce(slope, y, *(out or [None]), kept)
        wanted = ctx.needs_input_grad[0]
        of_y, shares, of_scale, of_shift = launch.correlate(masked, y, x, kept, sums, ctx.added, wanted)
        of_weight, of_x = torch.empty_like(weight), torch.empty_like(x) if wanted else None
        if wanted:
            launch.transpose(of_y, weight, of_x, shares, of_weight)
        else:
            launch.join(shares, of_weight)
        return of_x, of_weight, of_scale, of_shift, masked if ctx.added else None, None, None


class Launch:
    """Launches of the kernels of one unit, whose maps and weight are like these; arguments as in kernels.py."""

    def __init__(self, x: Tensor, weight: Tensor, stride: int, kind: torch.dtype):
        self.outputs, self.inputs = weight.shape[:2]
        height, width = _size_after(x, stride)
        self.kind = kind
        self.shape = x.shape[0], height, width, self.outputs
        self.rows, self.rows_of_x = x.shape[0] * height * width, x.numel() // self.inputs
        self.sizes = {"H": x.shape[2], "W": x.shape[3], "HY": height, "WY": width, "STRIDE": stride}
        self.sizes |= {"INPUTS": self.inputs, "OUTPUTS": self.outputs}

    def _plan(self, kernel: str, inputs: int | None = None) -> tuple[Plan, dict]:
        """(plan, what it says of a launch)."""
        plan = plan_of(kernel, inputs or self.outputs, self.outputs)
        return plan, {"num_warps": plan.warps, "num_stages": plan.stages}

    def convolve(self, x, weight):
        """(y, moments of its tiles, rows of a tile)."""
        plan, launch = self._plan("convolve", self.inputs)
        y = x.new_empty(self.shape, dtype=self.kind).permute(0, 3, 1, 2)
        rows, taps = tile("convolve", plan, self.rows, self.outputs), 9 if self.inputs == 3 else 1
        tiles = parts(self.rows, rows)
        moments = x.new_empty(tiles, 2, self.outputs, dtype=torch.float32)
        kernels.convolve[(tiles,)](
            x, weight, y, moments, self.rows, *weight.stride(), **self.sizes, TAPS=taps,
            WIDE=max(16, power(taps * self.inputs)), ROWS=rows, PRODUCT=PRODUCTS[self.kind], **launch,
        )  # fmt: skip
        return y, moments, rows

    def activate(self, y, added, moments, of_tile, scale, shift, averages, momentum, epsilon):
        """(out, what is kept of the batch norm)."""
        plan, launch = self._plan("activate")
        out, kept = torch.empty_like(y), scale.new_empty(4, self.outputs)
        block = plan.block or self.outputs
        rows = tile("activate", plan, self.rows, self.outputs)
        kernels.activate[(parts(self.rows, rows), self.outputs // block)](
            y, y if added is None else added, out, moments, scale, shift, *averages, kept, self.rows, momentum, epsilon,
            CHANNELS=self.outputs, BLOCK=block, ROWS=rows, TILES=moments.shape[0], TILE=of_tile,
            ADDED=added is not None, SOME=SUMS_AT_ONCE // block, **launch,
        )  # fmt: skip
        return out, kept

    def reduce(self, slope, y, out, kept):
        """(slope, through ReLU where something was added, its sums by tile); out: None where nothing was added."""
        plan, launch = self._plan("reduce")
        rows = tile("reduce", plan, self.rows, self.outputs)
        tiles = parts(self.rows, rows)
        masked = slope if out is None else torch.empty_like(y)
        sums = kept.new_empty(tiles, 2, self.outputs)
        kernels.reduce[(tiles,)](
            slope, y, y if out is None else out, masked, sums, kept, self.rows, CHANNELS=self.outputs, ROWS=rows,
            ADDED=out is not None, **launch,
        )  # fmt: skip
        return masked, sums

    def correlate(self, masked, y, x, kept, sums, added, wanted):
        """(gradient of y, shares of the weight's, gradients of the batch norm's weight and bias)."""
        plan, launch = self._plan("correlate", self.inputs)
        of_y = torch.empty_like(y) if wanted else y
        of_scale, of_shift = kept.new_empty(self.outputs), kept.new_empty(self.outputs)
        number_of_parts = parts(9 * self.inputs, plan.columns)
        steps = parts(self.rows, plan.rows * max(1, plan.programs // number_of_parts))
        number = parts(self.rows, plan.rows * steps)
        shares = kept.new_empty(number, number_of_parts * plan.columns, self.outputs)
        kernels.correlate[(number_of_parts, number)](
            masked, y, x, kept, sums, shares, of_y, of_scale, of_shift, self.rows, **self.sizes, COLUMNS=plan.columns,
            ROWS=plan.rows, STEPS=steps, TILES=sums.shape[0], ADDED=added, SOME=SUMS_AT_ONCE // self.outputs,
            PRODUCT=PRODUCTS[self.kind], WANTED=wanted, **launch,
        )  # fmt: skip
        return of_y, shares, of_scale, of_shift

    def _joined(self, shares) -> tuple[int, int]:
        """(rows of shares that a program joins, programs)."""
        few = max(1, JOINED_VALUES // self.outputs)
        return few, parts(9 * self.inputs, few)

    def join(self, shares, of_weight) -> None:
        """The weight's gradient is written."""
        few, programs = self._joined(shares)
        kernels.join[(programs,)](
            shares, of_weight, shares.shape[1], *of_weight.stride(), INPUTS=self.inputs, OUTPUTS=self.outputs,
            ROWS=few, NUMBER=shares.shape[0], SOME=SHARES_AT_ONCE,
        )  # fmt: skip

    def transpose(self, of_y, weight, of_x, shares, of_weight) -> None:
        """The gradients of x and of the weight are written."""
        plan, launch = self._plan("transpose", self.inputs)
        rows = tile("transpose", plan, self.rows_of_x, self.inputs)
        few, joins = self._joined(shares)
        kernels.transpose[(joins + parts(self.rows_of_x, rows),)](
            of_y, weight, of_x, self.rows_of_x, *weight.stride(), shares, of_weight, shares.shape[1],
            *of_weight.stride(), **self.sizes, ROWS=rows,
            PRODUCT=PRODUCTS[self.kind], JOINS=joins, JOINED=few, NUMBER=shares.shape[0], SOME=SHARES_AT_ONCE, **launch,
        )  # fmt: skip
