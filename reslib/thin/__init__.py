"""Thin nets on a GPU: convolution, batch norm, addition, ReLU by kernels of our own, where a trial finds them faster.

The nets of section 4.2 have 16 to 64 filters. cuDNN's kernels are made for more, and what comes between convolutions
takes as long as they do, kernel after kernel. Here a unit of the four is two kernels forward and four backward, in
Triton (kernels.py); unit.py calls them. `scripts/thin_timing.py` times them layer by layer.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

import torch
from torch import nn

from ..models.conv_norm_relu import taken_over

NAME = "thin units"  # in records and messages
CAPABILITY = (8, 0)  # of a GPU: the first with products in bf16


class ThinLoss(nn.Module):
    """`loss(x, y, progress)` with units by these kernels; `units` counts those taken over in the last pass.

    After `give_up` it is the loss within.
    """

    def __init__(self, loss: nn.Module, say=print):
        super().__init__()
        self.loss, self.say, self.units, self.given_up = loss, say, 0, False

    @property
    def way(self) -> str:
        """What of it a record says, "" where no unit is taken over."""
        return NAME if self.units and not self.given_up else ""

    def forward(self, x, y, progress):
        if self.given_up:
            return self.loss(x, y, progress)
        from .unit import unit  # Triton: not on every machine

        self.units = 0

        def way(*call):
            result = unit(*call)
            self.units += result is not None
            return result

        with taken_over(way):
            return self.loss(x, y, progress)

    def give_up(self, error: Exception) -> None:
        """As the loss within from now on, said with the reason."""
        text = str(error).strip()
        self.say(f"no {NAME}: {text.splitlines()[0] if text else type(error).__name__}")
        self.given_up = True


@contextlib.contextmanager
def compiled_anew():
    """Within the block kernels are compiled as on a machine that has never compiled them."""
    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        yield
        return
    from . import kernels

    for kernel in vars(kernels).values():
        getattr(kernel, "device_caches", {}).clear()  # of this process
    before = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # torch.compile sets the same variable, so no knob above it
        try:
            yield
        finally:
            del os.environ["TRITON_CACHE_DIR"]
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before


def version() -> str:
    """Of the kernels and how they are launched: what was found of them is no longer true when it changes."""
    here = Path(__file__).parent
    source = b"".join((here / name).read_bytes() for name in ("kernels.py", "unit.py"))
    return hashlib.sha256(source).hexdigest()[:8]


def without(loss: nn.Module) -> nn.Module:
    """The loss that a ThinLoss is of; any other as it is."""
    return loss.loss if isinstance(loss, ThinLoss) else loss


def unavailable(device: torch.device) -> str:
    """Why these kernels cannot run on a device, "" where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda" or torch.version.hip:
        return "for NVIDIA GPUs alone"
    found = torch.cuda.get_device_capability(device)
    return "" if found >= CAPABILITY else f"for GPUs of capability {'.'.join(map(str, CAPABILITY))} or above"
