"""Which algorithm computes a convolution: chosen by trial, kept in the record, and nothing but speed depends on it."""

import dataclasses
import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from convolving import by, directly, stepper
from training import rows_of, silent, tiny, train_in_pieces, weights_of

from reslib import compilation, native, trials, tune
from reslib.convolutions import (
    Convolutions,
    Layer,
    OtherLoss,
    choose,
    fourier,
    layer_of,
    layers_met,
    winograd,
    wins,
)
from reslib.errors import UserError
from reslib.job import Execution
from reslib.passes import Passes, difference, sound
from reslib.train import train

CHOSEN = tune.Choice("fp32", 1, compile=False)
needs_compiler = pytest.mark.skipif(bool(compilation.cannot_compile()), reason="no C++ compiler")
NEEDS_COMPILER = pytest.param("winograd", marks=needs_compiler)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RESLIB_TUNE", raising=False)


@pytest.mark.parametrize("algorithm", ["fourier", NEEDS_COMPILER])
@pytest.mark.parametrize("form", [torch.channels_last, torch.contiguous_format])
def test_the_output_lies_in_memory_as_that_of_the_direct_sum(algorithm, form):
    """Dropout draws its numbers in the order of the memory."""
    layer = Layer(16, 32, (3, 3), (1, 1), (8, 8))
    mine, theirs = by(algorithm, layer, torch.float32, form=form), directly(layer, torch.float32, form=form)
    assert mine[0].stride() == theirs[0].stride()


def test_which_calls_are_layers():
    x, weight = torch.zeros(2, 4, 9, 9), torch.zeros(8, 4, 5, 5)
    layer = Layer(4, 8, (5, 5), (2, 2), (9, 9))
    assert layer_of(x, weight, None, 1, 2) == layer_of(x, weight, padding=(2, 2), stride=[1, 1]) == layer
    assert layer_of(input=x, weight=weight, padding=(2,)) == layer
    for other in ({"stride": 2}, {"dilation": (2, 2)}, {"groups": 2}, {"padding": "same"}):
        assert layer_of(x, weight, **other) is None
    assert layer_of(x.bfloat16(), weight.bfloat16()) is None and layer_of(x[0], weight) is None
    with torch.autocast("cpu", torch.bfloat16):
        narrow = layer_of(x.bfloat16(), weight, None, 1, 2)
        assert narrow == layer_of(x, weight, None, 1, 2) == dataclasses.replace(layer, precision="bf16") != layer
        assert layer_of(x.double(), weight) is None and layer_of(x, weight.bfloat16()) is None
    with torch.autocast("cpu", torch.float16):
        assert layer_of(x, weight) is None
    assert str(layer) == "5x5 4 to 8, padding 2 2, on 9x9"


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
    assert wins("fourier", layer, 2, torch.channels_last, ticking(1.0, 0.5))
    assert not wins("fourier", layer, 2, torch.channels_last, ticking(1.0, 0.95))  # within the margin
    assert not wins("fourier", layer, 2, torch.channels_last, ticking(1.0, 2.0))


# --- In training ------------------------------------------------------------------------------------------------------


def test_maxout_computes_the_same_loss_and_gradient():
    step, batch = stepper("maxout")
    passes = Passes(step, *batch())
    layers = [layer for layer in layers_met(passes) if fourier.promising(layer, 128)]
    mine = passes.run(step.loss)
    theirs = passes.run(OtherLoss(step.loss, dict.fromkeys(layers, "fourier")))
    assert len(layers) == 2 and difference(mine, theirs) < 1e-4  # dropout's masks are the same


@needs_compiler
@pytest.mark.parametrize(
    ("precision", "compiled"),
    [("fp32", False), ("fp32", True), ("bf16", False), pytest.param("bf16", True, marks=pytest.mark.long)],
)
def test_resnets_compute_the_same_loss_and_gradient(monkeypatch, precision, compiled):
    emulate(monkeypatch, precision)
    step, batch = stepper("resnet8" if compiled else "resnet20", 8, precision)
    passes = Passes(step, *batch())
    layers = [layer for layer in layers_met(passes) if winograd.promising(layer, 8)]
    assert [(layer.inputs, layer.outputs) for layer in layers] == [(16, 16), (32, 32), (64, 64)]
    loss = OtherLoss(step.loss, dict.fromkeys(layers, "winograd"))
    theirs = passes.run(compilation.CompiledLoss(loss, pytest.fail) if compiled else loss)
    mine, exact = passes.run(step.loss), passes.exact()
    assert sound(passes, mine, theirs) and difference(mine, theirs) < (0.01 if precision == "fp32" else 0.5)
    assert difference(exact, theirs) < 1.2 * difference(exact, mine) or precision == "fp32"
    step.loss = loss
    assert difference(exact, passes.exact()) == 0  # what the compiled pass of a plain net is compared with


@functools.cache
def emulated():
    return native.build("-DEMULATED")


def emulate(monkeypatch, precision):
    """Products of bf16 pairs on any processor."""
    if precision == "bf16":
        monkeypatch.setattr(native, "loops", emulated)


def chosen(monkeypatch, model="nin", size=16, answer=True, whole=0.5, **options):
    """The evidence of a trial whose every layer, and whole pass, is as fast as the test says."""
    monkeypatch.setattr(choose, "wins", lambda algorithm, *others: answer and algorithm == "fourier")
    monkeypatch.setattr(Passes, "seconds", lambda self, loss: whole if isinstance(loss, OtherLoss) else 1.0)
    monkeypatch.setattr(trials, "known", lambda name: {})
    step, batch = stepper(model, size)
    return compilation.accelerate(step, CHOSEN, batch, **{"left": 10_000, "say": silent} | options), step


def test_layers_are_chosen_by_trial_and_kept_in_the_record(monkeypatch):
    evidence, step = chosen(monkeypatch)
    name = "5x5 96 to 192, padding 2 2, on 16x16"
    assert evidence["fourier"] == [name] and isinstance(step.loss, OtherLoss)
    assert ", 1 kind of convolution by Fourier transform, not compiled" in compilation.describe("fp32", evidence)
    with step.convolutions() as active:
        assert {str(layer): way for layer, way in active.algorithms.items()} == {name: "fourier"}
    assert "fourier" not in chosen(monkeypatch, answer=False)[0]
    assert "fourier" not in chosen(monkeypatch, whole=0.99)[0]  # each layer faster, all of them not
    assert "fourier" not in chosen(monkeypatch, left=100)[0]  # too short
    assert "fourier" not in chosen(monkeypatch, limit=0.001)[0]
    as_begun = {"threads": 1, "layout": "channels-last", "compiled": False}
    assert "fourier" not in chosen(monkeypatch, before=as_begun)[0]
    assert chosen(monkeypatch, before=as_begun | {"fourier": [name]}, answer=False, left=3)[0]["fourier"] == [name]


def test_a_run_goes_on_where_there_is_no_compiler(monkeypatch):
    """It was begun with Winograd's algorithm on a machine that had one."""
    monkeypatch.setattr(native, "unavailable", lambda: "no C++ compiler (g++, clang++) is installed")
    said, begun = [], {"threads": 1, "layout": "channels-last", "compiled": False}
    begun |= {"winograd": ["3x3 16 to 16, padding 1 1, on 32x32"]}
    evidence, step = chosen(monkeypatch, "resnet8", before=begun, left=3, say=said.append)
    assert "winograd" not in evidence and not isinstance(step.loss, OtherLoss)
    assert said[0] == "no convolutions by winograd: no C++ compiler (g++, clang++) is installed"
    assert said[1].startswith("note: it was begun with winograd ['3x3 16 to 16, padding 1 1, on 32x32']; continued")


def test_when_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(choose, "layers_met", lambda passes: pytest.fail("a pass was tried"))
    monkeypatch.setattr(compilation, "cannot_compile", lambda: "no C++ compiler")
    step, batch = stepper("nin")
    for changes in ({"fourier": False}, {"compile": True}):
        asked = dataclasses.replace(CHOSEN, winograd=False, **changes)
        assert "fourier" not in compilation.accelerate(step, asked, batch, 10_000, say=silent)
    monkeypatch.setattr(winograd, "unavailable", lambda precision: f"not on this processor in {precision}")
    step.precision, said = "bf16", []
    assert "winograd" not in compilation.accelerate(step, CHOSEN, batch, 10_000, say=said.append) and not said
    asked = dataclasses.replace(CHOSEN, winograd=True, fourier=True)
    assert "winograd" not in compilation.accelerate(step, asked, batch, 10_000, say=said.append)
    reasons = {"winograd": "not on this processor in bf16", "fourier": "for fp32 alone, not bf16"}
    assert said == [f"no convolutions by {name}: {reason}" for name, reason in reasons.items()]
    own, batch = stepper("own_models:Small")  # a pass might draw or count in Python
    assert "fourier" not in compilation.accelerate(own, CHOSEN, batch, 10_000, say=silent)


def test_algorithms_that_compute_something_else_are_refused(monkeypatch):
    right = fourier.conv2d
    monkeypatch.setattr(fourier, "conv2d", lambda *arguments: 1.2 * right(*arguments))
    said = []
    evidence, _ = chosen(monkeypatch, say=said.append)
    assert "fourier" not in evidence
    assert said[0].startswith("no convolutions by fourier: loss or gradient would be off by 18.")
    as_begun = {"threads": 1, "layout": "channels-last", "compiled": False}
    as_begun |= {"fourier": ["5x5 96 to 192, padding 2 2, on 16x16"]}
    assert "fourier" in chosen(monkeypatch, before=as_begun)[0]  # it was judged when the run was begun


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,fourier=false")
    assert tune.choice_for(64_000).fourier is False
    assert tune.choice_for(64_000, deterministic=True).fourier is False
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1")
    assert tune.choice_for(64_000).fourier is None and tune.choice_for(64_000, deterministic=True).fourier is False
    for field in ("fourier", "winograd"):
        monkeypatch.setenv("RESLIB_TUNE", f"{field}=always")
        with pytest.raises(UserError, match=f"RESLIB_TUNE {field} 'always' is unknown: allowed are true, false"):
            tune.check_environment()


RESUMED = {
    "fourier": ("own_models:Wide", "7x7 8 to 8, padding 3 3, on 8x8"),
    "winograd": ("resnet8", "3x3 16 to 16, padding 1 1, on 32x32"),
}


@pytest.mark.parametrize(
    ("algorithm", "precision"),
    [("fourier", "fp32"), *(pytest.param("winograd", name, marks=needs_compiler) for name in ("fp32", "bf16"))],
)
def test_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch, algorithm, precision):
    emulate(monkeypatch, precision)
    monkeypatch.setenv("RESLIB_TUNE", f"precision={precision},threads=1,compile=false,fused=false,{algorithm}=true")
    monkeypatch.setattr(fourier, "SAVING", 1)
    module, calls = choose.ALGORITHMS[algorithm], []
    right = module.conv2d
    monkeypatch.setattr(module, "conv2d", lambda *arguments: calls.append(arguments[0].shape[0]) or right(*arguments))
    model, layer = RESUMED[algorithm]
    recipe = tiny(model=model, precision=precision)
    execution = Execution(device="cpu")
    whole = train(recipe, tmp_path / "whole", execution=execution, say=silent)
    assert whole["sessions"][0]["speed"][algorithm][0] == layer
    assert whole["sessions"][0]["step"] == f"eager, {algorithm}"
    assert calls.count(recipe.batch_size) >= recipe.iterations and max(calls) > recipe.batch_size  # evaluation as well
    pieces, sessions = train_in_pieces(monkeypatch, recipe, tmp_path / "pieces", 5, execution)
    assert sessions > 1
    assert weights_of(tmp_path / "pieces", recipe) == weights_of(tmp_path / "whole", recipe)
    assert rows_of(tmp_path / "pieces", recipe) == rows_of(tmp_path / "whole", recipe)
    monkeypatch.setenv("RESLIB_TUNE", f"precision={precision},threads=1,compile=false,fused=false,{algorithm}=false")
    direct = train(recipe, tmp_path / "direct", execution=execution, say=silent)
    assert algorithm not in direct["sessions"][0]["speed"]


def test_a_layer_is_tried_once_per_machine(monkeypatch):
    answers = iter([True, False])
    monkeypatch.setattr(choose, "wins", lambda *arguments: next(answers))
    layer = Layer(16, 16, (3, 3), (1, 1), (32, 32))
    assert [choose._known_to_win("winograd", layer, 128, "channels-last") for _ in range(3)] == [True] * 3
    assert not choose._known_to_win("winograd", layer, 64, "channels-last")
    trials.keep("convolutions.json", dict.fromkeys(trials.known("convolutions.json"), "damaged"))
    with pytest.raises(StopIteration):
        choose._known_to_win("winograd", layer, 128, "channels-last")


def test_a_whole_pass_is_timed_once_per_machine(monkeypatch):
    monkeypatch.setattr(choose, "wins", lambda algorithm, *others: algorithm == "fourier")
    for other in (0.5, 2.0):  # the second is not asked
        monkeypatch.setattr(Passes, "seconds", lambda self, loss, s=other: s if isinstance(loss, OtherLoss) else 1.0)
        step, batch = stepper("nin", 16)
        assert "fourier" in compilation.accelerate(step, CHOSEN, batch, 10_000, say=silent)


def test_under_autocast_a_layer_is_another():
    x, weight = torch.randn(2, 16, 9, 9), torch.randn(16, 16, 3, 3)
    layer = layer_of(x, weight)
    with torch.autocast("cpu", torch.bfloat16), Convolutions({layer: "fourier"}) as mode:
        assert F.conv2d(x, weight).dtype == torch.bfloat16 and layer not in mode.met


def test_the_mode_passes_everything_else_through():
    x, weight = torch.randn(2, 3, 9, 9), torch.randn(4, 3, 3, 3)
    with Convolutions() as mode:
        plain, strided = F.conv2d(x, weight), F.conv2d(x, weight, stride=2)
    assert torch.equal(plain, F.conv2d(x, weight)) and torch.equal(strided, F.conv2d(x, weight, stride=2))
    layer = Layer(3, 4, (3, 3), (0, 0), (9, 9))
    with Convolutions({layer: "fourier"}):
        torch.testing.assert_close(F.conv2d(input=x, weight=weight), plain)
    assert list(mode.met) == [Layer(3, 4, (3, 3), (0, 0), (9, 9))]
    biased = {"bias": torch.ones(4), "padding": 1}
    with Convolutions({Layer(3, 4, (3, 3), (1, 1), (9, 9)): "fourier"}):
        torch.testing.assert_close(F.conv2d(x, weight, **biased), F.conv2d(x, weight, torch.ones(4), padding=1))
