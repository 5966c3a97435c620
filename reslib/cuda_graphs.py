"""Capturing work as a CUDA graph, and what is left to do where that fails."""

from __future__ import annotations

import contextlib
import warnings

import torch


def captured(graph, stream, pool=None):
    """The block's work on the current device is captured. A loader's pinning thread may use CUDA meanwhile."""
    return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")


@contextlib.contextmanager
def empty_graph(action: str):
    """Within the block torch's warning of a capture in which nothing was captured is an "error", or one to "ignore"."""
    with warnings.catch_warnings():
        warnings.filterwarnings(action, message="The CUDA Graph is empty")
        yield


def abandon(graph, stream, pool) -> None:
    """After a capture that failed, make `stream` current again and the device fit for plain steps.

    torch leaves the stream of the capture current, its memory pool open, so that no cached memory is given back any
    more, and in some versions the generator of random numbers in a state in which every dropout fails.
    """
    torch.cuda.set_stream(stream)
    graph.reset()
    with contextlib.suppress(AttributeError, RuntimeError):  # not public; fails where the pool is closed
        torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        torch._C._cuda_releasePool(torch.cuda.current_device(), pool)
    torch.cuda.synchronize()
    with empty_graph("ignore"), captured(torch.cuda.CUDAGraph(), torch.cuda.Stream()):
        pass  # a capture that ends well takes the generator out of that state


def seconds_per_replay(graph, replays: int) -> float:
    """Seconds of one of `replays` replays in a row, after one that is not timed."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / replays
