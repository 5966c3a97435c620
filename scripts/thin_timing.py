"""Time the kernels of thin nets on a GPU for many ways of dealing out their work, and say which are fastest.

    python scripts/thin_timing.py [OUT.json]

For whoever tunes reslib/thin/plans.py: a forward and backward pass of each kind of layer of ResNet-20 at the paper's
batch, one kernel's plan changed at a time, many passes in one CUDA graph, medians of turns. Results are compared with
PyTorch's before they are timed. Kernels launched over and over by themselves rank otherwise: each also costs the next
one, which reads its sums. All ways are compiled first, on all cores but two. Last all fastest plans together. Some
minutes.
"""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn

from reslib.cuda_graphs import seconds_per_replay
from reslib.errors import first_line
from reslib.models.conv_norm_relu import conv_norm_relu
from reslib.thin import unit as thin
from reslib.thin.plans import MOST_VALUES, PLANS, Plan, tile

LAYERS = {  # filters before and after, stride, pixels, something added: how many of them in ResNet-20
    (3, 16, 1, 32, False): 1,
    (16, 16, 1, 32, False): 3,
    (16, 16, 1, 32, True): 3,
    (16, 32, 2, 32, False): 1,
    (32, 32, 1, 16, False): 2,
    (32, 32, 1, 16, True): 3,
    (32, 64, 2, 16, False): 1,
    (64, 64, 1, 8, False): 2,
    (64, 64, 1, 8, True): 3,
}
BATCH, PASSES, ROUNDS = 128, 20, 5
GPU = {"device": "cuda", "dtype": torch.bfloat16}


class Layer:
    """A unit of one kind with its maps."""

    def __init__(self, before, after, stride, pixels, added):
        torch.manual_seed(0)
        self.conv = nn.Conv2d(before, after, 3, stride, 1, bias=False).to("cuda", memory_format=torch.channels_last)
        self.norm, self.relu, size = nn.BatchNorm2d(after).cuda(), nn.ReLU(), pixels // stride
        self.x = _maps(before, pixels)
        self.x = self.x.requires_grad_() if before > 3 else self.x.float()  # images come in fp32
        self.added = _maps(after, size).requires_grad_() if added else None
        self.slope = _maps(after, size)
        wanted = (self.x, self.added, self.conv.weight, self.norm.weight, self.norm.bias)
        self.leaves = [t for t in wanted if t is not None and t.requires_grad]
        self.stream = torch.cuda.Stream()  # one for all passes: autograd goes on where a leaf was first used
        self.stream.wait_stream(torch.cuda.current_stream())

    def results(self, call):
        """(output, *gradients)."""
        with torch.cuda.stream(self.stream), torch.autocast("cuda", torch.bfloat16):
            out = call(self.conv, self.norm, self.relu, self.x, self.added)
            return out, *torch.autograd.grad(out, self.leaves, self.slope)


def _maps(channels, pixels):
    return torch.randn(BATCH, channels, pixels, pixels, **GPU).contiguous(memory_format=torch.channels_last)


def key_of(kernel: str, layer: tuple) -> tuple:
    """The plan that such a layer's kernel goes by."""
    before, after = layer[:2]
    return kernel, before if kernel in ("convolve", "correlate", "transpose") else after, after


@contextlib.contextmanager
def used(plans: dict):
    """Within the block units go by these plans."""
    before = dict(PLANS)
    PLANS.update(plans)
    try:
        yield
    finally:
        PLANS.update(before)


def candidates(kernel: str, layer: tuple) -> list[Plan]:
    """Plans to try that differ for such a layer, the one in use first."""
    key, (before, _, stride, pixels, _) = key_of(kernel, layer), layer
    size = pixels if kernel == "transpose" else pixels // stride
    channels = key[1] if kernel == "transpose" else key[2]
    rows = [n for n in (32, 64, 128, 256, 512) if 1024 <= n * channels <= MOST_VALUES]
    if kernel in ("convolve", "transpose"):
        found = [Plan(*way) for way in itertools.product(rows, (2, 4, 8), (1, 2, 3))]
    elif kernel == "correlate":
        columns = [32] if before == 3 else [64, 128] + [256] * (before == 16)
        ways = itertools.product((64, 128), (4, 8), (1, 3), columns, (128, 256))
        found = [Plan(r, w, s, columns=c, programs=p) for r, w, s, c, p in ways]
    else:
        blocks = [0, 16] if kernel == "activate" and channels > 16 else [0]
        found = [Plan(r, w, block=b) for r, w, b in itertools.product([*rows, 2 * rows[-1]], (4, 8), blocks)]
    different = {}
    for plan in [PLANS[key], *found]:
        launched = plan.rows if kernel == "correlate" else tile(kernel, plan, BATCH * size**2, channels)
        different.setdefault(plan._replace(rows=launched), plan)
    return list(different.values())


def jobs() -> list[tuple]:
    """(kernel, layer, plan), each plan once; a kernel that adds does more, and is timed adding."""
    layers = {}
    for layer in LAYERS:
        for kernel in ("convolve", "activate", "reduce", "correlate", "transpose"):
            if layer[0] > 3 or kernel != "transpose":
                layers[key_of(kernel, layer)] = layer  # the last of a key: what adds comes after what does not
    return [(key[0], layer, plan) for key, layer in layers.items() for plan in candidates(key[0], layer)]


def compile_one(job) -> None:
    """Into Triton's cache; what fails is seen when it is timed."""
    kernel, layer, plan = job
    with contextlib.suppress(Exception), used({key_of(kernel, layer): plan}):
        if layer not in _made:
            _made[layer] = Layer(*layer)
        _made[layer].results(thin.unit)
        torch.cuda.synchronize()


_made: dict[tuple, Layer] = {}


def captured(layer: Layer, call):
    """A graph of PASSES passes."""
    graph = torch.cuda.CUDAGraph()
    layer.results(call)
    torch.cuda.current_stream().wait_stream(layer.stream)
    with torch.cuda.graph(graph, stream=layer.stream):
        for _ in range(PASSES):
            layer.results(call)
    return graph


def off_by(mine, theirs) -> float:
    """The largest relative difference of two lists of tensors."""
    torch.cuda.synchronize()  # they come from a layer's stream
    pairs = [(a.detach().float(), b.detach().float()) for a, b in zip(mine, theirs, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def timed(graphs: dict) -> dict:
    """Name -> microseconds of a pass, all in turn."""
    turns = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            turns[name].append(1e6 * seconds_per_replay(graph, 3) / PASSES)
    return {name: round(statistics.median(values), 2) for name, values in turns.items()}


def tune() -> tuple[dict, dict]:
    """(microseconds of a pass by every plan, the fastest plans)."""
    table, best, plans_of = {}, dict(PLANS), {}
    for kernel, layer, plan in jobs():
        plans_of.setdefault(key_of(kernel, layer), (layer, []))[1].append(plan)
    for key, (kind, plans) in plans_of.items():
        layer, graphs, failed = Layer(*kind), {}, {}
        theirs = layer.results(conv_norm_relu)
        for plan in plans:
            try:
                with used({key: plan}):
                    graphs[plan] = checked(layer, theirs)
            except Exception as error:  # a way that cannot be launched is a result
                failed[str(plan)] = first_line(error)
        found = timed(graphs)
        table[" ".join(map(str, key))] = {str(plan): value for plan, value in found.items()} | failed
        if found:
            best[key] = min(found, key=found.get)
        now, least = (found.get(plan, "failed") for plan in (plans[0], best[key]))
        print(*key, f"{now} us now, {least} by", best[key], f"{len(failed)} failed", flush=True)
    return table, best


def checked(layer: Layer, theirs):
    """A graph of passes whose results have been compared with PyTorch's."""
    off = off_by(layer.results(thin.unit), theirs)
    if not off < 0.05:
        raise ValueError(f"off by {off:.3f}")
    return captured(layer, thin.unit)


def units(ways: dict[str, dict]) -> dict:
    """Layer -> microseconds of a pass by each way's plans, and by PyTorch; with their totals."""
    table, totals = {}, dict.fromkeys(("PyTorch", *ways), 0.0)
    for kind, count in LAYERS.items():
        layer = Layer(*kind)
        theirs = layer.results(conv_norm_relu)
        graphs = {"PyTorch": captured(layer, conv_norm_relu)}
        for name, plans in ways.items():
            with used(plans), contextlib.suppress(Exception):  # its row lacks what failed
                graphs[name] = checked(layer, theirs)
        found = timed(graphs)
        table[" ".join(map(str, kind))] = found
        for name in totals:
            totals[name] += count * found.get(name, math.nan)
        print(*kind, found, flush=True)
    return table | {"ResNet-20": {name: round(value, 1) for name, value in totals.items()}}


def main(out: str = "") -> None:
    torch.backends.cudnn.benchmark = True
    start, everything = time.perf_counter(), jobs()
    processes = max(1, len(os.sched_getaffinity(0)) - 2)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, everything, chunksize=4))
    print(f"{len(everything)} compiled in {time.perf_counter() - start:.0f} s", flush=True)
    table, best = tune()
    report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "batch": BATCH, "kernels": table}
    report["best"] = [[*key, plan._asdict()] for key, plan in best.items()]
    report["units"] = units({"plans.py": PLANS, "fastest": best})
    print("ResNet-20, microseconds of all units:", report["units"]["ResNet-20"])
    if out:
        Path(out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
