"""Convolutions by way of their Fourier transforms: the numbers of the direct sums, and only where that is faster."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from training import rows_of, silent, tiny, train_in_pieces, weights_of

from reslib import compilation, fourier, tune
from reslib.complexity import multiply_adds
from reslib.engine import make_optimizer, make_step
from reslib.errors import UserError
from reslib.fourier import Convolutions, FourierLoss, Layer, conv2d, layer_of, layers_met, wins
from reslib.job import Execution
from reslib.models import build_model
from reslib.passes import Passes, difference
from reslib.train import train

CPU = torch.device("cpu")
CHOSEN = tune.Choice("fp32", 1, compile=False)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RESLIB_TUNE", raising=False)


def stepper(model, size=2):
    recipe = tiny(model=model, batch_size=size)
    torch.manual_seed(0)
    net = build_model(model).to(memory_format=torch.channels_last).train()
    step = make_step(recipe, net, make_optimizer(recipe, net, CPU), CPU, "fp32")
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(size, 3, 32, 32, generator=generator), torch.arange(size) % 10
    return step, lambda: (images, labels)


def both_ways(layer, dtype=torch.float64, batch=2, form=torch.contiguous_format):
    """((output, gradients) direct, the same transformed)."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        return (values.contiguous(memory_format=form) if len(shape) == 4 else values).requires_grad_()

    x = draw(batch, layer.inputs, *layer.size)
    weight, bias = draw(layer.outputs, layer.inputs, *layer.kernel), draw(layer.outputs)
    results = []
    for y in (F.conv2d(x, weight, bias, padding=layer.padding), conv2d(x, weight, bias, layer)):
        slope = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
        results.append((y, *torch.autograd.grad((y * slope).sum(), (x, weight, bias))))
    return results


sides = st.integers(1, 9)


@settings(max_examples=100, deadline=None)
@given(st.tuples(sides, sides), st.tuples(sides, sides), st.tuples(*[st.integers(0, 10)] * 2))
def test_output_and_gradients_are_those_of_the_direct_sums(kernel, size, padding):
    """Odd and even lengths, maps that are not square, padding beyond the kernel: against torch, in double precision."""
    layer = Layer(2, 3, kernel, padding, size)
    assume(min(layer.result) > 0)
    direct, transformed = both_ways(layer)
    for mine, theirs in zip(transformed, direct, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10 * layer.kernel[0] * layer.kernel[1] * 81)


def test_single_precision_rounds_no_worse_than_the_direct_sums():
    layer = Layer(24, 32, (8, 8), (3, 3), (16, 16))
    exact = both_ways(layer)[0]
    direct, transformed = both_ways(layer, torch.float32)
    for truth, mine, theirs in zip(exact, transformed, direct, strict=True):
        off, usual = ((values.double() - truth).norm() / truth.norm() for values in (mine, theirs))
        assert off < max(3 * usual, 1e-6)


def test_what_an_evaluation_computes_first_serves_the_training():
    layer = Layer(2, 2, (7, 5), (1, 2), (11, 13))  # of no other test: nothing is kept of it yet
    with torch.inference_mode():
        conv2d(torch.zeros(1, 2, 11, 13), torch.zeros(2, 2, 7, 5), None, layer)
    both_ways(layer)


@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_the_output_lies_in_memory_as_that_of_the_direct_sum(form):
    """Dropout draws its numbers in the order of the memory."""
    direct, transformed = both_ways(Layer(3, 4, (5, 5), (2, 2), (8, 8)), form=form)
    assert transformed[0].stride() == direct[0].stride()


def test_which_calls_are_layers():
    x, weight = torch.zeros(2, 4, 9, 9), torch.zeros(8, 4, 5, 5)
    layer = Layer(4, 8, (5, 5), (2, 2), (9, 9))
    assert layer_of(x, weight, None, 1, 2) == layer_of(x, weight, padding=(2, 2), stride=[1, 1]) == layer
    assert layer_of(input=x, weight=weight, padding=(2,)) == layer
    for other in ({"stride": 2}, {"dilation": (2, 2)}, {"groups": 2}, {"padding": "same"}):
        assert layer_of(x, weight, **other) is None
    assert layer_of(x.bfloat16(), weight.bfloat16()) is None and layer_of(x[0], weight) is None
    assert str(layer) == "5x5 4 to 8, padding 2 2, on 9x9"


def test_multiply_adds_by_hand():
    layer = Layer(3, 5, (5, 5), (2, 2), (8, 8))
    net = torch.nn.Conv2d(3, 5, 5, padding=2)
    assert layer.direct(7) == 7 * multiply_adds(net, 8) == 7 * 64 * 25 * 15
    # Ten columns, of which six frequencies; ten rows. Real columns into complex numbers, then complex rows.
    assert layer.periods == (10, 10)
    maps = 2 * 6 * 8 * 8 + 4 * 6 * 10 * 8
    kernels = 2 * 6 * 5 * 5 + 4 * 6 * 10 * 5
    assert layer.transformed(7) == 7 * (3 + 5) * maps + 15 * kernels + 7 * 60 * 4 * 15


@pytest.mark.parametrize(("model", "sizes"), [("maxout", ["8x8 96", "5x5 192"]), ("nin", ["5x5 96"]), ("resnet20", [])])
def test_networks_with_large_kernels(model, sizes):
    step, batch = stepper(model)
    met = layers_met(Passes(step, *batch()))
    assert [str(layer).partition(" to ")[0] for layer in met if layer.promising(128)] == sizes


def ticking(*seconds):
    """A clock on which the trial's turns take these seconds, over and over."""
    turns, now = itertools.cycle(seconds), [0.0]

    def clock():
        clock.calls += 1
        if clock.calls % 2 == 0:
            now[0] += next(turns)
        return now[0]

    clock.calls = 0
    return clock


def test_the_faster_way_is_measured():
    layer = Layer(2, 2, (5, 5), (2, 2), (6, 6))
    assert wins(layer, 2, torch.channels_last, ticking(1.0, 0.5))
    assert not wins(layer, 2, torch.channels_last, ticking(1.0, 0.95))  # within the margin
    assert not wins(layer, 2, torch.channels_last, ticking(1.0, 2.0))


# --- In training ------------------------------------------------------------------------------------------------------


def test_maxout_computes_the_same_loss_and_gradient():
    step, batch = stepper("maxout")
    passes = Passes(step, *batch())
    layers = [layer for layer in layers_met(passes) if layer.promising(128)]
    mine, theirs = passes.run(step.loss), passes.run(FourierLoss(step.loss, layers))
    assert len(layers) == 2 and difference(mine, theirs) < 1e-4  # dropout's masks are the same


def chosen(monkeypatch, model="nin", size=16, answer=True, **options):
    """The evidence of a trial whose every layer is as fast as the test says."""
    monkeypatch.setattr(fourier, "wins", lambda *arguments: answer)
    step, batch = stepper(model, size)
    return compilation.accelerate(step, CHOSEN, batch, **{"left": 10_000, "say": silent} | options), step


def test_layers_are_chosen_by_trial_and_kept_in_the_record(monkeypatch):
    evidence, step = chosen(monkeypatch)
    name = "5x5 96 to 192, padding 2 2, on 16x16"
    assert evidence["fourier"] == [name] and isinstance(step.loss, FourierLoss)
    assert "1 convolution by Fourier transform" in compilation.describe("fp32", evidence)
    with step.convolutions() as active:
        assert [str(layer) for layer in active.layers] == [name]
    assert "fourier" not in chosen(monkeypatch, answer=False)[0]
    assert "fourier" not in chosen(monkeypatch, left=100)[0]  # too short
    assert "fourier" not in chosen(monkeypatch, limit=0.001)[0]
    as_begun = {"threads": 1, "layout": "channels-last", "compiled": False}
    assert "fourier" not in chosen(monkeypatch, before=as_begun)[0]
    assert chosen(monkeypatch, before=as_begun | {"fourier": [name]}, answer=False, left=3)[0]["fourier"] == [name]


def test_what_is_never_transformed(monkeypatch):
    monkeypatch.setattr(fourier, "layers_met", lambda passes: pytest.fail("a pass was tried"))
    monkeypatch.setattr(compilation, "cannot_compile", lambda: "no C++ compiler")
    step, batch = stepper("nin")
    for changes in ({"fourier": False}, {"compile": True}):
        asked = dataclasses.replace(CHOSEN, **changes)
        assert "fourier" not in compilation.accelerate(step, asked, batch, 10_000, say=silent)
    own, batch = stepper("own_models:Small")  # a pass might draw or count in Python
    assert "fourier" not in compilation.accelerate(own, CHOSEN, batch, 10_000, say=silent)


def test_transforms_that_compute_something_else_are_refused(monkeypatch):
    right = fourier.conv2d
    monkeypatch.setattr(fourier, "conv2d", lambda *arguments: 1.2 * right(*arguments))
    said = []
    evidence, _ = chosen(monkeypatch, say=said.append)
    assert "fourier" not in evidence and "no Fourier transforms: loss or gradient would be off by" in said[0]


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,fourier=false")
    assert tune.choice_for(64_000).fourier is False
    assert tune.choice_for(64_000, deterministic=True).fourier is False
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1")
    assert tune.choice_for(64_000).fourier is None and tune.choice_for(64_000, deterministic=True).fourier is False
    monkeypatch.setenv("RESLIB_TUNE", "fourier=always")
    with pytest.raises(UserError, match="RESLIB_TUNE fourier 'always' is unknown: allowed are true, false"):
        tune.check_environment()


def test_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,compile=false,fourier=true")
    monkeypatch.setattr(fourier, "SAVING", 1)
    calls, right = [], fourier.conv2d
    monkeypatch.setattr(fourier, "conv2d", lambda *arguments: calls.append(arguments[0].shape[0]) or right(*arguments))
    recipe = tiny(model="own_models:Wide")
    execution = Execution(device="cpu")
    whole = train(recipe, tmp_path / "whole", execution=execution, say=silent)
    assert whole["sessions"][0]["speed"]["fourier"] == ["7x7 8 to 8, padding 3 3, on 8x8"]
    assert calls.count(recipe.batch_size) >= recipe.iterations and max(calls) > recipe.batch_size  # evaluation as well
    pieces, sessions = train_in_pieces(monkeypatch, recipe, tmp_path / "pieces", 5, execution)
    assert sessions > 1
    assert weights_of(tmp_path / "pieces", recipe) == weights_of(tmp_path / "whole", recipe)
    assert rows_of(tmp_path / "pieces", recipe) == rows_of(tmp_path / "whole", recipe)
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,compile=false,fourier=false")
    direct = train(recipe, tmp_path / "direct", execution=execution, say=silent)
    assert "fourier" not in direct["sessions"][0]["speed"]
    assert direct["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-4)


def test_the_mode_passes_everything_else_through():
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3)
    with Convolutions() as mode:
        plain, strided = F.conv2d(x, weight), F.conv2d(x, weight, stride=2)
    assert torch.equal(plain, F.conv2d(x, weight)) and torch.equal(strided, F.conv2d(x, weight, stride=2))
    layer = Layer(3, 4, (3, 3), (0, 0), (9, 9))
    with Convolutions([layer]):
        torch.testing.assert_close(F.conv2d(input=x, weight=weight), plain)
    assert list(mode.met) == [Layer(3, 4, (3, 3), (0, 0), (9, 9))]
    biased = {"bias": torch.ones(4), "padding": 1}
    with Convolutions([Layer(3, 4, (3, 3), (1, 1), (9, 9))]):
        torch.testing.assert_close(F.conv2d(x, weight, **biased), F.conv2d(x, weight, torch.ones(4), padding=1))
