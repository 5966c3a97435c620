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


@pytest.fixture
def own_trials(monkeypatch, tmp_path_factory):
    """Nothing is known of what is faster on this machine, and what is compiled is kept for these tests alone."""
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path_factory.getbasetemp() / "loops-cache"))
    monkeypatch.delenv("RESLIB_TUNE", raising=False)
    monkeypatch.setattr("reslib.trials.known", lambda name: {})


@pytest.fixture
def emulated_tiles(own_trials, monkeypatch):
    """The loops in C++ on matrix tiles of plain loops, which any processor has."""
    from reslib import native

    built = native.build("-DEMULATED")
    monkeypatch.setattr(native, "loops", lambda: built)


@pytest.fixture(params=["emulated", "native"])
def tile_loops(request, monkeypatch, own_trials):
    """Those, and the loops on the tiles of this processor where it has some."""
    from reslib import native

    built = native.build(*["-DEMULATED"] * (request.param == "emulated"))
    if not built.tile_units():
        pytest.skip("this processor has no matrix tiles")
    monkeypatch.setattr(native, "loops", lambda: built)


@pytest.fixture
def same_threads():
    """PyTorch's number of threads is as before, whatever a run has set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
