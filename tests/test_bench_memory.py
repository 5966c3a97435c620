"""Peak memory is that of the contender alone."""

import pytest
import torch
from bench_source import set_up

from reslib import data
from reslib.bench import contenders, memory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    set_up(monkeypatch, tmp_path)


def test_peak_memory_is_of_the_contender_whatever_its_parent_holds():
    """Linux starts a process's count at what its parent held: a gibibyte here, which must not be seen there."""
    recipe = contenders.recipe_for("resnet8", 8, data.load("synthetic"))
    without = memory.peak_memory("fp32", recipe, None, CPU, steps=1)["process"]
    ballast = torch.ones(1 << 28)
    with_it = memory.peak_memory("fp32", recipe, None, CPU, steps=1)["process"]
    assert ballast.sum() > 0 and with_it == pytest.approx(without, rel=0.2)


def test_peak_memory_of_a_loop_with_workers():
    """Theirs is not counted: a forked worker begins with all that its parent holds, and shares it."""
    recipe = contenders.recipe_for("resnet8", 8, data.load("synthetic"))
    peaks = memory.peak_memory("usual", recipe, None, CPU, workers=1, steps=1)
    assert set(peaks) == {"process"} and peaks["process"] > 100  # MiB: torch alone takes more
