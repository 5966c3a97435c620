"""How long a process takes to its first training step, and what importing reslib adds to importing torch."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import torch

from .. import data
from ..numerics import use
from .contenders import Reslib, recipe_for

CODE = """
import json, sys, time
begun = time.monotonic()
import torch
with_torch = time.monotonic()
import reslib.notebook  # the largest of the package's imports
imported = time.monotonic()
from reslib.bench.start import first_step
first_step(*json.loads(sys.argv[1]))
seconds = {"torch_import_seconds": with_torch - begun, "import_seconds": imported - with_torch}
print(json.dumps(seconds | {"first_step_seconds": time.monotonic() - float(sys.argv[2])}))
"""
PATIENCE = 300.0  # seconds


def start(source, device, root=None) -> dict:
    """Seconds, in a process of its own: torch's import, reslib's beyond it, and from the start to the first step of
    ResNet-20 done, an eager one, with data from the disk. `failed` says why there are none."""
    asked = json.dumps([source.name, str(root) if root else None, str(device)])
    try:
        command = [sys.executable, "-c", CODE, asked, str(time.monotonic())]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        return {"failed": (error.stderr.strip().splitlines() or ["it died"])[-1][:200]}
    except subprocess.TimeoutExpired:
        return {"failed": f"it was not done after {PATIENCE:.0f} s"}


def first_step(dataset: str, root, device: str) -> None:
    """Load the data, build ResNet-20, take one step, which is done when this returns."""
    device = torch.device(device)
    use(device)
    source = data.load(dataset, root)
    Reslib("eager", recipe_for("resnet20", 128, source), source, device)
