"""Which device and which precision a run uses, decided before its first step."""

from __future__ import annotations

import contextlib
from functools import cache

import torch

from .errors import UserError, choose

PRECISIONS = ("auto", "fp32", "bf16")
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what it asks for to be deterministic, before its first call


def in_double(x: torch.Tensor) -> torch.Tensor:
    """float64, on the processor where the device has none (MPS)."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def resolve_device(name: str = "auto") -> torch.device:
    """ "auto", "cpu", "mps", "cuda" or "cuda:1" as a device that exists here; UserError otherwise."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if name == "gpu":
        raise UserError("device 'gpu' is unknown: allowed are auto, cpu, mps, cuda and cuda:N; did you mean 'cuda'?")
    choose("device", kind, ("auto", "cpu", "cuda", "mps"))
    if kind != name and not (kind == "cuda" and index.isascii() and index.isdigit()):
        raise UserError(f"device {name!r} is unknown: allowed are auto, cpu, mps, cuda and cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} is not here: {torch.cuda.device_count()} CUDA devices are visible")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is not here: allowed are auto, cpu")
    return torch.device(name)


def use(device: torch.device) -> None:
    """Make a CUDA device the current one: pinned memory, and what torch does without naming a device, are of that."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def resolve_precision(asked: str, device: torch.device, measured: bool = True) -> str:
    """ "auto" as the faster of "fp32" and "bf16": always bf16 where a CUDA GPU has it, as measured on a processor.

    measured: whether it may be measured there (tune.measures); if not, what RESLIB_TUNE says, or fp32.
    """
    choose("precision", asked, PRECISIONS)
    if asked != "auto":
        return asked
    if device.type == "cuda":
        with torch.cuda.device(device):  # asked of the current one
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type != "cpu":
        return "fp32"
    return _asked_precision() or (_measured_precision() if measured else "fp32")


def _asked_precision() -> str | None:
    """What RESLIB_TUNE says now: a notebook may set it after a first run, whose measurement it stands above."""
    from . import tune

    return tune.asked("precision")


@cache
def _measured_precision() -> str:
    """The faster on this processor, measured for about two seconds once (see tune.py).

    Flags do not tell: processors advertise bf16 and run it at half the fp32 rate.
    """
    from .tune import choice

    return choice().precision


def autocast(device: torch.device, precision: str):
    """bf16 autocast with fp32 weights, or nothing for fp32."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
