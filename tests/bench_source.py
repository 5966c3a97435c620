"""What the tests of the benchmark measure on: images, and settings that nothing has to be measured for."""

import numpy as np
import torch

from reslib.data.sets import DataSource, image_set

CPU = torch.device("cpu")


def make_source() -> DataSource:
    """64 images of noise in ten classes, for training and testing alike."""
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    part = image_set(images, np.arange(64) % 10, "synthetic", 10)
    return DataSource("synthetic", part, part, list("abcdefghij"), "0" * 16, "test", synthetic=True)


def set_up(monkeypatch, tmp_path) -> None:
    """A cache of the test's own, and given settings."""
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,compile=false")


def record_of(**parts) -> dict:
    """A record as `load_records` gives it, of a machine called "here", with these parts."""
    environment = {"device_name": "here (2 threads)", "device": "cpu", "torch": "2.14.1", "commit": "c" * 40}
    environment["threads"] = 2
    head = {"file": "here.json", "date": "2026-01-02", "load": 0.5, "dataset": "synthetic", "environment": environment}
    return head | parts
