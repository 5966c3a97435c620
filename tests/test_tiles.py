"""Units of thin nets on matrix tiles: PyTorch's numbers.

Two of a block together: test_tile_pairs.py. In networks and runs: test_tiles_training.py.
"""

import math

import pytest
import torch
from convolving import CPU
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiling import drawn, off, results, usually
from torch import nn

from reslib import compilation, native
from reslib.numerics import autocast
from reslib.tiles import unit

pytestmark = [
    pytest.mark.skipif(bool(compilation.cannot_compile()), reason="no C++ compiler"),
    pytest.mark.usefixtures("own_trials"),
]


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
