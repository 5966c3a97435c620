"""The logic around a capture, with a stand-in for torch.cuda: what fails leaves a device that plain steps can use.

The stand-in behaves as torch 2.14 does where a capture breaks: ending it raises, and its stream stays current.
"""

import contextlib
import warnings

import pytest
import torch
from own_models import Small
from training import tiny

from reslib import compilation
from reslib.engine import CapturedStep, Step, make_optimizer

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
    monkeypatch.setattr(compilation, "cannot_compile", lambda: "")
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: (Broken.apply(loss(*x)[0]), loss(*x)[1]))
    monkeypatch.setenv("RESLIB_TUNE", "compile=true")
    step = made(CapturedStep)
    step.model.compilable = True
    compilation.compile_if_asked(step, said.append)
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
    monkeypatch.setattr(compilation, "cannot_compile", lambda: "")
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda *x: loss(*x))
    said = []
    for text, compilable, way in (("", True, "CUDA graph"), ("compile=true", True, "CUDA graph, compiled"),
                                  ("compile=true", False, "CUDA graph")):  # fmt: skip
        monkeypatch.setenv("RESLIB_TUNE", text)
        step = made(CapturedStep)
        step.model.compilable = compilable
        compilation.compile_if_asked(step, said.append)
        step._capture(*batch())
        assert step.way == way
    assert said == ["not compiled: a network of one's own without `compilable = True`"]


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
