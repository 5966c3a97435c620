"""Tables 2 to 5 against crops cut by hand, torchvision's own networks, and scores averaged by hand."""

import dataclasses
import os
import pickle
import urllib.error

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fake_frames import fake_runs
from safetensors.torch import save_file
from scipy.stats import binomtest
from torchvision.models import get_model_weights, resnet18, resnet50

from reslib import evaluate, given_weights, imagenet_tables, paper
from reslib.data import DataSource, ImageSet
from reslib.data.places import class_name
from reslib.errors import UserError
from reslib.files import sha256, write_json
from reslib.imagenet_tables import CENTRE, INTERVAL, TOP1, TOP5, caption, notes, tables
from reslib.models import build_model
from reslib.presets import preset_of
from reslib.recipe import Recipe
from reslib.records import load_runs
from reslib.runs import Run, write_weights
from reslib.studies import imagenet_rows

OWN = [TOP1, TOP5, INTERVAL, CENTRE, "images", "data set", "preset"]
WNIDS = sorted(given_weights.IMAGENETTE)
TESTED = 6


def make_source(labels=None, name="imagenette", classes=WNIDS):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(30 + TESTED, 3, 6, 6, generator=generator)
    images = (F.interpolate(coarse, 44, mode="bilinear") * 255).byte().permute(0, 2, 3, 1).contiguous()
    labels = torch.arange(TESTED) % 10 if labels is None else labels
    train, test = ImageSet(images[:30], torch.arange(30) % 10), ImageSet(images[30:], labels)
    return DataSource(name, train, test, list(classes), "00112233aabbccdd", "made here", name.startswith("synthetic"))


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


def error(scores, labels, k):
    wrong = [int(y) not in s.argsort(descending=True)[:k].tolist() for s, y in zip(scores, labels, strict=True)]
    return 100 * sum(wrong) / len(wrong)


def row(table, model, source=None):
    rows = [r | {"model": r["model"].removesuffix(" [options=width=8]")} for r in table.to_dict("records")]
    (found,) = [r for r in rows if r["model"] == model and source in (None, r["source"])]
    return found


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
    assert cells["source"] == "trained here" and cells["top-1 (paper, %)"] == "27.94" and cells["n"] == "1"
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


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_given_weights_are_mapped_and_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "SIZES", (224,))
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(0)
    network = resnet18().eval()
    torch.nn.init.normal_(network.fc.weight)
    torch.save(network.state_dict(), folder / "resnet18-aa.pth")
    with torch.no_grad():
        network.fc.weight.neg_()
    save_file(network.state_dict(), folder / "resnet18.safetensors")
    marker = tmp_path / "executed"
    (folder / "resnet34.pth").write_bytes(pickle.dumps({"fc.weight": Evil(str(marker))}, protocol=2))
    torch.save({"fc.weight": Evil(str(marker))}, folder / "resnet50.pth")
    torch.save({"fc.weight": torch.zeros(10, 3)}, folder / "resnet101.pth")
    torch.save({"fc.weight": torch.zeros(1000, 3)}, folder / "plain18.pth")
    (folder / "vgg16.pth").write_bytes(b"of no interest")
    source = make_source()
    result = tables(pd.DataFrame(), tmp_path / "runs", source, folder, limit=1)
    assert not marker.exists()
    for table, model, reason in (
        ("table3", "ResNet-34", "resnet34.pth refused: not a file of tensors alone"),
        ("table3", "ResNet-50", "resnet50.pth refused"),
        ("table4", "ResNet-101", "fc.weight is (10, 3): a classifier of ImageNet's 1000 classes is needed"),
        ("table2", "plain-18", "plain18.pth does not fit plain18"),
    ):
        cells = row(result[table], model, "not evaluated")
        assert reason in cells["note"] and all(cells[c] == "" for c in OWN)
    evaluated = result["table2"][result["table2"].source == "evaluated"]
    assert list(evaluated.model) == ["ResNet-18 B"] * 2 and set(evaluated.images) == {"1"}
    assert set(evaluated["data set"]) == {"imagenette (10 of 1000 classes)"}
    # By hand, with torchvision's network (the second file): its own normalisation, ten of its logits
    index, chosen = list(given_weights.IMAGENETTE.values()), imagenet_tables.Scores(tmp_path, source, 1, "cpu")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    model, batches = chosen._load_given(folder / "resnet18.safetensors")
    views = evaluate.evaluate_views(model, batches, "centre")
    images = source.test.images[views.index].permute(0, 3, 1, 2) / 255
    x = (F.interpolate(images, 256, mode="bilinear", antialias=True)[:, :, 16:240, 16:240] - mean) / std
    with torch.no_grad():
        scores = network(x)[:, index].softmax(1)
    torch.testing.assert_close(views.scores, scores, rtol=1e-3, atol=1e-4)
    assert evaluated[CENTRE].iloc[1] == f"{error(scores, source.test.labels[views.index], 1):.2f}"
    assert row(result["table5"], "all residual nets evaluated (2)")["source"] == "evaluated"
    assert "SYNTHETIC" not in caption("table2", result["table2"], pd.DataFrame())
    assert any("only its classes' logits compete" in line for line in notes(result))
    again = tables(pd.DataFrame(), tmp_path / "runs", None, limit=1)  # no weights, no data: what was measured
    assert again["table2"].query("source == 'evaluated'")[TOP1].tolist() == evaluated[TOP1].tolist()


def test_given_weights_are_not_tested_on_what_they_were_trained_on(tmp_path):
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    source = dataclasses.replace(make_source(), trained_on=(0, 2, 5))
    scores = imagenet_tables.Scores(tmp_path, source, 0, "cpu")
    (net,) = scores.given(tmp_path)
    _, batches = net.load()
    assert batches.sets["test"].tolist() == [1, 3, 4]
    scores.limit = 2
    assert len(scores._load_given(tmp_path / "resnet18.pth")[1].sets["test"]) == 2
    everything = dataclasses.replace(source, trained_on=tuple(range(6)))
    cells = row(tables(pd.DataFrame(), tmp_path / "runs", everything, tmp_path)["table2"], "ResNet-18 B")
    assert cells["source"] == "not evaluated" and "are training images of ImageNet" in cells["note"]


def test_synthetic_classes_are_not_imagenets(tmp_path):
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    source = make_source(name="synthetic-imagenet", classes=[str(i) for i in range(10)])
    cells = row(tables(pd.DataFrame(), tmp_path / "runs", source, tmp_path)["table2"], "ResNet-18 B")
    assert cells["source"] == "not evaluated" and "synthetic" in cells["note"]


def test_places_of_classes():
    categories = get_model_weights("resnet18").IMAGENET1K_V1.meta["categories"]
    names = "tench, English springer, cassette player, chain saw, church, French horn, garbage truck, gas pump"
    index = given_weights.imagenet_index(WNIDS)
    names = [*names.split(", "), "golf ball", "parachute"]
    assert [categories[i].replace("chainsaw", "chain saw") for i in index] == names
    assert list(map(class_name, WNIDS)) == names and class_name("n04") == "n04"
    assert given_weights.imagenet_index(WNIDS[::-1]) == index[::-1]
    assert given_weights.imagenet_index(sorted(map(str, range(1000))))[:3] == [0, 1, 10]
    assert given_weights.imagenet_index(categories) == list(range(1000))
    for classes in (["n99999999", *WNIDS[1:]], sorted(categories), ["cat", "dog"]):
        with pytest.raises(UserError, match="has no known place among ImageNet's classes"):
            given_weights.imagenet_index(classes)


@pytest.mark.parametrize("option", "ABC")
@pytest.mark.parametrize("model", ["resnet34", "resnet50"])
def test_the_shortcut_is_read_off_the_layers(model, option):
    with torch.device("meta"):
        assert given_weights.shortcut_of(build_model(model, 1000, option).state_dict()) == option


def test_bottlenecks_are_torchvisions(tmp_path):
    torch.manual_seed(0)
    network = resnet50().eval()
    torch.save(network.state_dict(), tmp_path / "resnet50-0676ba61.pth")
    loaded, model, option = given_weights.load_given(tmp_path / "resnet50-0676ba61.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x), rtol=1e-4, atol=1e-5)
    assert (model, option) == ("resnet50", "B")


def test_which_files_are_weights(tmp_path, monkeypatch):
    right = ("plain34.safetensors", "resnet18.pt", "resnet34-b627a593.pth")
    for name in (*right, "resnet1801.pth", "wide_resnet50_2.pth"):
        (tmp_path / name).touch()
    found = [f.name for f in given_weights.find_weights(tmp_path)]
    assert found == list(right)
    (tmp_path / "empty").mkdir()
    for bad, reason in (("none", "neither a file nor a folder"), ("empty", "no network's weights"),
                        ("wide_resnet50_2.pth", "not named after a network")):  # fmt: skip
        with pytest.raises(UserError, match=f"{reason}.*allowed are files named like"):
            given_weights.find_weights(tmp_path / bad)

    def offline(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match="cannot be downloaded: .*no network"):
        given_weights.find_weights("torchvision")


def test_the_papers_six(tmp_path):
    """From stored measurements: the row is filled in by exactly the six, and by nothing less."""
    recipes = imagenet_rows(preset_of("paper"), "imagenet", seeds=1)
    assert len({r.digest for r in recipes}) == 10
    six = [
        fake_runs({m: (20, 22)}, (seed,), dataset="imagenet", shortcut=o) for m, o, seed in imagenet_tables.PAPER_SIX
    ]
    runs = pd.concat(six, ignore_index=True)
    runs["weights_sha256"] = [f"{i:064x}" for i in range(6)]
    source = make_source(name="imagenet")
    source.fingerprint = "00ff"
    scores = imagenet_tables.Scores(tmp_path, source, 0, torch.device("cpu"))
    views = evaluate.Views("", torch.eye(10)[torch.arange(4)], torch.tensor([0, 1, 2, 9]), torch.arange(4))
    nets = scores.trained(runs, tmp_path / "runs")
    for net in nets:
        scores._keep((net.weights, "00ff", "multi-scale", "0"), views, net, net.name, "")
    scores.views = {net.weights: views for net in nets}
    scores.of_ensemble(nets)
    table = tables(runs, tmp_path / "runs")["table5"]
    cells = row(table, "ResNet (six models)")
    assert (cells["source"], cells["models"], cells[TOP1]) == ("trained here", "6", "25.00")
    assert cells["top-5 (paper, %)"] == "3.57" and len(table) == len(paper.TABLE5)
    fewer = tables(runs[:5], tmp_path / "runs")["table5"]
    assert row(fewer, "ResNet (six models)")["source"] == "quoted"
    assert fewer.iloc[-1]["source"] == "not evaluated" and fewer.iloc[-1][TOP1] == ""


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
