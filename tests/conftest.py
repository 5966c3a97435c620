"""Fixtures and options that every test file shares."""

import os
import subprocess
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="also run the tests marked long, which take minutes")


def pytest_configure(config):
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it once, at its first call
    torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "long" in item.keywords and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --long"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; tests that need it are skipped without."""
    given = os.environ.get("RESLIB_DATA")
    if not given:
        pytest.skip("RESLIB_DATA is not set: no real data sets")
    if not Path(given).is_dir():
        pytest.skip(f"RESLIB_DATA={given} is not a folder")
    return Path(given)


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a small file system here; skipped where that is not allowed."""
    points = []

    def mount(options):
        point = tmp_path / "mounted"
        point.mkdir(exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", point], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
        points.append(point)
        return point

    if os.name != "posix" or os.geteuid():
        pytest.skip("mounting needs root")
    yield mount
    for point in points:
        subprocess.run(["umount", "-l", point], check=False)
