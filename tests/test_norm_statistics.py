"""Moving against exact batch-norm statistics: counts against passes written out, and what of a measurement is kept."""

import numpy as np
import pandas as pd
import pytest
import torch
from training import QUIET, silent, tiny

from reslib import data, norm_statistics
from reslib.exact_rows import MEASURED
from reslib.measure import batch_norms
from reslib.models import build_model
from reslib.networks import load_network
from reslib.norm_statistics import CROPS, KINDS, WHOLE, measure, measure_runs
from reslib.records import load_runs
from reslib.runs import Run
from reslib.train import train

CPU = torch.device("cpu")


def batches_of(recipe):
    return data.batches_for(recipe, data.load("synthetic"), CPU)


def wrong(model, images, batches):
    """Of the test images, with the averages over one batch of training images in place of the moving ones."""
    found = []
    with torch.no_grad():
        if images is not None:
            look = [n.register_forward_pre_hook(lambda norm, x: found.append((norm, x[0]))) for n in batch_norms(model)]
            model.train()(images)
            for norm, x in found:
                norm.running_mean.copy_(x.mean((0, 2, 3)))
                norm.running_var.copy_(x.var((0, 2, 3)))
            for hook in look:
                hook.remove()
        model.eval()
        return torch.cat([model(x).argmax(1) != y for x, y in batches.eval_batches("test")])


def test_counts_against_passes_written_out(tmp_path):
    """One batch of all training images, so that its averages are the exact ones."""
    recipe = tiny(iterations=30, test_size=300, batch_size=50, train_size=50)
    train(recipe, tmp_path, execution=QUIET, say=silent)
    path, batches = Run(tmp_path, recipe).path, batches_of(recipe)
    model = load_network(path)[0]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rows = measure(model, batches, recipe.iterations, CPU).set_index("kind")
    assert list(rows.index) == list(KINDS) and (rows["images"] == 300).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    moving = wrong(load_network(path)[0], None, batches)
    whole = batches.whole(batches.sets["train"].images)
    for kind, images in ((CROPS, batches.batch(recipe.iterations)[0]), (WHOLE, whole)):
        exact, row = wrong(load_network(path)[0], images, batches), rows.loc[kind]
        counts = moving.sum(), exact.sum(), (moving & ~exact).sum(), (exact & ~moving).sum()
        assert row[["moving_wrong", "exact_wrong", "mended", "spoiled"]].tolist() == [int(n) for n in counts]
    assert rows["exact_wrong"].nunique() == 2  # padding makes a difference here


def test_measured_once_and_kept_without_weights(tmp_path, monkeypatch):
    recipes = [tiny(iterations=4, test_size=40, seed=s) for s in (0, 1)]
    for recipe in recipes:
        train(recipe, tmp_path, execution=QUIET, say=silent)
    frame, missing = measure_runs(load_runs(tmp_path))
    assert not missing and list(frame.columns) == MEASURED and len(frame) == 4
    assert frame["seed"].tolist() == [0, 0, 1, 1] and frame["key"].nunique() == 2
    monkeypatch.setattr(norm_statistics, "measure", lambda *a: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(measure_runs(load_runs(tmp_path), known=frame)[0], frame)
    for recipe in recipes:
        Run(tmp_path, recipe).weights_file.unlink()
    kept, missing = measure_runs(load_runs(tmp_path), known=frame.iloc[:2])
    assert len(kept) == 2 and missing == [recipes[1].run_name]
    empty, missing = measure_runs(load_runs(tmp_path).iloc[:0])
    assert empty.empty and list(empty.columns) == MEASURED and not missing


def test_a_net_without_batch_norm_is_left_out(tmp_path):
    recipe = tiny(model="nin", iterations=2, test_size=20)
    train(recipe, tmp_path, execution=QUIET, say=silent)
    frame, missing = measure_runs(load_runs(tmp_path))
    assert frame.empty and not missing and not np.any(batch_norms(build_model("nin")))
