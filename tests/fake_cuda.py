"""A stand-in for what a capture uses of torch.cuda, and steps of a small network to capture with it.

It behaves as torch 2.14 does where a capture breaks: ending it raises, and its stream stays current.
"""

import contextlib
import warnings

import torch
from own_models import Small
from training import tiny

from reslib import compilation
from reslib.engine import make_optimizer

CPU = torch.device("cpu")


def no_work(self):
    """A replay of the stand-in changes nothing."""


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
        monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Graph", (), {"reset": no_work, "replay": no_work}))
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
