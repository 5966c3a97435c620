"""Units of thin nets on matrix tiles in networks and runs: the same training, and only where a trial wins."""

import contextlib
import dataclasses

import pytest
import torch
from convolving import CPU, stepper
from training import rows_of, silent, tiny, train_in_pieces, weights_of

from reslib import compilation, data, native, tiles, trials, tune, unit_trials
from reslib.bench import contenders
from reslib.bench.contenders import contender
from reslib.errors import UserError
from reslib.fused_norm import FusedLoss
from reslib.job import Execution
from reslib.models.conv_norm_relu import taken_over
from reslib.numerics import autocast
from reslib.passes import Passes, difference, sound
from reslib.tiles import TilesLoss, two_units, unit
from reslib.train import train

pytestmark = [
    pytest.mark.skipif(bool(compilation.cannot_compile()), reason="no C++ compiler"),
    pytest.mark.usefixtures("own_trials"),
]
CHOSEN = tune.Choice("bf16", 1, compile=False, winograd=False, fourier=False)
SURE = dataclasses.replace(CHOSEN, units=True)
AS_BEGUN = {"threads": 1, "layout": "channels-last", "compiled": False}


@pytest.mark.parametrize(
    ("model", "options", "units", "norms"),
    [
        ("resnet20", {}, 18, 1),  # the first is left to fused norms
        ("plain20", {}, 18, 1),
        ("resnet8", {"shortcut": "B"}, 6, 1),
        ("resnet8", {"batch_norm": False}, 0, 0),
    ],
)
def test_networks_compute_the_same_loss_and_gradient(tile_loops, model, options, units, norms):
    step, batch = stepper(model, 4, "bf16", **options)
    passes, loss = Passes(step, *batch()), TilesLoss(FusedLoss(step.loss))
    mine, theirs = passes.run(step.loss), passes.run(loss)
    assert (loss.units, loss.fused) == (units, norms)
    if units:
        assert difference(mine, theirs) > 0
    assert sound(passes, mine, theirs)
    net, images = step.model.eval(), batch()[0]
    with autocast(CPU, "bf16"):
        evaluated = net(images)
        with taken_over(loss._way):
            assert torch.equal(net(images), evaluated)


def chosen(monkeypatch, tiles_take=0.5, given=CHOSEN, precision="bf16", **options):
    """(evidence, step) where a pass on tiles takes so many seconds, one with fused norms 0.8, any other 1."""
    times = {TilesLoss: tiles_take, FusedLoss: 0.8}
    monkeypatch.setattr(Passes, "seconds", lambda self, loss: times.get(type(loss), 1.0))
    step, batch = stepper("resnet8", 4, precision)
    return compilation.accelerate(step, given, batch, **{"left": 10_000, "say": silent} | options), step


def test_a_trial_decides_and_the_record_says_so(emulated_tiles, monkeypatch):
    evidence, step = chosen(monkeypatch)
    assert evidence["units"] and evidence["fused"] and isinstance(step.loss, TilesLoss)
    assert step.way == "eager, fused norms, tile units" and not isinstance(step.loss.loss, FusedLoss)
    said = compilation.describe("bf16", evidence)
    assert ", batch norm and ReLU in one go, with their convolution on matrix tiles, not compiled" in said
    for not_now in (
        {"tiles_take": 0.79},
        {"left": 100},
        {"limit": 0.001},
        {"before": AS_BEGUN},
        {"given": dataclasses.replace(CHOSEN, units=False)},
        {"precision": "fp32", "given": dataclasses.replace(CHOSEN, precision="fp32", fused=False)},
    ):
        evidence, step = chosen(monkeypatch, **not_now)
        assert "units" not in evidence and not isinstance(step.loss, TilesLoss), not_now
    begun = {"before": AS_BEGUN | {"fused": True, "units": True}}
    for surely in (begun, {"given": dataclasses.replace(CHOSEN, units=True)}):
        assert chosen(monkeypatch, tiles_take=2.0, left=3, **surely)[0]["units"]


def test_there_are_none_in_a_compiled_pass_nor_where_no_unit_fits(emulated_tiles):
    """Though asked for: a record must not name what no step does."""
    for given, options in ((dataclasses.replace(CHOSEN, units=True, compile=True), {}), (SURE, {"batch_norm": False})):
        step, batch = stepper("resnet8", 4, "bf16", **options)
        assert unit_trials.choose(TilesLoss, step, given, batch, 10_000, say=silent) is None
    step, batch = stepper("resnet8", 4, "bf16")
    assert unit_trials.choose(TilesLoss, step, SURE, batch, 10_000, say=silent).taken == 6


def test_a_network_is_tried_once_per_machine(emulated_tiles, monkeypatch):
    kept = {}
    monkeypatch.setattr(trials, "known", lambda name: kept)
    monkeypatch.setattr(trials, "keep", lambda name, entries: name == "units.json" and kept.update(entries))
    for fused, suffix in ((False, ""), (True, " | fused norms")):
        kept.clear()
        given = dataclasses.replace(CHOSEN, fused=fused)
        assert "units" in chosen(monkeypatch, given=given)[0]
        evidence, step = chosen(monkeypatch, given=given, tiles_take=2.0)
        assert evidence["units"] and evidence.get("fused", False) == step.loss.fuses == fused
        assert list(kept) == ["resnet8  A | 4x3x32x32 | bf16 channels-last 1 threads" + suffix]
        step.loss(torch.randn(4, 3, 32, 32), torch.arange(4), step.progress)
        assert bool(step.loss.fused) == fused


@pytest.mark.parametrize("model", ["resnet8", "plain8"])
def test_convolutions_otherwise_are_those_that_units_leave(emulated_tiles, monkeypatch, model):
    """A record must not name an algorithm that no step takes."""
    given = dataclasses.replace(CHOSEN, winograd=True, units=True, fused=True)
    evidence, step = chosen(monkeypatch, given=given)
    assert "winograd" not in evidence and step.way == "eager, fused norms, tile units"
    assert not step.loss.algorithms and step.convolutions is contextlib.nullcontext
    monkeypatch.setattr(tiles, "two_units", lambda *call: None)
    right = unit
    monkeypatch.setattr(tiles, "unit", lambda conv, *call: right(conv, *call) if conv.in_channels > 16 else None)
    evidence, step = chosen(monkeypatch, given=given)
    assert evidence["winograd"] == ["3x3 16 to 16, padding 1 1, on 32x32"]
    assert step.way == "eager, winograd, fused norms, tile units"
    with step.convolutions() as mode:
        assert list(map(str, mode.algorithms)) == evidence["winograd"]


def test_a_trial_without_memory_is_lost(emulated_tiles, monkeypatch):
    def fail(*call):
        raise MemoryError("no memory for the tiles of a convolution")

    monkeypatch.setattr(tiles, "two_units", fail)
    said = []
    assert "units" not in chosen(monkeypatch, say=said.append)[0]
    assert said == ["no tile units: no memory for the tiles of a convolution"]


def test_loops_that_compute_something_else_are_refused(emulated_tiles, monkeypatch):
    right = two_units
    monkeypatch.setattr(tiles, "two_units", lambda *call: None if (y := right(*call)) is None else 1.3 * y)
    said = []
    assert "units" not in chosen(monkeypatch, say=said.append)[0]
    assert said[0].startswith("no tile units: loss or gradient would be off by ")


def test_a_processor_without_tiles(emulated_tiles, monkeypatch):
    """Nothing is said where nobody asked; a run that was begun on tiles goes on without, and says so."""
    monkeypatch.setattr(tiles, "unavailable", lambda precision: "for processors alone that have matrix tiles")
    said = []
    assert "units" not in chosen(monkeypatch, say=said.append)[0] and not said
    evidence, step = chosen(monkeypatch, before=AS_BEGUN | {"fused": True, "units": True}, say=said.append)
    assert evidence["fused"] and "units" not in evidence and type(step.loss) is FusedLoss
    assert said[0] == "no tile units: for processors alone that have matrix tiles"
    assert said[1].startswith("note: it was begun with units True; continued otherwise")


def test_why_there_are_none(emulated_tiles, monkeypatch):
    assert tiles.unavailable("bf16") == "" and tiles.unavailable("fp32") == "in bf16 alone"
    monkeypatch.setattr(native, "unavailable", lambda: "no C++ compiler (g++, clang++) is installed")
    assert tiles.unavailable("bf16") == "no C++ compiler (g++, clang++) is installed"
    without = type("Loops", (), {"tile_units": staticmethod(lambda: 0)})
    monkeypatch.setattr(native, "unavailable", lambda: "")
    monkeypatch.setattr(native, "loops", without)
    assert "know matrix tiles (AMX)" in tiles.unavailable("bf16")


def test_the_benchmark_says_why_it_cannot_measure_them(monkeypatch):
    recipe = tiny(model="resnet8")
    source = data.load("synthetic")
    # not by RESLIB_TUNE: what it said first in this process, in another test, is kept
    monkeypatch.setattr(contenders, "resolve_precision", lambda asked, device: "fp32")
    with pytest.raises(UserError, match="contender tiles: in bf16 alone"):
        contender("tiles", recipe, source, CPU)


def test_a_run_resumes_to_the_same_bits(tile_loops, tmp_path, monkeypatch):
    monkeypatch.setenv("RESLIB_TUNE", "precision=bf16,threads=1,compile=false,winograd=false,fused=true,units=true")
    recipe, execution = tiny(model="resnet8", precision="bf16"), Execution(device="cpu")
    whole = train(recipe, tmp_path / "whole", execution=execution, say=silent)
    assert whole["sessions"][0]["speed"]["units"] and whole["sessions"][0]["step"] == "eager, fused norms, tile units"
    pieces, sessions = train_in_pieces(monkeypatch, recipe, tmp_path / "pieces", 5, execution)
    assert sessions > 1
    assert weights_of(tmp_path / "pieces", recipe) == weights_of(tmp_path / "whole", recipe)
    assert rows_of(tmp_path / "pieces", recipe) == rows_of(tmp_path / "whole", recipe)
