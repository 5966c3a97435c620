"""What tests on a CUDA GPU share: a small recipe, its data, arithmetic without TF32 and without chance."""

import pytest
import torch

from reslib import data
from reslib.equivalence import departure, first_steps
from reslib.recipe import Recipe

GPU = torch.device("cuda")
RECIPE = Recipe(
    model="resnet8", dataset="synthetic", batch_size=16, lr=0.01, iterations=40, train_size=512, test_size=64
)


def away_from_fp32(recipe, source) -> tuple[dict, str]:
    """(how far 50 steps in bf16 as a run takes them go from eager steps in fp32, how they were taken)."""
    exact = first_steps(recipe, source, GPU, "fp32", steps=50, eager=True)
    taken = first_steps(recipe, source, GPU, "bf16", steps=50)
    return departure(exact, taken), taken.way


def follow_fp32(recipe, source, monkeypatch, settings: str, way: str) -> None:
    """50 steps taken by these settings of RESLIB_TUNE stay as near to fp32 as PyTorch's captured steps in bf16, about.

    About: their weights at most half as far again, or within the tolerance of test_equivalence. Of two networks as
    small as these, one strays twice as far as the other.
    """
    monkeypatch.setenv("RESLIB_TUNE", "units=false,compile=false")
    usual, taken = away_from_fp32(recipe, source)
    assert taken == "CUDA graph"
    monkeypatch.setenv("RESLIB_TUNE", settings)
    away, taken = away_from_fp32(recipe, source)
    assert taken == way
    assert 0 < away["weights"] < max(0.05, 1.5 * usual["weights"]), (away, usual)
    assert away["loss"] < 0.0005, away


@pytest.fixture(scope="module")
def source():
    return data.load("synthetic")


@pytest.fixture(autouse=True)
def exact():
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = tf32
