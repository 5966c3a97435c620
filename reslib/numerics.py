"""Which device and which precision a run uses, decided before its first step."""

from __future__ import annotations

import contextlib
import time
from functools import cache

import torch
from torch import nn

from .errors import UserError, choose

PRECISIONS = ("auto", "fp32", "bf16")


def resolve_device(name: str = "auto") -> torch.device:
    """ "auto", "cpu", "mps", "cuda" or "cuda:1" as a device that exists here; UserError otherwise."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    choose("device", kind, ("auto", "cpu", "cuda", "mps"))
    if index and not index.isdigit():
        raise UserError(f"device {name!r}: {index!r} is not a device number")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} is not here: {torch.cuda.device_count()} CUDA devices are visible")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is not here: allowed are auto, cpu")
    return torch.device(name)


def resolve_precision(asked: str, device: torch.device) -> str:
    """ "auto" as the faster of "fp32" and "bf16": always bf16 where a CUDA GPU has it, measured on other devices."""
    choose("precision", asked, PRECISIONS)
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return faster_precision() if device.type == "cpu" else "fp32"


@cache
def faster_precision() -> str:
    """Train a thin convolution stack for about a second in either precision on this CPU and name the faster.

    Flags do not tell: processors advertise bf16 and run it at half the fp32 rate.
    """
    state = torch.get_rng_state()
    seconds = {precision: _seconds_per_step(precision) for precision in ("fp32", "bf16")}
    torch.set_rng_state(state)
    return min(seconds, key=seconds.get)


def _seconds_per_step(precision: str) -> float:
    layers = [m for _ in range(3) for m in (nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())]
    net = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    x = torch.randn(64, 16, 32, 32).to(memory_format=torch.channels_last)
    best = float("inf")
    for _ in range(6):  # the fastest of a few: the least disturbed by neighbours
        start = time.perf_counter()
        with autocast(torch.device("cpu"), precision):
            loss = net(x).float().square().mean()
        loss.backward()
        best = min(best, time.perf_counter() - start)
    return best


def autocast(device: torch.device, precision: str):
    """bf16 autocast with fp32 weights, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
