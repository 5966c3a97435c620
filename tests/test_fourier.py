"""Convolutions by way of their Fourier transforms: the numbers of the direct sums."""

import dataclasses

import pytest
import torch
from convolving import by, directly, errors, stepper
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reslib.complexity import multiply_adds
from reslib.convolutions import Layer, fourier, layers_met
from reslib.convolutions.choose import convolve
from reslib.passes import Passes

sides = st.integers(1, 9)


@settings(max_examples=100, deadline=None)
@given(st.tuples(sides, sides), st.tuples(sides, sides), st.tuples(*[st.integers(0, 10)] * 2))
def test_output_and_gradients_are_those_of_the_direct_sums(kernel, size, padding):
    """Odd and even lengths, maps that are not square, padding beyond the kernel: against torch, in double precision."""
    layer = Layer(2, 3, kernel, padding, size)
    assume(min(layer.result) > 0)
    for mine, theirs in zip(by("fourier", layer), directly(layer), strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10 * layer.kernel[0] * layer.kernel[1] * 81)


def test_single_precision_rounds_no_worse_than_the_direct_sums():
    for off, usual in errors("fourier", Layer(24, 32, (8, 8), (3, 3), (16, 16))):
        assert off < max(3 * usual, 1e-6)


def test_what_an_evaluation_computes_first_serves_the_training():
    layer = Layer(2, 2, (7, 5), (1, 2), (11, 13))  # of no other test: nothing is kept of it yet
    with torch.inference_mode():
        convolve("fourier", layer, torch.zeros(1, 2, 11, 13), torch.zeros(2, 2, 7, 5))
    by("fourier", layer)


def test_multiply_adds_by_hand():
    layer = Layer(3, 5, (5, 5), (2, 2), (8, 8))
    net = torch.nn.Conv2d(3, 5, 5, padding=2)
    assert layer.direct(7) == 7 * multiply_adds(net, 8) == 7 * 64 * 25 * 15
    # Ten columns, of which six frequencies; ten rows. Real columns into complex numbers, then complex rows.
    assert fourier.periods(layer) == (10, 10)
    maps = 2 * 6 * 8 * 8 + 4 * 6 * 10 * 8
    kernels = 2 * 6 * 5 * 5 + 4 * 6 * 10 * 5
    assert fourier.transformed(layer, 7) == 7 * (3 + 5) * maps + 15 * kernels + 7 * 60 * 4 * 15


@pytest.mark.parametrize(("model", "sizes"), [("maxout", ["8x8 96", "5x5 192"]), ("nin", ["5x5 96"]), ("resnet20", [])])
def test_networks_with_large_kernels(model, sizes):
    step, batch = stepper(model)
    met = layers_met(Passes(step, *batch()))
    assert [str(layer).partition(" to ")[0] for layer in met if fourier.promising(layer, 128)] == sizes
    assert not any(fourier.promising(dataclasses.replace(layer, precision="bf16"), 128) for layer in met)
