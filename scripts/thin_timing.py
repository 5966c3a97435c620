"""Time the kernels of thin nets on a GPU for many ways of dealing out their work, and say which are fastest.

    python scripts/thin_timing.py [OUT.json]

For whoever tunes reslib/thin/plans.py: each kernel of each kind of layer of ResNet-20, at the paper's batch, many
launches in one CUDA graph, medians of turns; results are compared with PyTorch's before they are timed. All ways are
compiled first, by a process per core. Then whole units, beside PyTorch's operations. Some minutes.
"""

import itertools
import json
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
from reslib.thin.plans import MOST_VALUES, PLANS, Plan

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
BATCH, LAUNCHES, ROUNDS = 128, 20, 5
GPU = {"device": "cuda", "dtype": torch.bfloat16}


class Layer:
    """A unit of one kind with its maps, and what each of its kernels is given."""

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

    def results(self, call):
        """(output, *gradients)."""
        with torch.cuda.stream(self.stream), torch.autocast("cuda", torch.bfloat16):
            out = call(self.conv, self.norm, self.relu, self.x, self.added)
            return out, *torch.autograd.grad(out, self.leaves, self.slope)

    def calls(self, plans: dict) -> dict:
        """Kernel -> a launch of it, by these plans, that returns what it wrote."""
        x, weight = self.x.detach(), self.conv.weight.detach()
        launch = thin.Launch(x, weight, self.conv.stride[0], torch.bfloat16, plans)
        usual = thin.Launch(x, weight, self.conv.stride[0], torch.bfloat16)  # makes what the kernels are given
        y, moments, of_tile = usual.convolve(x, weight)
        norm = self.norm
        of_norm = (
            norm.weight.detach(),
            norm.bias.detach(),
            (norm.running_mean, norm.running_var, norm.num_batches_tracked),
        )
        added = None if self.added is None else self.added.detach()
        out, kept = usual.activate(y, added, moments, of_tile, *of_norm, 0.1, 1e-5)
        masked, sums = usual.reduce(self.slope, y, None if added is None else out, kept)
        backward = masked, y, x, kept, sums, added is not None, gradient_wanted(self)
        of_y, shares, *_ = usual.correlate(*backward)
        of_x, of_weight = torch.empty_like(x), torch.empty_like(weight)

        def transpose():
            launch.transpose(of_y, weight, of_x, shares, of_weight)
            return of_x, of_weight

        def correlate():
            found = launch.correlate(*backward)
            launch.join(found[1], of_weight)
            return found[0], of_weight, *found[2:]

        found = {
            "convolve": lambda: launch.convolve(x, weight)[:1],
            "activate": lambda: launch.activate(y, added, moments, of_tile, *of_norm, 0.1, 1e-5),
            "reduce": lambda: (launch.reduce(self.slope, y, None if added is None else out, kept)[1].sum(0),),
            "correlate": correlate,
            "transpose": transpose,
        }
        if not gradient_wanted(self):
            del found["transpose"]
        return found


def gradient_wanted(layer) -> bool:
    """Whether the layer's maps want a gradient: not if they are images."""
    return layer.x.requires_grad


def _maps(channels, pixels):
    return torch.randn(BATCH, channels, pixels, pixels, **GPU).contiguous(memory_format=torch.channels_last)


def key_of(kernel: str, layer: tuple) -> tuple:
    """The plan that such a layer's kernel goes by."""
    before, after = layer[:2]
    return kernel, before if kernel in ("convolve", "correlate", "transpose") else after, after


def candidates(kernel: str, before: int, after: int) -> list[Plan]:
    """Plans to try, the one in use first."""
    inner = {"convolve": before, "transpose": after}.get(kernel)  # channels that a product is over
    outer = {"transpose": before}.get(kernel, after)
    rows = [n for n in (32, 64, 128, 256, 512) if 1024 <= n * outer <= MOST_VALUES]
    if inner is not None:
        taps = [9] if inner == 3 else [1, 3] if inner < 64 else [1]
        blocks = [0, outer // 2] if outer == 64 else [0]
        ways = itertools.product(rows, (4, 8), (1, 3), taps, blocks)
        found = [Plan(*way) for way in ways]
    elif kernel == "correlate":
        columns = [32] if before == 3 else [64, 128] + [256] * (before == 16)
        ways = itertools.product((64, 128), (4, 8), (1, 3), columns, (256, 512))
        found = [Plan(r, w, s, columns=c, programs=p) for r, w, s, c, p in ways]
    else:
        found = [Plan(r, w) for r, w in itertools.product([*rows, 2 * rows[-1]], (4, 8))]
    now = PLANS[kernel, before, after]
    return [now] + [plan for plan in found if plan != now]


def jobs() -> list[tuple]:
    """(kernel, layer, plan), each plan once; a kernel that adds does more, and is timed adding."""
    layers = {}
    for layer in LAYERS:
        for kernel in ("convolve", "activate", "reduce", "correlate", "transpose"):
            if layer[0] > 3 or kernel != "transpose":
                layers[key_of(kernel, layer)] = layer  # the last of a key: what adds comes after what does not
    return [(key[0], layer, plan) for key, layer in layers.items() for plan in candidates(*key)]


def compile_one(job) -> None:
    """Into Triton's cache; what fails is seen when it is timed."""
    kernel, layer, plan = job
    try:
        if layer not in _made:
            _made[layer] = Layer(*layer)
        _made[layer].calls(PLANS | {key_of(kernel, layer): plan})[kernel]()
        torch.cuda.synchronize()
    except Exception as error:
        print(kernel, layer, plan, first_line(error), flush=True)


_made: dict[tuple, Layer] = {}


def captured(call, stream, times: int):
    """A graph of so many calls."""
    graph = torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(times):
            call()
    return graph


def off_by(mine, theirs) -> float:
    """The largest relative difference of two lists of tensors."""
    pairs = [(a.detach().float(), b.detach().float()) for a, b in zip(mine, theirs, strict=True)]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def timed(graphs: dict) -> dict:
    """Name -> microseconds of a call, all in turn."""
    turns = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            turns[name].append(1e6 * seconds_per_replay(graph, 3) / LAUNCHES)
    return {name: round(statistics.median(values), 2) for name, values in turns.items()}


def tune() -> tuple[dict, dict]:
    """(microseconds of every plan, the fastest plans)."""
    table, best, now = {}, dict(PLANS), {}
    of_key = {}
    for kernel, layer, plan in jobs():
        of_key.setdefault(key_of(kernel, layer), (layer, []))[1].append(plan)
    for key, (layer, plans) in of_key.items():
        made, graphs, failed, used = Layer(*layer), {}, {}, []
        expected = made.calls(PLANS)[key[0]]()
        for plan in plans:
            try:
                call = made.calls(PLANS | {key: plan})[key[0]]
                off = off_by(call(), [t.clone() for t in expected])
                if not off < 0.05:
                    raise ValueError(f"off by {off:.3f}")
                used.append(call)  # its tensors, which the graph goes on writing
                graphs[plan] = captured(call, made.stream, LAUNCHES)
            except Exception as error:  # a way that cannot be launched is a result
                failed[str(plan)] = first_line(error)
        found = timed(graphs)
        best[key], now[key] = min(found, key=found.get), found.get(plans[0])
        table[" ".join(map(str, key))] = {str(plan): value for plan, value in found.items()} | failed
        print(*key, f"{now[key]} us now, {found[best[key]]} by", best[key], f"{len(failed)} failed", flush=True)
    return table, best


def units(ways: dict[str, dict]) -> dict:
    """Layer -> microseconds of a forward and backward pass by each way's plans, and by PyTorch; with their totals."""
    table, totals = {}, dict.fromkeys(("PyTorch", *ways), 0.0)
    for kind, count in LAYERS.items():
        layer = Layer(*kind)
        theirs, graphs = layer.results(conv_norm_relu), {}
        graphs["PyTorch"] = captured(lambda layer=layer: layer.results(conv_norm_relu), layer.stream, LAUNCHES)
        for name, plans in ways.items():
            used = dict(PLANS)
            PLANS.update(plans)
            off = off_by(layer.results(thin.unit), theirs)
            assert off < 0.05, (kind, name, off)
            graphs[name] = captured(lambda layer=layer: layer.results(thin.unit), layer.stream, LAUNCHES)
            PLANS.update(used)
        found = timed(graphs)
        table[" ".join(map(str, kind))] = found
        for name in totals:
            totals[name] += count * found[name]
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
