"""When the passes of a captured step are compiled: after a trial that can end no run (stand-in for torch.cuda)."""

import itertools
import math
import warnings

import pytest
import torch
from fake_cuda import CPU, Cuda, batch, compiler, made
from training import tiny

from reslib import engine, gpu_compilation, gpu_trials, trials
from reslib.compilation import CompiledLoss, Trial
from reslib.engine import CapturedStep, Step, make_optimizer
from reslib.files import alone
from reslib.gpu_compilation import BlockwiseLoss
from reslib.gpu_trials import CompilerTrial, accelerate
from reslib.models import build_model
from reslib.passes import Passes, difference, unlike_step


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RESLIB_TUNE", raising=False)
    compiler(monkeypatch)


def timed(monkeypatch, *seconds):
    """Replays take as long as the test says, in turn, and again from the first."""
    endless = itertools.cycle(seconds)
    monkeypatch.setattr(engine, "seconds_per_replay", lambda graph, replays: next(endless))


@pytest.mark.parametrize(("compiled", "way"), [(0.5, "CUDA graph, compiled"), (0.99, "CUDA graph")])
def test_a_long_run_captures_both_ways_and_keeps_the_faster(monkeypatch, own_cache, compiled, way):
    cuda, said, calls = Cuda(monkeypatch), [], []
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: calls.append(1) or loss(*x))
    timed(monkeypatch, 1.0, 1.0, compiled, 1.0, compiled, 1.0, compiled)
    step = made(CapturedStep)
    step.model.compilable = True
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    accelerate(step, 64_000, say=said.append)
    step._capture(*batch())
    assert (step.way, cuda.captures) == (way, 2) and calls, said
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    kept = "kept" if compiled < 0.9 else "not kept: by less than 3%"
    assert said[-1].startswith(f"a step takes 1000.00 ms captured, {1000 * compiled:.2f} ms compiled and captured")
    assert said[-1].endswith(kept) and len(trials.known("compile-gpu.json")) == 1

    again, said = made(CapturedStep), []
    again.model.compilable = True
    accelerate(again, 64_000, say=said.append)
    again._capture(*batch())
    if compiled > 0.9:  # a loss is remembered
        assert "measured before" in said[0] and cuda.captures == 3
    else:  # a win is not timed again
        assert again.way == way and not any("a step takes" in line for line in said)


CAPTURED = [{"from_iteration": 0, "to_iteration": 9, "step": "CUDA graph"}]
COMPILED = [{"from_iteration": 0, "to_iteration": 9, "step": "CUDA graph, compiled"}]


@pytest.mark.parametrize(
    ("captures", "case"),
    [
        (2, {}),  # what all others are one change away from
        (1, {"text": "compile=false"}),
        (1, {"left": 499}),
        (1, {"measure": False}),
        (1, {"sessions": CAPTURED}),
        (1, {"left": 60_000, "seconds": 0.001}),  # a minute: too short to win a compilation back
        (1, {"limit": 60.0}),
        (1, {"dropout": 0.5}),
    ],
)
def test_a_trial_is_made_only_where_it_may_pay_and_decide(monkeypatch, own_cache, captures, case):
    cuda = Cuda(monkeypatch)
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: None)
    timed(monkeypatch, case.get("seconds", 1.0))
    monkeypatch.setenv("RESLIB_TUNE", case.get("text", ""))
    step = made(CapturedStep, dropout=case.get("dropout", 0.0))
    step.model.compilable = True
    options = {name: case[name] for name in ("limit", "sessions", "measure") if name in case}
    accelerate(step, case.get("left", 64_000), **options)
    step._capture(*batch())
    assert step.way == "CUDA graph" and cuda.captures == captures


@pytest.mark.parametrize(
    ("sessions", "text", "way", "noted"),
    [
        (COMPILED, "", "CUDA graph, compiled", False),
        ([*COMPILED, {"from_iteration": 9, "to_iteration": 9, "step": "eager"}], "", "CUDA graph, compiled", False),
        (COMPILED, "compile=false", "CUDA graph", True),
        (CAPTURED, "compile=true", "CUDA graph, compiled", True),
        ([{"from_iteration": 0, "to_iteration": 9, "step": "compiled"}], "", "CUDA graph", False),  # on a processor
    ],
)
def test_a_run_goes_on_as_its_last_step_was_taken(monkeypatch, own_cache, sessions, text, way, noted):
    cuda, said = Cuda(monkeypatch), []
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    monkeypatch.setenv("RESLIB_TUNE", text)
    step = made(CapturedStep)
    step.model.compilable = True
    accelerate(step, 1, sessions=sessions, say=said.append)
    step._capture(*batch())
    assert step.way == way and cuda.captures == 1
    assert noted == any("its bits are not those of an undisturbed run" in line for line in said)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ((None, RuntimeError("capture invalidated"), None), "not compiled: capture invalidated"),
        ((None, torch.OutOfMemoryError("no room for two"), None), "not compiled: no room for two"),
    ],
)
def test_compiled_passes_that_cannot_be_captured_leave_the_plain_graph(monkeypatch, own_cache, broken, reason):
    Cuda(monkeypatch, *broken)
    said, step = [], made(CapturedStep)
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    timed(monkeypatch, 1.0)
    step.model.compilable = True
    step.trials = [CompilerTrial(64_000, None, said.append)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step._capture(*batch())
    assert step.way == "CUDA graph" and step.graph is not None and said[-1] == reason and not step.failed
    memory = isinstance(broken[1], torch.OutOfMemoryError)  # the next run may have the room
    assert len(trials.known("compile-gpu.json")) == (0 if memory else 1)


@pytest.mark.parametrize("where", ["compiled", "eager", "exact"])
def test_memory_that_runs_out_in_a_trial_leaves_the_plain_graph(monkeypatch, own_cache, where):
    cuda, said, runs = Cuda(monkeypatch), [], []
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: tuple(2 * value for value in loss(*x)))
    timed(monkeypatch, 1.0)

    def hungry(self, loss):
        runs.append("compiled" if not runs else "eager")
        if runs[-1] == where:
            raise torch.OutOfMemoryError("no room")
        return right(self, loss)

    def exact(self):
        raise torch.OutOfMemoryError("no room")

    right = Passes.run
    monkeypatch.setattr(Passes, "run", hungry)
    monkeypatch.setattr(Passes, "exact", exact)
    monkeypatch.setattr("reslib.passes.TOLERANCE", {"fp32": 0.0})
    if where == "exact":  # the losses agree, the gradients do not
        monkeypatch.setattr("reslib.passes.difference", lambda mine, theirs: 1.0)
        monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    step = made(CapturedStep)
    step.model.compilable, step.trials = True, [CompilerTrial(64_000, None, said.append)]
    before = step.model.fc.weight.detach().clone()
    step._capture(*batch())
    assert step.way == "CUDA graph" and cuda.captures == 1 and said[-1] == "not compiled: no room"
    assert trials.known("compile-gpu.json") == {} and torch.equal(step.model.fc.weight, before)


def test_wrong_or_failing_passes_are_refused_and_remembered(monkeypatch, own_cache):
    Cuda(monkeypatch)
    timed(monkeypatch, 1.0)

    def wrong(loss, **options):
        return lambda *x: tuple(1.05 * value for value in loss(*x))

    def failing(loss, **options):
        def call(*x):
            raise RuntimeError("no Triton here")

        return call

    def endless(loss, **options):
        return lambda *x: tuple(float("nan") * value for value in loss(*x))

    for compiled, words, known in ((endless, "off by nan%", 0), (wrong, "off by 5.0%", 1), (failing, "no Triton", 1)):
        monkeypatch.setattr(torch, "compile", compiled)
        said, step = [], made(CapturedStep)
        step.model.compilable, step.trials = True, [CompilerTrial(64_000, None, said.append)]
        monkeypatch.setattr(gpu_trials, "known_trials", lambda name: {})
        step._capture(*batch())
        assert step.way == "CUDA graph" and words in said[-1]
        assert len(trials.known("compile-gpu.json")) == known
    (entry,) = trials.known("compile-gpu.json").values()
    assert entry["compiled"] is None and trials.known("compile.json") == {}


def test_a_gradient_of_nan_is_seen_beside_a_right_loss():
    right, wrong = [torch.ones(3), torch.ones(2)], [torch.ones(3), torch.tensor([1.0, math.nan])]
    assert math.isnan(difference((0, 1.0, right), (0, 1.0, wrong)))
    assert math.isnan(difference((0, 1.0, right), (0, math.nan, right)))
    assert difference((0, 1.0, right), (0, 1.1, right)) == pytest.approx(0.1)


NAMES = {"conv": True, "scale": True, "mean": False, "batches": False}
BEFORE = [torch.zeros(100), torch.zeros(4), torch.zeros(4), torch.tensor(7)]
PLAIN = [torch.ones(100), torch.full((4,), 0.4), torch.ones(4), torch.tensor(8)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"conv": torch.full((100,), 1.05), "mean": torch.full((4,), 1.05)}, ""),  # as bf16 rounds
        ({"conv": torch.full((100,), 1.3)}, "a whole step would be off by 29."),
        ({"conv": torch.full((100,), math.nan)}, "a whole step would be off by nan%"),
        ({"scale": torch.zeros(4)}, "scale would be off by 100.0%"),  # a part too small to be seen in the whole
        ({"mean": torch.full((4,), 1.3)}, "mean would be off by 30.0%"),
        ({"batches": torch.tensor(9)}, "batches would be another"),
    ],
)
def test_a_captured_step_is_compared_tensor_by_tensor(changed, words):
    other = [changed.get(name, value) for name, value in zip(NAMES, PLAIN, strict=True)]
    found = unlike_step(NAMES, BEFORE, PLAIN, other, 0.1, "bf16")
    assert found == words or (words and found.startswith(words)), found
    noise = [PLAIN[0] * 1.4, PLAIN[1] * 1.7, *PLAIN[2:]]  # where rounding decides, parameters are judged together
    assert unlike_step(NAMES, BEFORE, PLAIN, noise, 0.5, "bf16") == ""
    settled = [*BEFORE[:2], torch.ones(4) - 0.001, BEFORE[3]]  # the mean moves by a thousandth
    near = [*PLAIN[:2], torch.ones(4) + 0.003, PLAIN[3]]
    assert unlike_step(NAMES, settled, PLAIN, near, 0.1, "bf16") == ""
    still = [PLAIN[0], torch.zeros(4), *PLAIN[2:]]
    tiny = [*PLAIN[:1], torch.full((4,), 1e-4), *PLAIN[2:]]  # moved by rounding, as a bias before batch norm
    assert unlike_step(NAMES, BEFORE, tiny, still, 0.1, "bf16") == ""


def test_a_capture_that_does_something_else_is_refused(monkeypatch, own_cache):
    """The passes are right, what was captured of them is not."""
    cuda, said, step = Cuda(monkeypatch), [], made(CapturedStep)
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    timed(monkeypatch, 1.0, *[1.0, 0.1] * 3)

    def replay(graph):
        with torch.no_grad():
            step.model.fc.weight += 1.0 if graph is first else 2.0

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replay)
    step.model.compilable, step.trials = True, [CompilerTrial(64_000, None, said.append)]
    before = step.model.fc.weight.detach().clone()
    record, first = step._record, None

    def recorded():
        nonlocal first
        record()
        first = first or step.graph

    monkeypatch.setattr(step, "_record", recorded)
    step._capture(*batch())
    assert step.way == "CUDA graph" and cuda.captures == 2 and step.graph is first
    assert said[-1].startswith("not compiled: captured, a whole step would be off by 100.")
    assert torch.equal(step.model.fc.weight, before)
    (entry,) = trials.known("compile-gpu.json").values()
    assert entry["compiled"] is None and entry["begun"] == 0


def test_trials_that_end_the_process_are_not_made_for_ever(monkeypatch, own_cache):
    """A fault of the device is no exception that could be caught: what was begun and never ended is counted."""

    class Killed(BaseException):
        pass

    def deadly(loss, **options):
        def call(*x):
            raise Killed

        return call

    def one() -> list[str]:
        Cuda(monkeypatch)
        timed(monkeypatch, 1.0, *[1.0, 0.5] * 3)
        said, step = [], made(CapturedStep)
        step.model.compilable, step.trials = True, [CompilerTrial(64_000, None, said.append)]
        try:
            step._capture(*batch())
        except Killed:
            said.append("killed")
        return said

    monkeypatch.setattr(torch, "compile", deadly)
    assert one()[-1] == one()[-1] == "killed"
    assert one() == ["not compiled: 2 trials ended their process; RESLIB_TUNE=compile=true tries again"]
    monkeypatch.setattr(gpu_trials, "DEADLY", 3)
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    assert one()[-1].endswith(": kept")
    (entry,) = trials.known("compile-gpu.json").values()
    assert entry["begun"] == 0 and entry["compiled"] == 0.5


def test_trials_of_several_processes_at_once_count_none_as_dead(monkeypatch, own_cache):
    """Workers that share a GPU begin together: what one has begun is under way."""
    Cuda(monkeypatch)
    timed(monkeypatch, 1.0, *[1.0, 0.5] * 3)
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    said, step = [], made(CapturedStep)
    trial = CompilerTrial(64_000, None, said.append)
    step.model.compilable, step.trials = True, [trial]
    under_way = Trial(1.0, None, 30.0, 7, begun=gpu_trials.DEADLY)
    monkeypatch.setattr(gpu_trials, "known_trials", lambda name: {trial.key: under_way})
    with alone(trials.path_of("compile-gpu.lock")):
        step._capture(*batch())
    assert said[-1].endswith(": kept") and trial.held is None


def test_blocks_are_compiled_in_training_alone(monkeypatch):
    """Evaluations have other shapes: each would be a compilation of its own."""
    through = []

    def counted(call, **options):
        return lambda *x, **more: through.append(1) or call(*x, **more)

    monkeypatch.setattr(torch, "compile", counted)
    compiler(monkeypatch)
    torch.manual_seed(0)
    model, recipe = build_model("resnet26", 10, "A", width=4).train(), tiny(model="resnet26")
    step = CapturedStep(recipe, model, make_optimizer(recipe, model, CPU), CPU, "fp32")
    x, y = batch()
    plain, _ = step.loss(x, y, step.progress)
    loss = gpu_compilation.compiled_loss(step)
    assert type(loss) is BlockwiseLoss and len(loss.blocks) == 12
    value, _ = loss(x, y, step.progress)
    assert len(through) == 12 and loss.compiled and torch.equal(value, plain)
    model.eval()(x)
    assert len(through) == 12
    shallow = build_model("resnet20", 10, "A", width=4)
    step = CapturedStep(recipe, shallow, make_optimizer(recipe, shallow, CPU), CPU, "fp32")
    assert type(gpu_compilation.compiled_loss(step)) is CompiledLoss


def test_a_step_that_is_not_captured_is_compiled_where_asked_for_and_never_tried(monkeypatch, own_cache):
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    for text, kind in (("compile=true", CompiledLoss), ("", engine.Objective)):
        monkeypatch.setenv("RESLIB_TUNE", text)
        step = made(Step)
        step.model.compilable = True
        accelerate(step, 64_000)
        assert type(step.loss) is kind and not hasattr(step, "trials")
