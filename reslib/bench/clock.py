"""Timing on devices that work asynchronously."""

from __future__ import annotations

import time

import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class Clock:
    """Laps of named parts of a step, waiting for the device at the end of each."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, {}
        synchronize(device)
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Add the time since the last lap to what `name` took; waits for the device."""
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    def mean(self, steps: int) -> dict[str, float]:
        """Seconds per step of every named part."""
        return {name: seconds / steps for name, seconds in self.seconds.items()}
