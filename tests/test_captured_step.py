"""The logic around a capture, with a stand-in for torch.cuda: what fails leaves a device that plain steps can use."""

import pytest
import torch
from fake_cuda import CPU, Cuda, batch, compiler, made

from reslib.engine import CapturedStep, Step
from reslib.gpu_trials import accelerate


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
