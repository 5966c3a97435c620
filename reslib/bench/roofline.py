"""What the machine can do: the rate of a large matrix product and of a copy, measured beside the training steps."""

from __future__ import annotations

import time

import torch

from ..complexity import multiply_adds
from .clock import synchronize

# Passes over the output of each convolution when nothing is fused. Forward: written by the convolution, read for the
# statistics, read and written by normalisation and ReLU, read by the next convolution. Backward: gradient and
# activation read twice by batch norm's two sweeps, ReLU's sweep (two reads, one write), the result written, then read
# twice with one activation by the two convolution gradients, which write one.
PASSES_FORWARD, PASSES_BACKWARD = 5, 12


SLOW = 2.0  # seconds of a product from which once is enough: a processor may emulate bf16 at a hundredth of its rate


class Roofline:
    """`measure()` once per round; `summary()` gives the medians."""

    def __init__(self, device: torch.device, size: int | None = None):
        self.device = device
        cuda = device.type == "cuda"
        n = size or (8192 if cuda else 2048)
        self.n = n
        self.matrices = {
            name: tuple(torch.randn(n, n, device=device).to(kind) for _ in range(2))
            for name, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16))
        }
        count = (
            n * n * (1 if size is not None else 4 if cuda else 16)
        )  # 1 GiB on a GPU, 256 MiB else: no cache holds it
        if cuda:  # a quarter, at most, of what contenders leave
            count = min(count, torch.cuda.mem_get_info(device)[0] // 4 // 8)
        self.source, self.target = torch.zeros(count, device=device), torch.ones(count, device=device)
        self.rates: dict[str, list[float]] = {"fp32": [], "bf16": [], "copy": []}

    def measure(self) -> None:
        """Measure the rate of every matrix product (multiply-adds/s) and of a copy (bytes/s) once more."""
        for name, (a, b) in self.matrices.items():
            if self.rates[name] and self.n**3 / self.rates[name][0] > SLOW:
                continue
            self.rates[name].append(self.n**3 / self._best(lambda a=a, b=b: torch.mm(a, b)))
        moved = 2 * self.source.numel() * 4  # read and written
        self.rates["copy"].append(moved / self._best(lambda: self.target.copy_(self.source)))

    def _best(self, work, repeats: int = 3) -> float:
        times = []
        for _ in range(repeats):
            synchronize(self.device)
            begun = time.perf_counter()
            work()
            synchronize(self.device)
            times.append(time.perf_counter() - begun)
            if times[-1] > SLOW:
                break
        return min(times)

    def summary(self) -> dict[str, float]:
        """The best of all rounds: multiply-adds per second in fp32 and bf16, bytes per second of a copy."""
        return {
            "matrix_size": self.n,
            "fp32_multiply_adds_per_second": max(self.rates["fp32"]),
            "bf16_multiply_adds_per_second": max(self.rates["bf16"]),
            "copy_bytes_per_second": max(self.rates["copy"]),
        }


def training_multiply_adds(model: torch.nn.Module, size: int) -> int:
    """Per image and step: forward, gradient of the input, gradient of the weights cost the same (the first layer's
    input needs no gradient, which makes this at most 1% too high)."""
    return 3 * multiply_adds(model, size)


def convolution_outputs(model: torch.nn.Module, size: int) -> int:
    """Values written by all convolutions for one image."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        total += output.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    device, training = next(model.parameters()).device, model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, size, size, device=device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return total


def floors(model, size: int, batch: int, precision: str, machine: dict) -> dict[str, float]:
    """Seconds per step that arithmetic, and unfused memory traffic, would take at the machine's own rates."""
    bytes_each = 2 if precision == "bf16" else 4
    traffic = (PASSES_FORWARD + PASSES_BACKWARD) * convolution_outputs(model, size) * bytes_each * batch
    work = training_multiply_adds(model, size) * batch
    return {
        "multiply_adds_per_step": work,
        "arithmetic_floor_seconds": work / machine[f"{precision}_multiply_adds_per_second"],
        "traffic_floor_seconds": traffic / machine["copy_bytes_per_second"],
    }
