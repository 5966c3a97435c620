"""Thin nets on a GPU: convolution, batch norm, addition, ReLU by kernels of our own, where a trial finds them faster.

The nets of section 4.2 have 16 to 64 filters. cuDNN's kernels are made for more, and what comes between convolutions
takes as long as they do, kernel after kernel. Here a unit of the four is two kernels forward and three backward, in
Triton (kernels.py); unit.py calls them as plans.py says, which `scripts/thin_timing.py` tunes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile

import torch
from torch import nn

from ..errors import first_line
from ..models.conv_norm_relu import UnitsLoss

NAME = "thin units"  # in records and messages
CAPABILITY = (8, 0)  # of a GPU: the first with products in bf16
_kept: list[dict] = []  # what `compiled_anew` compiled anew


class ThinLoss(UnitsLoss):
    """`loss(x, y, progress)` with units by these kernels; `units` counts those taken over in the last pass.

    After `give_up` it is the loss within.
    """

    def __init__(self, loss: nn.Module, say=print):
        super().__init__(loss)
        self.say, self.units, self.given_up = say, 0, False

    @property
    def way(self) -> str:
        """What of it a record says, "" where no unit is taken over."""
        return NAME if self.units and not self.given_up else ""

    def forward(self, x, y, progress):
        if self.given_up:
            return self.loss(x, y, progress)
        self.units = 0
        return super().forward(x, y, progress)

    def _way(self, *call):
        from .unit import unit  # Triton: not on every machine

        result = unit(*call)
        self.units += result is not None
        return result

    def give_up(self, error: Exception) -> None:
        """As the loss within from now on, said with the reason."""
        self.say(f"no {NAME}: {first_line(error)}")
        self.given_up = True


@contextlib.contextmanager
def compiled_anew():
    """Within the block kernels are compiled as on a machine that has never compiled them."""
    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        yield
        return
    from . import kernels

    for kernel in vars(kernels).values():
        if caches := getattr(kernel, "device_caches", None):  # of this process
            _kept.append(dict(caches))  # a kernel that is let go is unloaded, and captured graphs may replay it
            caches.clear()
    before = os.environ.get("TRITON_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # torch.compile sets the same variable, so no knob above it
        try:
            yield
        finally:
            del os.environ["TRITON_CACHE_DIR"]
            if before is not None:
                os.environ["TRITON_CACHE_DIR"] = before


def unavailable(device: torch.device) -> str:
    """Why these kernels cannot run on a device, "" where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda" or torch.version.hip:
        return "for NVIDIA GPUs alone"
    found = torch.cuda.get_device_capability(device)
    return "" if found >= CAPABILITY else f"for GPUs of capability {'.'.join(map(str, CAPABILITY))} or above"
