"""The units of thin nets on a CUDA GPU: their numbers, in captured steps, in a trial and in a run that is resumed."""

import pytest
import torch
from on_gpu import GPU, RECIPE, exact, follow_fp32, source  # noqa: F401 (fixtures)
from training import rows_of, silent, stop_after

from reslib import data, gpu_trials
from reslib.engine import make_optimizer, make_step
from reslib.job import Execution
from reslib.networks import make_model
from reslib.train import Interrupted, train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("layer", [(3, 16, 1, 32), (16, 16, 1, 32), (16, 32, 2, 32), (32, 32, 1, 16), (32, 64, 2, 16),
                                   (64, 64, 1, 8)])  # fmt: skip
def test_thin_units_are_as_near_to_double_precision_as_pytorchs_bf16(layer, added):
    """At the paper's batch of 128, with the same bits every time."""
    from thin_numbers import of_unit

    distances = of_unit((128, layer[3], *layer[:3], added), device="cuda")
    assert {"out", "weight", "scale", "shift", "mean", "variance"} <= set(distances)
    for quantity, (mine, usual) in distances.items():
        assert mine < max(1.5 * usual, 1e-5), (quantity, mine, usual)
    assert distances == of_unit((128, layer[3], *layer[:3], added), device="cuda")


@pytest.mark.parametrize("model", ["resnet8", "plain8", "resnet14"])
def test_captured_steps_of_thin_units_follow_fp32_for_fifty_steps(source, monkeypatch, model):
    follow_fp32(RECIPE.replace(model=model, lr=0.001), source, monkeypatch, "units=true", "CUDA graph, thin units")


def test_a_long_run_tries_thin_units_before_the_compiler(source, monkeypatch, tmp_path):
    torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path))
    monkeypatch.delenv("RESLIB_TUNE", raising=False)
    recipe = RECIPE.replace(model="resnet20", batch_size=128)
    net = make_model(recipe, 10, None).to(GPU, memory_format=torch.channels_last).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step, said = make_step(recipe, net, make_optimizer(recipe, net, GPU), GPU, "bf16"), []
    gpu_trials.accelerate(step, 10**7, say=said.append)
    step._capture(*data.batches_for(recipe, source, GPU).batch(0))
    assert "ms thin units and captured" in said[1], said
    assert said[1].endswith(": kept") or step.way != "CUDA graph, thin units"
    assert not said[-1].endswith(": kept") or step.way != "CUDA graph"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_run_of_thin_units_resumes_as_it_was_begun(tmp_path, monkeypatch):
    monkeypatch.setenv("RESLIB_TUNE", "units=true")
    whole = train(RECIPE, tmp_path / "whole", execution=Execution(device="cuda"), say=silent)
    assert whole["sessions"][0]["step"] == "CUDA graph, thin units"
    with pytest.raises(Interrupted), monkeypatch.context() as patch:
        stop_after(patch, 13)
        train(RECIPE, tmp_path / "pieces", execution=Execution(device="cuda"), say=silent)
    monkeypatch.delenv("RESLIB_TUNE")
    pieces = train(RECIPE, tmp_path / "pieces", execution=Execution(device="cuda"), say=silent)
    assert [s["step"] for s in pieces["sessions"]] == ["CUDA graph, thin units"] * 2
    assert rows_of(tmp_path / "pieces", RECIPE) == rows_of(tmp_path / "whole", RECIPE)  # these kernels add in order
