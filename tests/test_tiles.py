"""Units of thin nets on matrix tiles: PyTorch's numbers. In networks and runs: test_tiles_training.py."""

import copy
import math

import pytest
import torch
from convolving import CPU
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from reslib import compilation, native
from reslib.models.conv_norm_relu import Subsampled, norm_relu
from reslib.numerics import autocast
from reslib.tiles import two_units, unit

pytestmark = [
    pytest.mark.skipif(bool(compilation.cannot_compile()), reason="no C++ compiler"),
    pytest.mark.usefixtures("own_trials"),
]


def drawn(images, inputs, outputs, height, width, added, stride=1):
    """Convolution, norm with weights and averages of its own, maps, what is added to them, slopes of the output.

    height, width: of the output.
    """
    generator = torch.Generator().manual_seed(images + inputs + outputs + height + width)
    conv, norm = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
    conv.to(memory_format=torch.channels_last)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) / (3 * inputs**0.5))
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            values.copy_(torch.rand(outputs, generator=generator) + 0.1)
        norm.bias.sub_(0.6)

    def maps(channels, times=1):
        values = torch.randn(images, channels, times * height, times * width, generator=generator).bfloat16()
        return values.contiguous(memory_format=torch.channels_last)

    x, other, slopes = maps(inputs, stride), maps(outputs) if added else None, maps(outputs)
    before = results(
        lambda conv, norm, relu, *others: usually(conv, norm, nn.Identity(), *others), conv, norm, x, other
    )
    slopes[before[0].abs() < 0.05] = 0  # whether ReLU passes these, a rounding decides
    return conv, norm, x, other, slopes


def usually(conv, norm, relu, x, added):
    return norm_relu(norm, relu, conv(x), added)


def results(way, conv, norm, x, added, slopes=None, exact=False):
    """Output, gradients and moving averages of one call: under autocast, or in double precision.

    Without slopes the output in double precision alone.
    """
    exact = exact or slopes is None
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
    if exact:  # from the very numbers that are multiplied
        conv.weight.data = conv.weight.data.bfloat16()
        conv, norm, x = conv.double(), norm.double(), x.double()
        added = None if added is None else added.double()
    x = x.detach().clone().requires_grad_()
    added = None if added is None else added.detach().clone().requires_grad_()
    with autocast(CPU, "fp32" if exact else "bf16"):
        y = way(conv, norm, nn.ReLU(inplace=True), x, added)
    if slopes is None:
        return [y.detach()]
    leaves = [x, conv.weight, norm.weight, norm.bias, *([added] if added is not None else [])]
    gradients = torch.autograd.grad(y, leaves, slopes.to(y.dtype))
    return [y.detach(), *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked]


def off(values, truth):
    return float((values.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30))


STRIDED = [  # as below, of the output of stride 2
    (3, 16, 32, 16, 16),
    (3, 32, 64, 8, 8),
    (2, 48, 32, 3, 32),
    (5, 16, 96, 5, 4),
    (9, 64, 32, 1, 2),
    (17, 16, 32, 1, 1),
]
SIZES = [
    (3, 16, 16, 32, 32),  # of the nets of section 4.2
    (3, 32, 32, 16, 16),
    (3, 64, 64, 8, 8),
    (2, 16, 16, 3, 64),
    (2, 32, 96, 5, 48),
    (5, 64, 32, 4, 4),  # groups of four images, the last of one
    (9, 32, 32, 3, 2),
    (17, 32, 32, 1, 1),
]


@pytest.mark.parametrize("stride, size", [(s, size) for s, sizes in ((1, SIZES), (2, STRIDED)) for size in sizes])
@pytest.mark.parametrize("added", [False, True])
def test_output_gradients_and_averages_are_pytorchs(tile_loops, stride, size, added):
    """Against double precision, and hardly further off than PyTorch's own operations, which round as often or more."""
    arguments = drawn(*size, added, stride)
    exact = results(usually, *arguments, exact=True)
    usual, mine = results(usually, *arguments), results(unit, *arguments)
    assert len(mine) == len(usual) == 8 + added
    for truth, theirs, values in zip(exact, usual, mine, strict=True):
        assert values.shape == theirs.shape and values.dtype == theirs.dtype
        assert off(values, truth) < max(1.1 * off(theirs, truth), 1e-4)
    assert mine[0].is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 20),
    st.sampled_from([(16, 16), (16, 32), (32, 32), (32, 64), (48, 32), (96, 32)]),
    st.integers(1, 6),
    st.sampled_from([1, 2, 4, 8, 16, 32, 48]),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_shapes_of_all_kinds(tile_loops, images, channels, height, width, added, stride):
    inputs, outputs = channels
    assume(outputs % 32 == inputs % (32 // stride) == 0 or (inputs, outputs, width, stride) == (16, 16, 32, 1))
    assume(images * height * width > 1)
    arguments = drawn(images, *channels, height, width, added, stride)
    exact, usual, mine = results(usually, *arguments, exact=True), *(results(w, *arguments) for w in (usually, unit))
    for truth, theirs, values in zip(exact, usual, mine, strict=True):
        theirs_off = off(theirs, truth)
        if math.isnan(theirs_off):  # oneDNN reads what nobody wrote where a row of 2 pixels becomes 1 (torch 2.14, AMX)
            theirs_off = 0
        assert off(values, truth) < max(1.5 * theirs_off, 0.01)


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


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(
    ("stride", "size"), [(1, (20, 16, 16, 4, 32)), (1, (50, 64, 32, 5, 8)), (2, (50, 32, 64, 4, 8))]
)
def test_up_to_eight_threads_give_the_same_bits(tile_loops, stride, size, added):
    arguments, before, found = drawn(*size, added, stride), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 8):
            torch.set_num_threads(threads)
            found.append(results(unit, *arguments))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_an_input_that_needs_no_gradient_gets_none(tile_loops):
    conv, norm, x, _, slopes = drawn(2, 32, 32, 4, 8, False)
    with autocast(CPU, "bf16"):
        y = unit(conv, norm, nn.ReLU(), x)
    y.backward(slopes)
    whole = results(unit, conv, norm, x, None, slopes)
    assert x.grad is None and torch.equal(conv.weight.grad, whole[2])


def test_what_is_not_a_number_stays_so(tile_loops):
    """A diverged run must be seen to diverge."""
    for value in (float("nan"), float("inf")):
        conv, norm, x, other, slopes = drawn(4, 32, 32, 5, 8, True)
        x[1, 3, 2, 2] = value
        usual, mine = (results(way, conv, norm, x, other, slopes) for way in (usually, unit))
        for theirs, values in zip(usual, mine, strict=True):
            assert torch.equal(theirs.isfinite(), values.isfinite())


def test_other_libraries_find_their_tiles_as_before(tile_loops):
    """PyTorch's own products use the same registers, and remember how they were set up."""
    a, b = torch.randn(64, 96).bfloat16(), torch.randn(96, 80).bfloat16()
    before = a @ b
    arguments = drawn(3, 32, 32, 16, 16, True)
    for _ in range(3):
        results(unit, *arguments)
        assert torch.equal(a @ b, before)


def test_what_is_left_to_others(emulated_tiles):
    def call(conv=None, norm=None, relu=None, x=None, added=None, precision="bf16"):
        given = drawn(2, 32, 32, 4, 8, False)
        conv, norm, x = (
            mine if mine is not None else drawn for mine, drawn in zip((conv, norm, x), given, strict=False)
        )
        with autocast(CPU, precision):
            return unit(conv, norm, relu or nn.ReLU(), x, added)

    def conv(*sizes, **options):
        return nn.Conv2d(*sizes, **{"kernel_size": 3, "padding": 1, "bias": False} | options)

    def maps(channels, height, width, images=2):
        values = torch.randn(images, channels, height, width).bfloat16()
        return values.contiguous(memory_format=torch.channels_last)

    assert call() is not None
    others = {
        "fp32": {"precision": "fp32"},
        "evaluation": {"norm": nn.BatchNorm2d(32).eval()},
        "no norm": {"norm": nn.Identity()},
        "another activation": {"relu": nn.ReLU6()},
        "stride": {"conv": conv(32, 32, stride=4)},
        "one stride down, one across": {"conv": conv(32, 32, stride=(1, 2))},
        "an odd height to be halved": {"conv": conv(32, 32, stride=2), "x": maps(32, 5, 8)},
        "an odd width to be halved": {"conv": conv(32, 32, stride=2), "x": maps(32, 4, 9)},
        "rows of 12 after halving": {"conv": conv(32, 32, stride=2), "x": maps(32, 4, 24)},
        "few channels to be halved": {"conv": conv(8, 32, stride=2), "x": maps(8, 4, 8)},
        "kernel": {"conv": conv(32, 32, kernel_size=5, padding=2)},
        "padding": {"conv": conv(32, 32, padding=0)},
        "padding with what is there": {"conv": conv(32, 32, padding_mode="reflect")},
        "dilation": {"conv": conv(32, 32, dilation=2, padding=2)},
        "groups": {"conv": conv(32, 32, groups=2)},
        "bias": {"conv": conv(32, 32, bias=True)},
        "weights in bf16": {"conv": conv(32, 32).bfloat16()},
        "maps in fp32": {"x": maps(32, 4, 8).float()},
        "layout": {"x": maps(32, 4, 8).contiguous()},
        "rows of 12": {"x": maps(32, 4, 12)},
        "channels": {"conv": conv(16, 32), "x": maps(16, 4, 32)},
        "few channels in short rows": {"conv": conv(16, 16), "norm": nn.BatchNorm2d(16), "x": maps(16, 4, 16)},
        "one pixel": {"x": maps(32, 1, 1, 1)},
        "one pixel after halving": {"conv": conv(32, 32, stride=2), "x": maps(32, 2, 2, 1)},
        "no image": {"x": maps(32, 4, 8, 0)},
        "no row": {"x": maps(32, 0, 8)},
        "no column": {"x": maps(32, 4, 0)},
        "another norm": {"norm": nn.BatchNorm2d(64)},
        "other channels": {"x": maps(64, 4, 8)},
        "what is added in fp32": {"added": maps(32, 4, 8).float()},
        "what is added smaller": {"added": maps(32, 4, 4)},
    }
    with pytest.MonkeyPatch.context() as patch:  # on tiles that are not there an instruction would be illegal
        patch.setattr(native, "loops", type("Loops", (), {"tile_units": staticmethod(lambda: 0)}))
        assert call() is None
    watched = conv(32, 32)
    watched.register_forward_hook(lambda *arguments: None)
    others["somebody looks at the convolution"] = {"conv": watched}
    watched = conv(32, 32)
    watched.register_full_backward_pre_hook(lambda *arguments: None)
    others["somebody looks at its gradient"] = {"conv": watched}
    strided, narrow = nn.BatchNorm2d(32), nn.BatchNorm2d(32)
    strided.weight, narrow.bias = nn.Parameter(torch.rand(64)[::2]), nn.Parameter(torch.rand(32).bfloat16())
    others |= {"weights apart": {"norm": strided}, "a bias in bf16": {"norm": narrow}}
    for why, options in others.items():
        assert call(**options) is None, why


def test_no_memory_is_an_error_of_python(emulated_tiles, monkeypatch):
    class Loops:
        tile_units = staticmethod(lambda: 1)
        unit_forward = staticmethod(lambda *arguments: 1)
        norm_work = native.loops().norm_work

    conv, norm, x, *_ = drawn(2, 32, 32, 4, 8, False)
    monkeypatch.setattr(native, "loops", Loops)
    with autocast(CPU, "bf16"), pytest.raises(MemoryError, match="tiles of a convolution"):
        unit(conv, norm, nn.ReLU(), x)
