"""Time the units of thin nets layer by layer on a GPU, beside PyTorch's operations, for several ways to launch them.

    python scripts/thin_timing.py [OUT.json]

For whoever tunes reslib/thin: a forward and backward pass of each kind of layer of ResNet-20 at the paper's batch, many
of them in one CUDA graph, medians of turns. Numbers are compared before times. Minutes, most of them compilation.
"""

import json
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

from reslib.cuda_graphs import seconds_per_replay
from reslib.errors import first_line
from reslib.models.conv_norm_relu import conv_norm_relu
from reslib.thin import unit as thin

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
WAYS = {
    "stages 3": {"num_stages": 3},
    "stages 2": {"num_stages": 2},
    "stages 1": {"num_stages": 1},
    "8 warps": {"num_warps": 8},
    "8 warps, stages 1": {"num_warps": 8, "num_stages": 1},
}
BATCH, PASSES, ROUNDS = 128, 20, 5
GPU = {"device": "cuda", "dtype": torch.bfloat16}


class Layer:
    """A unit of one kind with its maps; `graph(call)` holds PASSES forward and backward passes of it."""

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

    def results(self, call):
        """(output, *gradients)."""
        with torch.autocast("cuda", torch.bfloat16):
            out = call(self.conv, self.norm, self.relu, self.x, self.added)
        return out, *torch.autograd.grad(out, self.leaves, self.slope)

    def graph(self, call):
        """Captured passes."""
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.results(call)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(PASSES):
                self.results(call)
        return graph


def _maps(channels, pixels):
    return torch.randn(BATCH, channels, pixels, pixels, **GPU).contiguous(memory_format=torch.channels_last)


def measure(layer: Layer) -> dict:
    """Way -> microseconds of a pass, "failed: why" where it cannot be launched; all in turn."""
    theirs, graphs, found = layer.results(conv_norm_relu), {"PyTorch": layer.graph(conv_norm_relu)}, {}
    for name, options in WAYS.items():
        launch = dict(options)
        thin.LAUNCH, thin.PRODUCT_LAUNCH = {"num_warps": launch.pop("num_warps", 4)}, launch
        try:
            mine = layer.results(thin.unit)
            pairs = [(a.detach().float(), b.detach().float()) for a, b in zip(mine, theirs, strict=True)]
            off = [float((a - b).norm() / b.norm()) for a, b in pairs]
            if not all(part < 0.05 for part in off):
                raise ValueError(f"off by {', '.join(f'{part:.3f}' for part in off)}")
            graphs[name] = layer.graph(thin.unit)
        except Exception as error:  # a way that cannot be launched is a result
            found[name] = f"failed: {first_line(error)}"
    turns = {name: [] for name in graphs}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            turns[name].append(1e6 * seconds_per_replay(graph, 3) / PASSES)
    return {name: round(statistics.median(values), 2) for name, values in turns.items()} | found


def main(out: str = "") -> None:
    torch.backends.cudnn.benchmark = True
    table, totals = {}, dict.fromkeys(("PyTorch", *WAYS), 0.0)
    for kind, count in LAYERS.items():
        found = measure(Layer(*kind))
        table[" ".join(map(str, kind))] = found
        print(kind, found, flush=True)
        for name in totals:
            totals[name] += count * found[name] if isinstance(found.get(name), float) else float("nan")
    totals = {name: round(value, 1) for name, value in totals.items()}
    print("ResNet-20, microseconds of all units:", totals)
    if out:
        report = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "layers": table, "totals": totals}
        Path(out).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
