"""Tables 2 to 5 against crops cut by hand, and scores averaged by hand."""

import threading

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fake_frames import fake_runs
from imagenet_sets import in_memory, tiny
from scipy.stats import binomtest
from table_rows import OWN, TESTED, error, make_source, row

from reslib import evaluate, imagenet_scale, imagenet_tables, paper
from reslib.errors import UserError
from reslib.files import alone, sha256, write_json
from reslib.imagenet_tables import CENTRE, INTERVAL, TOP1, TOP5, caption, notes, tables
from reslib.models import build_model
from reslib.presets import preset_of
from reslib.recipe import Recipe
from reslib.records import load_runs
from reslib.runs import Run, write_weights
from reslib.studies import imagenet_rows


def make_run(runs_dir, model, seed=0, dataset="imagenette", **changes):
    """A finished run whose network has random weights: (network, run folder)."""
    small = {"iterations": 4, "crop_size": 32, "scale_range": (34, 60), "options": "width=8"}
    recipe = Recipe(model, dataset, seed, **small | changes)
    run = Run(runs_dir, recipe)
    torch.manual_seed(seed + sum(map(ord, model)))
    network = build_model(model, 10, recipe.shortcut, width=8).eval()
    torch.nn.init.normal_(network.fc.weight)
    run.begin()
    write_weights(run.weights_file, network)
    summary = {
        "status": "finished", "recipe_hash": recipe.digest, "preset": "smoke", "test_error": 0.75, "classes": 10,
        "synthetic": False, "data_fingerprint": "00112233aabbccdd", "weights_sha256": sha256(run.weights_file),
    }  # fmt: skip
    write_json(run.summary_file, summary)
    return network, run.path


def views_by_hand(source, shorter):
    """Every test image at a shorter side, the training set's mean subtracted: (1, 3, side, side) each."""
    mean = source.train.images.double().mean((0, 1, 2)).float() / 255
    for image in source.test.images:
        x = image.permute(2, 0, 1)[None].float() / 255 - mean.view(1, 3, 1, 1)
        yield F.interpolate(x, (shorter, shorter), mode="bilinear", antialias=True)


@torch.no_grad()
def ten_crops_by_hand(network, source):
    for x in views_by_hand(source, 37):
        scores = []
        for top, left in ((0, 0), (0, 5), (5, 0), (5, 5), (2, 2)):
            crop = x[:, :, top : top + 32, left : left + 32]
            scores += [network(crop).softmax(1)[0], network(torch.flip(crop, [3])).softmax(1)[0]]
        yield sum(scores) / 10


@torch.no_grad()
def five_scales_by_hand(network, source):
    """At crops of 32 the map before pooling is 1x1: the sliding window is each position by itself."""
    sizes, sums = (32, 37, 55, 69, 91), [0] * TESTED
    for size in sizes:
        for i, x in enumerate(views_by_hand(source, size)):
            for view in (x, torch.flip(x, [3])):
                positions = network.features(view)[0].flatten(1).T  # (h * w, C)
                sums[i] = sums[i] + network.fc(positions).softmax(1).mean(0) / (2 * len(sizes))
    return sums


def test_without_runs_every_number_is_the_papers_and_in_its_column():
    result = tables(fake_runs({"resnet20": (3, 8.8)}), "nowhere/runs")
    quoted = zip(result.values(), (paper.TABLE2, paper.TABLE3, paper.TABLE4, paper.TABLE5), strict=True)
    for table, rows in quoted:
        assert list(table.model) == [r.label for r in rows] and set(table.source) == {"quoted"}
        assert (table[[*OWN, "note"]] == "").all(axis=None)
    assert "top-5 (paper, %)" not in result["table2"] and "top-1 (paper, %)" not in result["table5"]
    assert row(result["table3"], "GoogLeNet")["top-1 (paper, %)"] == ""
    assert row(result["table4"], "ResNet-152")["top-5 (paper, %)"] == "4.49"
    assert "the paper's numbers alone" in caption("table2", result["table2"], pd.DataFrame())
    assert not any("SYNTHETIC" in line for line in notes(result))


def test_ten_crop_rows_by_hand_and_again_without_weights(tmp_path):
    source = make_source()
    networks = {m: make_run(tmp_path / "runs", m)[0] for m in ("plain18", "resnet18")}
    second, folder = make_run(tmp_path / "runs", "resnet18", seed=1)
    runs = load_runs(tmp_path / "runs")
    result = tables(runs, tmp_path / "runs", source)
    cells = row(result["table2"], "plain-18")
    scores = list(ten_crops_by_hand(networks["plain18"], source))
    labels = source.test.labels
    assert (cells[TOP1], cells[TOP5]) == tuple(f"{error(scores, labels, k):.2f}" for k in (1, 5))
    assert cells["source"] == "trained here" and cells["n"] == "1"
    assert cells["top-1 (paper, %)"] == ""  # of other data: nothing to compare
    assert row(result["table2"], "plain-34")["top-1 (paper, %)"] == "28.54"
    assert cells[CENTRE] == "75.00" and cells["images"] == "6" and cells["preset"] == "smoke"
    assert cells["data set"] == "imagenette (10 classes)" and "Wilson" in cells[INTERVAL]
    both = [error(list(ten_crops_by_hand(n, source)), labels, 1) for n in (networks["resnet18"], second)]
    cells = row(result["table2"], "ResNet-18")
    assert cells["n"] == "2" and cells[TOP1] == f"{sum(both) / 2:.2f} ± {abs(both[0] - both[1]) / 2**0.5:.2f}"
    assert row(result["table2"], "ResNet-34")["source"] == "quoted"
    assert any("compare with each other" in line for line in notes(result))
    for weights in (tmp_path / "runs").glob("*/weights.safetensors"):
        weights.unlink()
    again = tables(runs, tmp_path / "runs", None)
    for name, table in result.items():
        pd.testing.assert_frame_equal(again[name], table)


def test_an_ensemble_is_the_average_of_the_scores(tmp_path):
    nets = [make_run(tmp_path / "runs", "resnet18", seed)[0] for seed in (0, 1)]
    source = make_source()
    each = [five_scales_by_hand(net, source) for net in nets]
    mean = [(a + b) / 2 for a, b in zip(*each, strict=True)]
    labels = torch.stack([(s.argmax() if i % 3 else s.argmin()) for i, s in enumerate(mean)])  # a third wrong
    source = make_source(labels)
    runs = load_runs(tmp_path / "runs")
    result = tables(runs, tmp_path / "runs", source, ensembles={"by name": list(runs.run[:1])})
    cells = row(result["table5"], "all residual nets trained here (2)")
    assert cells[TOP1] == "33.33" and cells["models"] == "2" and "seed 1" in cells["note"]
    alone = [error(scores, labels, 1) for scores in each]
    single = row(result["table4"], "ResNet-18 A")
    assert single[TOP1].split(" ± ")[0] == f"{sum(alone) / 2:.2f}" != "33.33"
    assert row(result["table5"], "by name")[TOP1] == f"{alone[0]:.2f}"
    assert row(result["table5"], "ResNet (six models)")["source"] == "quoted"
    with pytest.raises(UserError, match="member of ensemble 'x' 'nobody' is unknown"):
        tables(runs, tmp_path / "runs", source, ensembles={"x": ["nobody"]})


def test_what_cannot_be_measured_says_why(tmp_path):
    path = make_run(tmp_path / "runs", "plain18")[1]
    runs = load_runs(tmp_path / "runs")
    other = make_source()
    other.fingerprint = "ffff"
    for source, reason in ((None, "no data to measure on"), (other, "trained on other data")):
        cells = row(tables(runs, tmp_path / "runs", source)["table2"], "plain-18")
        assert cells["source"] == "trained here" and cells[TOP1] == "" and reason in cells["note"]
        assert cells[CENTRE] == "75.00"
    write_weights(path / "weights.safetensors", build_model("plain18"))
    assert (
        "not those of its record" in row(tables(runs, tmp_path / "runs", make_source())["table2"], "plain-18")["note"]
    )
    (path / "weights.safetensors").unlink()
    assert "weights are not here" in row(tables(runs, tmp_path / "runs", make_source())["table2"], "plain-18")["note"]
    unfinished = runs.assign(status="diverged")
    assert set(tables(unfinished, tmp_path / "runs")["table2"].source) == {"quoted"}


def test_recipes_are_kept_apart(tmp_path):
    for changes in ({}, {"options": "width=8"}):
        runs = fake_runs({"resnet18": (30, 28)}, dataset="imagenet", **changes)
        expected = "ResNet-18 [options=width=8]" if changes else "ResNet-18"
        table = tables(runs, tmp_path / "runs")["table2"]
        assert table.set_index("model").source[expected] == "trained here"


def test_the_papers_six(tmp_path):
    """From stored measurements: the row is filled in by exactly the six, and by nothing less."""
    recipes = imagenet_rows(preset_of("paper"), "imagenet", seeds=1)
    assert len({r.digest for r in recipes}) == 10
    six = [
        fake_runs({m: (20, 22)}, (seed,), dataset="imagenet", shortcut=o, **imagenet_scale.divided(1))
        for m, o, seed in imagenet_tables.PAPER_SIX
    ]
    runs = pd.concat(six, ignore_index=True)
    runs["weights_sha256"] = [f"{i:064x}" for i in range(6)]
    source = make_source(name="imagenet", classes=[f"n{i:08}" for i in range(1000)])
    source.fingerprint = "00ff"
    scores = imagenet_tables.Scores(tmp_path, source, 0, torch.device("cpu"))
    views = evaluate.Views("", torch.eye(1000)[torch.arange(4)], torch.tensor([0, 1, 2, 9]), torch.arange(4))
    nets = scores.trained(runs, tmp_path / "runs")
    for net in nets:
        scores._keep((net.weights, "00ff", "multi-scale", "0"), views, net, net.name, "")
    scores.views = {net.weights: views for net in nets}
    scores.of_ensemble(nets)
    table = tables(runs, tmp_path / "runs")["table5"]
    cells = row(table, "ResNet (six models)")
    assert (cells["source"], cells["models"], cells[TOP1]) == ("trained here", "6", "25.00")
    assert cells["top-5 (paper, %)"] == "3.57" and len(table) == len(paper.TABLE5)
    other = tables(runs.assign(iterations=1000), tmp_path / "runs")["table5"]  # the same, but not at the paper's length
    cells = row(other, "ResNet (six models)")
    assert (cells[TOP1], cells["top-5 (paper, %)"]) == ("25.00", "")
    fewer = tables(runs[:5], tmp_path / "runs")["table5"]
    assert row(fewer, "ResNet (six models)")["source"] == "quoted"
    assert fewer.iloc[-1]["source"] == "not evaluated" and fewer.iloc[-1][TOP1] == ""


def test_networks_of_other_pixels_are_not_tested_on_the_same(tmp_path):
    source = in_memory()
    scores = imagenet_tables.Scores(tmp_path, source, 2, torch.device("cpu"))
    recipe = tiny()
    assert scores._batches(recipe) is scores._batches(recipe.replace(seed=7))
    for change in ({"preprocessing": "channel-std"}, {"val_size": 4}, {"train_size": 5}, {"test_size": 3}):
        assert scores._batches(recipe) is not scores._batches(recipe.replace(**change)), change


def test_two_commands_at_once_keep_each_others_measurements(tmp_path):
    """The file is read again and written while no other process may: flock of two open files, as of two processes."""
    runs = pd.concat([fake_runs({m: (20, 22)}, dataset="imagenet") for m in ("resnet18", "resnet34")])
    runs["weights_sha256"] = [f"{i:064x}" for i in range(2)]
    source = make_source(name="imagenet")
    views = evaluate.Views("", torch.eye(10)[torch.arange(4)], torch.tensor([0, 1, 2, 9]), torch.arange(4))
    scores = imagenet_tables.Scores(tmp_path, source, 0, torch.device("cpu"))
    nets = scores.trained(runs, tmp_path / "runs")

    def keep(scores, net):
        scores._keep((net.weights, "00ff", "multi-scale", "0"), views, net, net.name, "")

    other = imagenet_tables.Scores(tmp_path, source, 0, torch.device("cpu"))
    second = threading.Thread(target=keep, args=(other, nets[1]))
    with alone(tmp_path / "measurements" / "lock"):
        second.start()
        second.join(0.3)
        assert second.is_alive() and not (tmp_path / "measurements" / "imagenet_scores.csv").exists()
    second.join(60)
    keep(scores, nets[0])  # it has not seen the other's row until now
    assert len(scores.known) == 2 == len(imagenet_tables.Scores(tmp_path, source, 0, torch.device("cpu")).known)


@pytest.mark.parametrize(("wrong", "images"), [(14, 16), (0, 4), (64, 64)])
def test_the_interval_of_one_network(wrong, images):
    expected = binomtest(wrong, images).proportion_ci(method="wilson")
    assert imagenet_tables.wilson(wrong / images, images) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_damaged_measurement_is_named(tmp_path):
    file = tmp_path / "measurements" / "imagenet_scores.csv"
    file.parent.mkdir()
    for text in ("", "a,b\n1,2\n"):
        file.write_text(text)
        with pytest.raises(UserError, match="imagenet_scores.csv is damaged"):
            tables(pd.DataFrame(), tmp_path / "runs")
