"""The kernels of thin nets: PyTorch's numbers, and code that a GPU's compiler takes."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reslib import thin
from reslib.errors import UserError
from reslib.thin.plans import LEAST_ROWS, MAX_TILES, MOST_VALUES, PLANS, tile

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")


@pytest.fixture(scope="module")
def numbers():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE.parent), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / "thin_numbers.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
def test_a_units_output_gradients_and_averages_are_pytorchs(numbers):
    """Kernels in Triton's interpreter, against double precision: no further off than PyTorch in fp32."""
    assert len(numbers["units"]) == 12
    for name, quantities in numbers["units"].items():
        assert {"out", "weight", "scale", "shift", "mean", "variance", "batches"} <= set(quantities)
        assert ("x" in quantities) == (not name.startswith("first")) and ("added" in quantities) == (
            "added" in name or "odd" in name
        )
        for quantity, (mine, usual) in quantities.items():
            assert mine < max(2 * usual, 1e-6), (name, quantity)


@needs_triton
def test_a_networks_loss_and_gradient_are_pytorchs(numbers):
    units = {name: found["units"] for name, found in numbers["networks"].items()}
    assert units == {"resnet8": 7, "preactivated": 3, "narrow": 3}
    for name, found in numbers["networks"].items():
        for quantity in ("loss", "gradient"):
            mine, usual = found[quantity]
            assert mine < max(2 * usual, 1e-6), (name, quantity)


@needs_triton
def test_what_is_not_a_number_stays_so(numbers):
    assert numbers["diverged"] is True


@needs_triton
@pytest.mark.parametrize("layer", [(3, 16, 1, 32, False), (16, 16, 1, 32, True), (16, 32, 2, 32, False),
                                   (32, 32, 1, 16, True), (32, 64, 2, 16, False), (64, 64, 1, 8, True)])  # fmt: skip
def test_kernels_compile_for_a_gpu_that_is_not_here(layer, tmp_path, monkeypatch):
    """The interpreter takes Python that a GPU's compiler does not: all six, for Hopper, in bf16, at batch 128."""
    from thin_compiled import launches, spilled

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = launches(*layer)
    last = "join" if layer[0] == 3 else "transpose"  # images have no gradient
    assert sorted(compiled) == sorted(["activate", "convolve", "correlate", "reduce", last])
    for name, kernel in compiled.items():
        assert kernel.metadata.shared <= 227 * 1024, name  # bytes that a program can have
        assert spilled(kernel, tmp_path) == 0, name
        products = re.search(r"\b(wgmma\.mma_async|mma\.sync)", kernel.asm["ptx"]) is not None
        assert products == (name in ("convolve", "correlate", "transpose")), name


@needs_triton
@pytest.mark.parametrize("key", sorted(PLANS))
def test_every_batch_is_dealt_out_in_tiles_of_a_size_that_fits(key):
    """The paper's batch as planned; of fewer images smaller tiles; of more larger ones, as long as values allow."""
    kernel, before, after = key
    plan, channels = PLANS[key], before if kernel == "transpose" else after
    pixels = (32 * 16 // channels) ** 2
    sizes = {images: tile(kernel, plan, images * pixels, channels) for images in (1, 16, 128, 512, 513, 4096)}
    assert all(rows >= LEAST_ROWS and rows & (rows - 1) == 0 for rows in sizes.values()), sizes  # a power of two
    assert list(sizes.values()) == sorted(sizes.values())
    assert sizes[128] == plan.rows or kernel == "correlate", sizes
    assert sizes[1] < plan.rows or plan.rows == LEAST_ROWS
    if not plan.block and kernel != "correlate":
        assert all(images * pixels / rows <= MAX_TILES for images, rows in sizes.items() if images <= 512), sizes
        assert sizes[4096] * channels >= MOST_VALUES


@needs_triton
def test_a_batch_of_more_tiles_than_are_joined_is_left_to_pytorch(monkeypatch):
    from reslib.thin import unit

    monkeypatch.setattr(unit, "_type_of_maps", lambda x: torch.bfloat16)
    monkeypatch.setattr(unit._Unit, "apply", lambda *call: "taken")
    conv, norm = torch.nn.Conv2d(16, 16, 3, 1, 1, bias=False), torch.nn.BatchNorm2d(16)
    for images, answer in ((512, "taken"), (513, None)):
        x = torch.empty(1, 1, 1, 16, dtype=torch.bfloat16).expand(images, 32, 32, 16).permute(0, 3, 1, 2)
        monkeypatch.setattr(unit, "_fits", lambda *call: True)  # it is not laid out as one; it takes no memory
        assert unit.unit(conv, norm, torch.nn.ReLU(), x) == answer, images


@needs_triton
def test_a_cold_start_compiles_anew(monkeypatch):
    """What a benchmark calls the set-up of a first run must not find kernels of the run before."""
    import triton

    from reslib.thin import kernels

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = triton.knobs.cache.dir
    monkeypatch.setitem(kernels.convolve.device_caches, 0, "compiled before")
    with thin.compiled_anew():
        assert not kernels.convolve.device_caches and triton.knobs.cache.dir != before
        assert os.environ["TRITON_CACHE_DIR"] == triton.knobs.cache.dir
    assert triton.knobs.cache.dir == before and "TRITON_CACHE_DIR" not in os.environ


def test_a_contender_that_cannot_run_here_says_so():
    from reslib import data
    from reslib.bench.contenders import contender, recipe_for

    source = data.load("synthetic")
    with pytest.raises(UserError, match="contender thin: (for NVIDIA GPUs alone|Triton is not installed)"):
        contender("thin", recipe_for("resnet8", 16, source), source, torch.device("cpu"), say=lambda text: None)
