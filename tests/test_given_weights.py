"""Given weights in Tables 2 to 5, against torchvision's own networks."""

import dataclasses
import os
import pickle
import urllib.error

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from table_rows import OWN, WNIDS, error, make_source, row
from torchvision.models import get_model_weights, resnet18, resnet50

from reslib import evaluate, given_weights, imagenet_tables
from reslib.data.places import class_name
from reslib.errors import UserError
from reslib.imagenet_tables import CENTRE, TOP1, caption, notes, tables
from reslib.models import build_model


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
