"""ResNet-110 and ResNet-1202: the warm-up of a real run from its first step to its last, and the memory of a step."""

import json
import resource
import subprocess
import sys

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from training import QUIET, rows_of, silent, stop_after, train_in_pieces, weights_of

from reslib.models import build_model
from reslib.presets import PRESETS, cifar_recipe
from reslib.runs import Run
from reslib.train import Interrupted, train

GIB = 2**30


def deep(model, **changes):
    """The paper's recipe of a deep net, on few images and with one filter, so that a step takes a fraction of a second.

    Its windows are short, so that chance alone brings the training error of one below the threshold.
    """
    fields = {"iterations": 20, "batch_size": 4, "eval_every": 1, "train_size": 40, "test_size": 4, "warmup_window": 2}
    return cifar_recipe(model, PRESETS["paper"], "synthetic", options="width=1", precision="fp32", **fields | changes)


def check_trace(recipe, frame, summary) -> int | None:
    """Every step's rate follows from the errors: 0.01 up to the first window below 80%, then the paper's. The end.

    None where chance ended it in the first window or after half of the run, or no later window is bad again.
    """
    assert frame.iteration.tolist() == list(range(1, recipe.iterations + 1))
    windows = frame.train_error.to_numpy().reshape(-1, recipe.warmup_window).mean(1)
    good = [i for i, error in enumerate(windows) if error < 0.8]
    ended = recipe.warmup_window * (1 + good[0]) if good else recipe.iterations
    half, three_quarters = recipe.iterations // 2, recipe.iterations * 3 // 4
    expected = [0.01] * ended + [0.1] * (half - ended) + [0.01] * (three_quarters - half)
    expected += [0.001] * (recipe.iterations - three_quarters)
    if ended <= half:
        assert frame.lr.tolist() == pytest.approx(expected)
        assert summary["warmup_ended_at"] == ended
    if recipe.warmup_window < ended < half and max(windows[ended // recipe.warmup_window :]) >= 0.8:
        return ended
    return None


def whole_run(model, folder):
    """A run whose warm-up ends within it: which seeds give one depends on the processor's last bits."""
    for seed in range(20):
        recipe = deep(model, seed=seed)
        assert (recipe.warmup_lr, recipe.warmup_error, recipe.lr) == (0.01, 0.8, 0.1)
        summary = train(recipe, folder, execution=QUIET, say=silent)
        ended = check_trace(recipe, pd.read_csv(Run(folder, recipe).metrics_file), summary)
        if ended:
            return recipe, ended
    pytest.fail("none of 20 seeds leaves the warm-up within the first half")


@pytest.mark.parametrize("model", ["resnet110", pytest.param("resnet1202", marks=pytest.mark.long)])
def test_the_warm_up_of_a_deep_run_is_left_once_and_survives_a_stop_within_it(tmp_path, monkeypatch, model):
    recipe, ended = whole_run(model, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, ended - 1)  # in the middle of the last window of the warm-up
        train(recipe, tmp_path / "stopped", execution=QUIET, say=silent)
    summary, sessions = train_in_pieces(monkeypatch, recipe, tmp_path / "stopped", recipe.iterations // 2 + 1)
    assert sessions > 1 and summary["warmup_ended_at"] == ended
    assert rows_of(tmp_path / "stopped", recipe) == rows_of(tmp_path / "whole", recipe)
    assert weights_of(tmp_path / "stopped", recipe) == weights_of(tmp_path / "whole", recipe)


def saved_bytes(model, x, y):
    """What autograd keeps for the backward pass."""
    sizes = {}

    def keep(tensor):
        sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    return sum(sizes.values())


def test_activation_checkpointing_keeps_a_map_per_block():
    model = build_model("resnet110").to(memory_format=torch.channels_last).train()
    x, y = torch.zeros(4, 3, 32, 32).to(memory_format=torch.channels_last), torch.zeros(4, dtype=torch.long)
    usual = saved_bytes(model, x, y)
    model.activation_checkpointing = True
    maps = 4 * 4 * 18 * sum(width * side**2 for width, side in ((16, 32), (32, 16), (64, 8)))  # of the blocks' outputs
    assert maps < saved_bytes(model, x, y) < 1.2 * maps and usual > 4 * maps


@pytest.mark.long
def test_a_step_of_resnet1202_at_batch_128_fits_24_gib(tmp_path):
    """Measured in a process of its own; the batch's activations on a GPU are the same numbers, so 16 GB are enough."""
    command = [sys.executable, "-m", "reslib", "train", "resnet1202", "--preset", "paper", "--dataset", "synthetic"]
    command += ["--iterations", "1", "--train-size", "128", "--test-size", "16", "--precision", "fp32"]
    command += ["--activation-checkpointing", "--device", "cpu", "--results", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1024 if sys.platform == "linux" else 1)
    (summary,) = (json.loads(p.read_text()) for p in tmp_path.glob("paper/runs/*/summary.json"))
    assert summary["parameters"] == 19_421_274 and summary["status"] == "finished"
    print(f"peak memory of one step of ResNet-1202, batch 128, fp32: {peak / GIB:.1f} GiB")
    assert peak < 12 * GIB  # of the 24 GiB asked for; and what is not activations stays below 4 GiB of a 16 GB GPU
