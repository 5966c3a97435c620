"""The logic around a capture, with a stand-in for torch.cuda: what fails leaves a device that plain steps can use.

The stand-in behaves as torch 2.14 does where a capture breaks: ending it raises, and its stream stays current.
"""

import contextlib
import itertools
import warnings

import pytest
import torch
from own_models import Small
from training import tiny

from reslib import compilation, engine, gpu_compilation, trials
from reslib.compilation import CompiledLoss
from reslib.engine import CapturedStep, Step, make_optimizer
from reslib.gpu_compilation import BlockwiseLoss, GpuTrial, accelerate
from reslib.models import build_model
from reslib.passes import Passes

CPU = torch.device("cpu")


class Cuda:
    """`current`: the stream; `devices`: those made current; `broken`: how captures end, in turn, None for well."""

    def __init__(self, monkeypatch, *broken):
        self.current, self.devices, self.broken, self.captures = "usual", [], list(broken), 0
        for name in ("device", "stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Stream", self.Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.Stream(self.current))
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream.name))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Graph", (), {"reset": lambda self: None}))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: None, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", lambda *pool: None, raising=False)

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def wait_stream(self, other):
            pass

    @contextlib.contextmanager
    def device(self, device):
        self.devices.append(device)
        yield

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(self, graph, pool=None, stream=None, capture_error_mode=""):
        self.captures += 1
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            if self.broken and (error := self.broken.pop(0)):
                if isinstance(error, str):
                    warnings.warn(error, stacklevel=1)
                else:
                    raise error
            self.current = before


def made(kind, **options):
    torch.manual_seed(0)
    model = Small(**options)
    recipe = tiny()
    return kind(recipe, model, make_optimizer(recipe, model, CPU), CPU, "fp32")


def compiler(monkeypatch):
    """As if there were one."""
    monkeypatch.setattr(compilation, "cannot_compile", lambda: "")


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.randint(10, (8,), generator=generator)


@pytest.mark.parametrize(
    "broken", [RuntimeError("capture invalidated"), "The CUDA Graph is empty. This usually means that"]
)
def test_after_a_capture_that_fails_plain_steps_go_on_in_the_usual_stream(monkeypatch, broken):
    cuda = Cuda(monkeypatch, broken)
    step, plain = made(CapturedStep), made(Step)
    with pytest.warns(UserWarning, match="not captured as a CUDA graph"):
        loss, _ = step(*batch(), 0)
    assert cuda.current == "usual" and step.graph is None and cuda.devices == [CPU]
    assert cuda.captures == 2  # an empty one mends the generator of random numbers
    assert float(loss) == float(plain(*batch(), 0)[0])
    assert float(step(*batch(), 1)[0]) == float(plain(*batch(), 1)[0]) and cuda.captures == 2
    assert step.way.startswith("eager, not captured: ")


def test_the_reason_is_the_first_error_not_that_of_ending_the_capture(monkeypatch):
    cuda = Cuda(monkeypatch, RuntimeError("capture invalidated"))
    step, body = made(CapturedStep), CapturedStep._body

    def reads(self):
        if cuda.captures:
            raise RuntimeError("a value was read on the host")
        return body(self)

    monkeypatch.setattr(CapturedStep, "_body", reads)
    with pytest.warns(UserWarning, match="a value was read on the host"):
        step(*batch(), 0)


def test_a_compiler_that_fails_at_the_backward_pass_leaves_an_eager_captured_step(monkeypatch):
    cuda, said = Cuda(monkeypatch), []
    compiler(monkeypatch)
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: (Broken.apply(loss(*x)[0]), loss(*x)[1]))
    monkeypatch.setenv("RESLIB_TUNE", "compile=true")
    step = made(CapturedStep)
    step.model.compilable = True
    accelerate(step, 100, say=said.append)
    before = step.model.fc.weight.detach().clone()
    step._capture(*batch())
    assert said == ["not compiled: no Triton here"] and step.way == "CUDA graph" and cuda.captures == 1
    assert torch.equal(step.model.fc.weight, before)


class Broken(torch.autograd.Function):
    """A loss whose backward pass cannot be compiled."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no Triton here")


def test_compiled_passes_are_captured_only_where_asked_for(monkeypatch):
    Cuda(monkeypatch)
    compiler(monkeypatch)
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    said = []
    for text, compilable, way in (("", True, "CUDA graph"), ("compile=true", True, "CUDA graph, compiled"),
                                  ("compile=true", False, "CUDA graph")):  # fmt: skip
        monkeypatch.setenv("RESLIB_TUNE", text)
        step = made(CapturedStep)
        step.model.compilable = compilable
        accelerate(step, 100, say=said.append)
        step._capture(*batch())
        assert step.way == way
    assert said == ["not compiled: a network of one's own without `compilable = True`"]


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
    step.trial = GpuTrial(64_000, None, said.append)
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
    step.model.compilable, step.trial = True, GpuTrial(64_000, None, said.append)
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
        step.model.compilable, step.trial = True, GpuTrial(64_000, None, said.append)
        monkeypatch.setattr(gpu_compilation, "known_trials", lambda name: {})
        step._capture(*batch())
        assert step.way == "CUDA graph" and words in said[-1]
        assert len(trials.known("compile-gpu.json")) == known
    (entry,) = trials.known("compile-gpu.json").values()
    assert entry["compiled"] is None and trials.known("compile.json") == {}


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


def test_memory_that_runs_out_in_a_capture_is_said_and_the_stream_is_the_usual_one(monkeypatch):
    cuda = Cuda(monkeypatch, RuntimeError("capture invalidated"))

    def hungry(self):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(CapturedStep, "_body", hungry)
    monkeypatch.setattr(CapturedStep, "_warm_up", lambda self: None)
    with pytest.raises(torch.OutOfMemoryError):
        made(CapturedStep)(*batch(), 0)
    assert cuda.current == "usual"


def test_a_device_by_number_becomes_the_current_one(monkeypatch):
    from reslib.numerics import use

    made_current = []
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    for name in ("cpu", "cuda", "cuda:1"):
        use(torch.device(name))
    assert made_current == [torch.device("cuda:1")]
