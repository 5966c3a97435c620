"""Two units of a block on matrix tiles: as one after the other. Single ones: test_tiles.py."""

import copy

import pytest
import torch
from convolving import CPU
from tiling import drawn, off
from torch import nn

from reslib import compilation
from reslib.models.conv_norm_relu import Subsampled
from reslib.numerics import autocast
from reslib.tiles import two_units, unit

pytestmark = [
    pytest.mark.skipif(bool(compilation.cannot_compile()), reason="no C++ compiler"),
    pytest.mark.usefixtures("own_trials"),
]


@pytest.mark.parametrize(
    ("stride", "size"),
    [(1, (5, 16, 16, 4, 32)), (1, (5, 64, 64, 8, 8)), (1, (3, 32, 96, 5, 16))]
    + [(2, (3, 16, 32, 4, 16)), (2, (5, 32, 64, 8, 8)), (2, (3, 48, 64, 2, 16))],
)
@pytest.mark.parametrize("shortcut", ["none", "same", "other"])
def test_two_units_are_one_after_the_other(tile_loops, stride, size, shortcut):
    """The same bits but for the gradient of what both take, x itself or x subsampled, which is rounded once less."""
    images, inputs, outputs, height, width = size
    last = inputs if (shortcut, stride) == ("same", 1) else outputs
    conv, norm, x, _, _ = drawn(*size, False, stride)
    conv2, norm2, _, added, slopes = drawn(images, outputs, last, height, width, True)
    found = []
    for together in (True, False):
        first = *copy.deepcopy((conv, norm)), nn.ReLU(inplace=True)
        second = *copy.deepcopy((conv2, norm2)), nn.ReLU(inplace=True)
        start, other = (t.detach().clone().requires_grad_() for t in (x, added))
        subsampled = Subsampled(2, outputs - inputs)
        plus = {"none": None, "same": start if stride == 1 else subsampled, "other": other}[shortcut]
        with autocast(CPU, "bf16"):
            if together:
                y = two_units(first, second, start, plus)
            else:
                y = unit(*second, unit(*first, start), subsampled(start) if plus is subsampled else plus)
        y.backward(slopes)
        parameters = [p.grad for module in (*first, *second) for p in module.parameters()]
        buffers = [b for module in (*first, *second) for b in module.buffers()]
        found.append([start.grad, other.grad, y.detach(), *parameters, *buffers])
    mine, theirs = found
    assert (mine[1] is None) == (shortcut != "other")
    for values, truth in zip(mine[1:], theirs[1:], strict=True):
        # sums for the first norm are joined in another order: in the last digits, of what is fp32
        assert values is truth is None or torch.allclose(values, truth, rtol=1e-4, atol=1e-5)
    assert off(mine[0], theirs[0]) < (3e-3 if shortcut == "same" else 1e-4)


def test_a_shortcut_subsampled_in_another_way_is_computed_by_itself(emulated_tiles):
    """Not as the first convolution does; what then does not fit is left to others."""
    conv, norm, x, _, slopes = drawn(2, 32, 64, 4, 8, False)
    conv2, norm2, *_ = drawn(2, 64, 64, 4, 8, False)
    units, widened, found = ((conv, norm, nn.ReLU()), (conv2, norm2, nn.ReLU())), Subsampled(1, 32), []
    with autocast(CPU, "bf16"):
        for itself in (True, False):
            start = x.detach().clone().requires_grad_()
            y = two_units(*copy.deepcopy(units), start, widened if itself else widened(start))
            y.backward(slopes)
            found.append((y, start.grad))
        assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
        assert two_units(*units, x, Subsampled(2, 32)) is None and two_units(*units, x, Subsampled(1, 16)) is None


@pytest.mark.parametrize("widths", [(32, 64, 96), (32, 96, 64), (64, 64, 32)], ids=str)
def test_a_subsampled_shortcut_between_units_of_other_widths(tile_loops, widths):
    """What is added to the gradient then has not the channels of the first unit; fewer than x has are none to add."""
    inputs, middle, outputs = widths
    conv, norm, x, _, _ = drawn(3, inputs, middle, 4, 8, False, 2)
    conv2, norm2, _, _, slopes = drawn(3, middle, outputs, 4, 8, True)
    units, found = ((conv, norm, nn.ReLU()), (conv2, norm2, nn.ReLU())), []
    shortcut = Subsampled(2, outputs - inputs)
    for together in (True, False):
        first, second = copy.deepcopy(units)
        start = x.detach().clone().requires_grad_()
        with autocast(CPU, "bf16"):
            added = shortcut if together else shortcut(start)
            y = two_units(first, second, start, added) if together else unit(*second, unit(*first, start), added)
        y.backward(slopes)
        found.append(start.grad)
    assert off(*found) < 3e-3
    with autocast(CPU, "bf16"):
        assert two_units(*units, x, Subsampled(2, outputs - inputs + 16)) is None  # channels that the sum has not


def test_maps_without_gradient_in_front_of_a_subsampled_shortcut(tile_loops):
    conv, norm, x, _, _ = drawn(3, 32, 64, 4, 8, False, 2)
    conv2, norm2, _, _, slopes = drawn(3, 64, 64, 4, 8, True)
    found = []
    for wanted in (True, False):
        first, second = copy.deepcopy(((conv, norm, nn.ReLU()), (conv2, norm2, nn.ReLU())))
        start = x.detach().clone().requires_grad_(wanted)
        with autocast(CPU, "bf16"):
            two_units(first, second, start, Subsampled(2, 32)).backward(slopes)
        assert (start.grad is not None) == wanted
        found.append([p.grad for module in (*first, *second) for p in module.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_where_one_of_two_units_does_not_fit_neither_is_taken(emulated_tiles):
    fits, strided, wide = (
        nn.Conv2d(32, 32, 3, stride, padding, bias=False) for stride, padding in ((1, 1), (2, 1), (1, 2))
    )
    x = torch.randn(2, 32, 4, 8).bfloat16().contiguous(memory_format=torch.channels_last)
    norms = [nn.BatchNorm2d(32) for _ in range(3)]
    with autocast(CPU, "bf16"):
        unfit = (wide, fits, None), (fits, wide, None), (fits, strided, None), (fits, fits, x[:1])
        for first, second, added in unfit:
            units = ((conv, norm, nn.ReLU()) for conv, norm in zip((first, second), norms, strict=False))
            assert two_units(*units, x, added) is None
    assert [norm.num_batches_tracked for norm in norms] == [0, 0, 0]
