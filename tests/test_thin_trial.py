"""Whether a captured step takes the units of thin nets: after a trial, as asked for, or as its run was begun."""

import sys
import types

import pytest
import torch
from fake_cuda import Cuda, batch, made
from test_gpu_trial import timed

from reslib import gpu_trials, thin, trials, tune
from reslib.engine import CapturedStep, Step
from reslib.errors import UserError
from reslib.gpu_trials import CompilerTrial, ThinTrial, accelerate
from reslib.models.conv_norm_relu import norm_relu
from reslib.thin import ThinLoss

UNITS = "CUDA graph, thin units"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A stand-in for a GPU on which units are PyTorch's operations."""
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RESLIB_TUNE", raising=False)
    monkeypatch.setattr(gpu_trials, "unavailable", lambda device: "")
    monkeypatch.setattr(ThinLoss, "forward", plain)
    return Cuda(monkeypatch)


def plain(self, x, y, progress):
    self.units = 0 if self.given_up else 7
    return self.loss(x, y, progress)


def bf16(kind=CapturedStep):
    step = made(kind)
    step.precision = "bf16"
    return step


@pytest.mark.parametrize(("seconds", "way"), [(0.5, UNITS), (0.99, "CUDA graph")])
def test_a_long_run_captures_both_ways_and_keeps_the_faster(monkeypatch, gpu, seconds, way):
    timed(monkeypatch, 1.0, 1.0, seconds, 1.0, seconds, 1.0, seconds)
    step, said = bf16(), []
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    accelerate(step, 64_000, say=said.append)
    step._capture(*batch())
    assert (step.way, gpu.captures) == (way, 2), said
    assert said[0] == "compiling thin units for the step to see whether that is faster, about 30 s ..."
    assert said[1].startswith(f"a step takes 1000.00 ms captured, {1000 * seconds:.2f} ms thin units and captured")
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    again, said = bf16(), []
    accelerate(again, 64_000, say=said.append)
    again._capture(*batch())
    assert again.way == way and not any("a step takes" in line for line in said)
    assert ("no thin units: measured before" in said[0]) == (way != UNITS)
    assert len(trials.known(tune.UNITS_GPU)) == 1 and trials.known(tune.COMPILE_GPU) == {}


def test_what_does_not_win_leaves_the_turn_to_the_compiler(monkeypatch, gpu):
    step = bf16()
    step.model.compilable = True
    accelerate(step, 64_000)
    assert [type(trial) for trial in step.trials] == [ThinTrial, CompilerTrial]
    for text, expected in (("units=false", [CompilerTrial]), ("compile=false", [ThinTrial])):
        monkeypatch.setenv("RESLIB_TUNE", text)
        step = bf16()
        step.model.compilable = True
        accelerate(step, 64_000)
        assert [type(trial) for trial in step.trials] == expected
    calls = []
    for trial, wins in ((ThinTrial, False), (CompilerTrial, True)):
        monkeypatch.setattr(trial, "wins", lambda self, *seconds, wins=wins: calls.append(self.name) or wins)
    monkeypatch.delenv("RESLIB_TUNE")
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    monkeypatch.setattr("reslib.compilation.cannot_compile", lambda: "")
    timed(monkeypatch, 1.0)
    accelerate(step, 64_000)
    step._capture(*batch())
    assert calls == ["thin units", "compiled"] and step.way == "CUDA graph, compiled"


def test_units_only_in_bf16_and_where_they_can_run(monkeypatch, gpu):
    step = made(CapturedStep)
    accelerate(step, 64_000)
    assert not any(isinstance(trial, ThinTrial) for trial in step.trials)
    monkeypatch.setenv("RESLIB_TUNE", "units=true")
    said = []
    accelerate(step, 64_000, say=said.append)
    monkeypatch.setattr(gpu_trials, "unavailable", thin.unavailable)
    accelerate(bf16(), 64_000, say=said.append)
    assert said[0] == "no thin units: for bf16 alone, not fp32" and said[1].startswith("no thin units: ")
    assert step.trials == [] and not isinstance(step.loss, ThinLoss)


BEGUN = [{"from_iteration": 0, "to_iteration": 9, "step": UNITS}]


@pytest.mark.parametrize(
    ("sessions", "text", "way", "noted"),
    [
        (BEGUN, "", UNITS, False),
        (BEGUN, "units=false", "CUDA graph", True),
        ([BEGUN[0] | {"step": "CUDA graph"}], "units=true", UNITS, True),
        ([BEGUN[0] | {"step": "CUDA graph"}], "", "CUDA graph", False),
        ([], "units=true", UNITS, False),
    ],
)
def test_a_run_goes_on_as_its_last_step_was_taken(monkeypatch, gpu, sessions, text, way, noted):
    monkeypatch.setenv("RESLIB_TUNE", text)
    step, said = bf16(), []
    accelerate(step, 1, sessions=sessions, say=said.append)
    step._capture(*batch())
    assert step.way == way and gpu.captures == 1
    assert noted == any("its bits are not those of an undisturbed run" in line for line in said)


@pytest.mark.parametrize("decided", [True, False])
def test_kernels_that_fail_leave_the_plain_graph(monkeypatch, gpu, decided):
    def failing(self, *arguments):
        if self.given_up:
            return self.loss(*arguments)
        raise RuntimeError("ptxas was not found")

    monkeypatch.setattr(ThinLoss, "forward", failing)
    timed(monkeypatch, 1.0)
    step, said = bf16(), []
    accelerate(step, 64_000, sessions=BEGUN if decided else (), say=said.append)
    step._capture(*batch())
    assert step.way == "CUDA graph" and said[-1] == "no thin units: ptxas was not found" and not step.failed
    assert trials.known(tune.UNITS_GPU) == {}  # the next run may find what Triton needs


def test_a_network_without_such_units_is_not_captured_twice(monkeypatch, gpu):
    monkeypatch.setattr(ThinLoss, "forward", lambda self, *arguments: self.loss(*arguments))
    timed(monkeypatch, 1.0)
    step = bf16()
    accelerate(step, 64_000)
    step._capture(*batch())
    assert step.way == "CUDA graph" and gpu.captures == 1 and trials.known(tune.UNITS_GPU) == {}


def test_a_step_that_is_not_captured_never_has_units(monkeypatch, gpu):
    """Where activations are computed again, or by several processes, kernels of another thread would be asked for."""
    monkeypatch.setenv("RESLIB_TUNE", "units=true")
    step, said = bf16(Step), []
    accelerate(step, 64_000, sessions=BEGUN, say=said.append)
    assert not isinstance(step.loss, ThinLoss) and said[0] == "no thin units: for captured steps alone"
    assert "its bits are not those of an undisturbed run" in said[1]


def test_units_and_the_compiler_asked_for_at_once(monkeypatch, gpu):
    monkeypatch.setenv("RESLIB_TUNE", "units=true,compile=true")
    step, said = bf16(), []
    accelerate(step, 64_000, say=said.append)
    assert isinstance(step.loss, ThinLoss) and said == ["not compiled: thin units asked for as well"]


def test_a_small_win_does_not_keep_the_compiler_out(monkeypatch, gpu):
    """It is timed against the step of the units, and what it compiles is the network without them."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda loss, **options: compiled.append(loss) or (lambda *x: loss(*x)))
    monkeypatch.setattr("reslib.compilation.cannot_compile", lambda: "")
    timed(monkeypatch, 1.0, *[1.0, 0.9] * 3, 0.9, *[0.9, 0.8] * 3)
    step, said = bf16(), []
    step.model.compilable = True
    accelerate(step, 64_000, say=said.append)
    step._capture(*batch())
    assert step.way == "CUDA graph, compiled" and gpu.captures == 3
    assert "0.90" not in said[-1] and "900.00 ms captured, 800.00 ms compiled" in said[-1]
    assert len(compiled) == 1 and not isinstance(compiled[0], ThinLoss)
    (key,) = trials.known(tune.COMPILE_GPU)
    assert key.endswith("| against thin units")  # nothing is said of the plain step, which the compiler may beat


def test_other_code_is_tried_anew(monkeypatch, gpu):
    timed(monkeypatch, 1.0)
    for version, before in (("a", 0), ("a", 1), ("b", 0)):
        monkeypatch.setattr(trials, "version", lambda version=version: version)
        assert len(trials.known(tune.UNITS_GPU)) == before
        step = bf16()
        accelerate(step, 64_000)
        step._capture(*batch())
        assert len(trials.known(tune.UNITS_GPU)) == 1


def test_the_code_that_is_tried_is_known_by_all_its_files(monkeypatch, tmp_path):
    names = {file.name for file in trials.code()}
    assert {
        "kernels.py",
        "unit.py",
        "resnet.py",
        "winograd.cpp",
        "fourier.py",
        "fused_norm.cpp",
        "norm_loops.h",
        "tiles.h",
        "units.cpp",
        "unit_trials.py",
    } <= names
    monkeypatch.setattr(trials, "HERE", tmp_path)
    (tmp_path / "thin").mkdir()
    found = set()
    for text in ("a", "a", "b"):
        (tmp_path / "thin" / "kernels.py").write_text(text)
        found.add(trials.version.__wrapped__())
    assert len(found) == 2


def test_units_are_chosen_on_a_processor_too(monkeypatch):
    """There they are computed on matrix tiles (tests/test_tiles.py)."""
    monkeypatch.setenv("RESLIB_TUNE", "units=true,precision=fp32,threads=1")
    assert tune.choice() == tune.Choice("fp32", 1, units=True, origin="given")
    monkeypatch.setenv("RESLIB_TUNE", "units=1")
    with pytest.raises(UserError, match="RESLIB_TUNE units 1 is unknown: allowed are true, false"):
        tune.check_environment()


@pytest.mark.parametrize(
    ("found", "device", "hip", "triton", "reason"),
    [
        ((9, 0), "cuda", None, True, ""),
        ((7, 5), "cuda", None, True, "for GPUs of capability 8.0 or above"),
        ((9, 0), "cuda", "6.2", True, "for NVIDIA GPUs alone"),
        ((9, 0), "cpu", None, True, "for NVIDIA GPUs alone"),
        ((9, 0), "cuda", None, False, "Triton is not installed"),
    ],
)
def test_where_kernels_cannot_run(monkeypatch, found, device, hip, triton, reason):
    monkeypatch.setattr(thin.importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    assert thin.unavailable(torch.device(device)) == reason


def test_units_are_taken_over_within_the_loss_alone(monkeypatch):
    """Evaluations go by PyTorch, and so does what the kernels cannot do."""
    from reslib.engine import Objective
    from reslib.models import build_model

    calls = []

    def every_other(conv, norm, relu, x, added):
        calls.append(conv)
        return norm_relu(norm, relu, conv(x), added) if len(calls) % 2 else None

    monkeypatch.setitem(sys.modules, "reslib.thin.unit", types.SimpleNamespace(unit=every_other))
    net = build_model("resnet8", 10).train()
    loss, (x, y) = ThinLoss(Objective(net)), batch()
    expected = Objective(net)(x, y, torch.zeros(()))[0]
    assert loss.way == ""
    value, _ = loss(x, y, torch.zeros(()))
    assert torch.equal(value, expected) and loss.units == 4 and loss.way == "thin units"
    net(x)
    assert len(calls) == 7
