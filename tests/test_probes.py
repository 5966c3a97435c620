"""Probes against slow references without hooks: the same forward pass written out, and finite differences."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from reslib import claims, data, gradient_plan, gradient_summary, probes
from reslib.errors import UserError
from reslib.frames import load_measurement, save_measurement
from reslib.models import build_model
from reslib.networks import make_model
from reslib.notebook import open_folder
from reslib.presets import PRESETS, cifar_recipe
from reslib.records import load_runs
from reslib.train import Execution, train

SMOKE = PRESETS["smoke"]


def small(family="plain", depth=14, **options):
    torch.manual_seed(0)
    model = build_model(f"{family}{depth}", width=4, **options)
    with torch.no_grad():  # batch norm that does something, in eval mode too
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            for value, low in ((norm.weight, 0.5), (norm.running_var, 0.5), (norm.bias, -1), (norm.running_mean, -1)):
                value.uniform_(low, low + 1.5)
    return model


def images(count=6, size=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 10


def written_out(model, x):
    """The forward pass without hooks and without in-place operations: (logits, responses)."""
    responses = [model.bn1(model.conv1(x))]
    x = F.relu(responses[0])
    for stage in (model.layer1, model.layer2, model.layer3):
        for block in stage:
            responses.append(block.bn1(block.conv1(x)))
            responses.append(block.bn2(block.conv2(F.relu(responses[-1]))))
            x = F.relu(responses[-1] + block.identity(x) if model.residual else responses[-1])
    return model.fc(x.mean((2, 3))), responses


@pytest.mark.parametrize("family", ["plain", "resnet"])
def test_layer_responses_against_a_pass_written_out(family):
    model, (x, _) = small(family), images(7)
    measured = probes.layer_responses(model, [x[:3], (x[3:5], None), x[5:]], "some net")
    model.eval()
    with torch.no_grad():
        expected = [np.std(r.double().numpy()) for r in written_out(model, x)[1]]
    assert measured["layer"].tolist() == list(range(1, 14)) and set(measured["model"]) == {"some net"}
    np.testing.assert_allclose(measured["std"], expected, rtol=1e-5)


def test_layer_responses_leave_the_model_alone():
    model, (x, _) = small("resnet"), images()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert model.training
    probes.layer_responses(model, [x])
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_layer_responses_refuse_what_has_none():
    with pytest.raises(UserError, match="allowed are plain and residual"):
        probes.layer_responses(torch.nn.Linear(3, 3), [torch.zeros(1, 3)])
    with pytest.raises(UserError, match="at least one batch"):
        probes.layer_responses(small(), [])


def test_moments_keep_a_small_spread_on_a_large_mean():
    """The textbook mean of squares minus square of means loses it all."""
    values = 1e8 + np.random.default_rng(0).normal(size=1000)
    moments = probes.Moments()
    for part in np.split(values, [1, 10, 700]):
        moments.add(torch.from_numpy(part))
    assert moments.std == pytest.approx(values.std(), rel=1e-6) and moments.count == 1000


@pytest.mark.parametrize("family", ["plain", "resnet"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_gradient_norms_against_a_pass_written_out(family, batch_norm):
    model, (x, y) = small(family, batch_norm=batch_norm), images()
    measured = probes.gradient_norms(model, x, y).set_index(["kind", "layer"])["norm"]
    model.train()
    logits, responses = written_out(model, x)
    for r in responses:
        r.retain_grad()
    F.cross_entropy(logits, y).backward()
    convs = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == len(responses) == 13
    for layer, (conv, r) in enumerate(zip(convs, responses, strict=True), start=1):
        assert measured["activation", layer] == pytest.approx(r.detach().square().mean().sqrt().item(), rel=1e-4)
        assert measured["gradient", layer] == pytest.approx(conv.weight.grad.norm().item(), rel=1e-3)
        assert measured["backward", layer] == pytest.approx(r.grad.norm().item(), rel=1e-3)


def test_gradient_norm_is_a_slope():
    """Along its own direction the loss rises by the norm of the gradient (central difference, float64)."""
    model, (x, y) = small("plain", 8, batch_norm=False).double(), images()
    x = x.double()
    norm = probes.gradient_norms(model, x, y).query("kind == 'gradient' and layer == 4")["norm"].item()
    weight = model.layer2[0].conv1.weight
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), weight)
    losses = []
    with torch.no_grad():
        for side in (1, -1):
            weight += side * 1e-5 * gradient / gradient.norm()
            losses.append(F.cross_entropy(model(x), y).item())
            weight -= side * 1e-5 * gradient / gradient.norm()
    assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(norm, rel=1e-5)


def test_gradient_norms_leave_the_model_alone():
    model, (x, y) = small("resnet").eval(), images()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    probes.gradient_norms(model, x, y)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_zero_and_overflow_stay_visible():
    model, (x, y) = small("plain", 8, batch_norm=False), images()
    with torch.no_grad():
        model.layer2[0].conv1.weight.zero_()
    norms = probes.gradient_norms(model, x, y).set_index(["kind", "layer"])["norm"]
    assert norms["activation", 4] == 0 and norms["gradient", 1] == 0 and norms["activation", 3] > 0
    with torch.no_grad():
        model.layer2[0].conv1.weight.fill_(1e30)
        model.layer2[0].conv2.weight.fill_(1e30)
    norms = probes.gradient_norms(model, x, y).set_index(["kind", "layer"])["norm"]
    assert not np.isfinite(norms["activation", 5])
    assert probes._norm(torch.full((4,), 1e-30)) == pytest.approx(2e-30)  # its square is no float32
    assert probes._norm(torch.full((4,), 1e30)) == pytest.approx(2e30)


def test_pre_activation_responses_are_those_of_the_convolutions():
    model, (x, _) = small("resnet", 8, preactivation=True), images()
    seen = probes.layer_responses(model, [x])
    with torch.no_grad():
        assert seen["std"][0] == pytest.approx(model.conv1(x).double().std(correction=0).item(), rel=1e-5)
    assert len(seen) == 7


def test_norms_along_training_are_those_of_the_network_trained_so_far():
    """The same steps, taken by hand with plain SGD."""
    recipe = cifar_recipe("plain8", SMOKE, "synthetic", options="init=xavier")
    source, device = data.load("synthetic"), torch.device("cpu")
    measured = probes.norms_along_training(recipe, source, device, [0, 2])
    batches = data.batches_for(recipe, source, device)
    model = make_model(recipe, 10, None).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    x, y = batches.batch(0)
    for iteration in (0, 2):
        part = measured[measured["iteration"] == iteration].drop(columns="iteration").reset_index(drop=True)
        expected = probes.gradient_norms(model, x, y)
        pd.testing.assert_frame_equal(part[expected.columns], expected, rtol=2e-3)
        for i in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(batches.batch(i)[0]), batches.batch(i)[1]).backward()
            optimizer.step()


def test_a_net_that_diverges_says_so():
    recipe = cifar_recipe("plain8", SMOKE, "synthetic", options="batch_norm=false", lr=100.0)
    measured = probes.norms_along_training(recipe, data.load("synthetic"), torch.device("cpu"), [0, 4, 6])
    assert np.isfinite(measured[measured["iteration"] == 0]["norm"]).all()
    assert measured[measured["iteration"] == 6]["norm"].isna().all()


@pytest.fixture(scope="module")
def study():
    preset = dataclasses.replace(SMOKE, gradient_depths=(8,))
    return probes.gradient_study(preset, "synthetic", seeds=2)


def test_gradient_study_covers_every_combination(study):
    assert list(study.columns) == probes.COLUMNS
    (evidence,) = study["evidence"].unique()
    assert evidence.startswith("preset smoke · data synthetic (")
    start = study[(study["iteration"] == 0) & (study["kind"] == "gradient") & (study["layer"] == 1)]
    assert len(start) == 2 * 3 * 2 * 2 and start["synthetic"].all()
    assert start.groupby("seed")["norm"].nunique().tolist() == [12, 12] and start["norm"].nunique() == 24
    followed = study[study["iteration"] > 0]
    assert set(zip(followed["init"], followed["batch_norm"], strict=True)) == set(
        itertools.product(gradient_plan.INITIALISATIONS, (True, False))
    )
    # A network without batch norm and a naive Gaussian loses the signal on its way; He's initialisation keeps it.
    summary = gradient_summary.signal_summary(study).query("iteration == 0 and family == 'plain' and not batch_norm")
    kept = summary.set_index("init")["activation, last / first"]
    assert len(kept) == 6  # a row per seed
    assert (kept["gaussian"] < 1e-2).all() and kept["he"].between(0.1, 10).all()


def test_what_each_cures_is_of_the_deepest_nets(study):
    deeper = pd.concat([study, study.assign(depth=20, model=study["family"] + "20", norm=2 * study["norm"])])
    summary = gradient_summary.signal_summary(deeper)
    cures = gradient_summary.cures(summary)
    assert len(cures) == 12 and set(cures["family"]) == {"plain", "resnet"}
    naive = cures.set_index(["family", "batch norm", "initialisation"]).loc[("plain", "no", "gaussian")]
    mine = summary.query("depth == 20 and family == 'plain' and not batch_norm and init == 'gaussian'")
    for iteration, words in ((0, "at the start"), (2, "at iteration 2")):
        part = mine[mine["iteration"] == iteration]
        assert naive[f"gradients {words}"] == gradient_summary.worst_verdict(part["gradients"])
        for ratio in ("activation, last / first", "backward, first / last"):
            assert naive[f"{ratio} {words}"] == f"{part[ratio].median():.2g}"


def test_what_a_notebook_draws_is_what_it_has_saved(study, tmp_path):
    """Else `reslib verify`, which draws from the file, would find another figure."""
    folder = open_folder("smoke", str(tmp_path))
    given = folder.save_measurement(study, "gradients")
    pd.testing.assert_frame_equal(given, load_measurement(folder.folder, "gradients"), check_exact=True)
    assert not given["norm"].equals(study["norm"])  # rounded
    assert folder.save_measurement(study.iloc[:0], "none").empty


def test_a_study_that_is_known_is_not_measured_again(study, tmp_path, monkeypatch):
    save_measurement(study, tmp_path, "gradients")
    stored = load_measurement(tmp_path, "gradients")
    preset, asked = dataclasses.replace(SMOKE, gradient_depths=(8,)), {"seeds": 2, "known": stored}
    monkeypatch.setattr(probes, "norms_along_training", None)
    again = probes.gradient_study(preset, "synthetic", **asked)
    pd.testing.assert_frame_equal(again, study, rtol=1e-5)
    longer = dataclasses.replace(preset, gradient_depths=(8, 14))
    for other, changes in ((longer, {}), (preset, {"seeds": 3}), (preset, {"known": stored.drop(columns="key")})):
        with pytest.raises(TypeError):
            probes.gradient_study(other, "synthetic", **{**asked, **changes})


def test_the_claim_reads_the_study(study):
    runs = load_runs("/nonexistent")
    board = claims.scoreboard(runs, None, None, study)
    row = board[board["claim"].str.contains("Gradients of plain nets")].iloc[0]
    smallest = study.query("kind == 'gradient' and family == 'plain' and batch_norm and init == 'he'")["norm"].min()
    assert row["verdict"] == claims.HOLDS and smallest > gradient_summary.FROZEN
    assert f"plain-8 smallest {smallest:.2g}" in row["evidence"] and "iterations 0 to 2, n = 2" in row["evidence"]
    assert "SYNTHETIC DATA" in row["evidence"]


def test_the_worst_verdict_of_several_seeds():
    assert gradient_summary.worst_verdict(pd.Series(["healthy", "healthy"])) == "healthy"
    assert gradient_summary.worst_verdict(pd.Series(["healthy", "vanish", "vanish"])) == "vanish (2 of 3)"
    assert gradient_summary.worst_verdict(pd.Series(["not finite", "explode"])) == "not finite (1 of 2)"


def test_verdicts():
    def verdict(*norms):
        return gradient_summary._verdict(pd.Series(norms, dtype=float))

    assert verdict(0.1, 3) == "healthy" and verdict(0.1, 0) == "vanish" and verdict(1e-9, 1) == "vanish"
    assert verdict(0.1, 1e4) == "explode" and verdict(0.1, np.inf) == verdict(np.nan, 1) == "not finite"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for model in ("plain8", "resnet8"):
        train(cifar_recipe(model, SMOKE, "synthetic"), folder, execution=Execution(device="cpu"), say=lambda t: None)
    return folder


def test_responses_of_runs_and_of_a_clone_without_weights(trained, tmp_path):
    runs = load_runs(trained)
    frame, missing = probes.responses_of_runs(runs)
    assert not missing and frame.groupby("run")["layer"].max().tolist() == [7, 7]
    assert frame["model"].unique().tolist() == ["plain8", "resnet8"] and frame["synthetic"].all()
    # After six steps γ is still near 1, so that exact statistics make every response's deviation nearly 1; the moving
    # averages of six steps do not.
    assert frame["std"].between(0.8, 1.3).all()
    with pytest.MonkeyPatch.context() as patch:
        parts, samples, kind = [], [], data.MemoryBatches
        whole, sample = kind.eval_batches, kind.sample
        patch.setattr(
            kind, "eval_batches", lambda self, part, *a, **k: parts.append(part) or whole(self, part, *a, **k)
        )
        patch.setattr(kind, "sample", lambda self, images, size: samples.append(images) or sample(self, images, size))
        probes.responses_of_runs(runs)
        assert set(parts) == {"test"} and set(samples) == {256}  # all that smoke has
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "_responses", None)  # what is known of these weights is not measured again
        again, missing = probes.responses_of_runs(runs, known=frame)
        assert not missing
        pd.testing.assert_frame_equal(again, frame)
        for changed in (frame.assign(key="0123456789abcdef"), frame.drop(columns="key")):
            with pytest.raises(TypeError):
                probes.responses_of_runs(runs, known=changed)
    (weights,) = trained.glob("plain8*/weights.safetensors")
    weights.rename(tmp_path / "weights")
    try:
        without, missing = probes.responses_of_runs(runs)
        assert missing == [weights.parent.name] and set(without["model"]) == {"resnet8"}
        stored, missing = probes.responses_of_runs(runs, known=frame)
        assert not missing
        pd.testing.assert_frame_equal(stored, frame)
    finally:
        (tmp_path / "weights").rename(weights)
    nothing, missing = probes.responses_of_runs(runs.iloc[:0])
    assert nothing.empty and not missing
