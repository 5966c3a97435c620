"""torch.hub from a local checkout, and exported weights read by torchvision (and timm where it is installed)."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from reslib import data, export
from reslib.errors import UserError
from reslib.job import Execution
from reslib.models import build_model
from reslib.recipe import Recipe
from reslib.runs import Run
from reslib.train import train

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"iterations": 4, "batch_size": 16, "eval_every": 2, "train_size": 128, "test_size": 100, "precision": "fp32"}
SMALL_IMAGENET = {"crop_size": 32, "scale_range": (32, 48), "augmentation": "scale-crop-flip-color"}
QUIET = {"execution": Execution(device="cpu"), "say": lambda text: None}


def hub(name, **arguments):
    return torch.hub.load(str(ROOT), name, source="local", trust_repo=True, **arguments)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def cifar_run(runs_dir):
    recipe = Recipe("resnet20", "synthetic", **SMALL)
    train(recipe, runs_dir, **QUIET)
    return Run(runs_dir, recipe)


def test_every_network_is_listed():
    """By torch.hub's own rule: what can be called and has no underscore in front."""
    namespace = runpy.run_path(str(ROOT / "hubconf.py"))
    names = [name for name, value in namespace.items() if callable(value) and not name.startswith("_")]
    for depth in (20, 32, 44, 56, 110):
        assert {f"cifar_resnet{depth}", f"cifar_plain{depth}"} <= set(names)
    assert {"cifar_resnet1202", "imagenet_plain34", "imagenet_resnet34", "imagenet_resnet152"} <= set(names)
    assert all(name.startswith(("cifar_", "imagenet_")) for name in names), names
    assert "CIFAR-10" in namespace["cifar_resnet56"].__doc__


def test_networks_have_the_papers_size():
    assert sum(p.numel() for p in hub("cifar_resnet20").parameters()) == 269_722
    assert sum(p.numel() for p in hub("cifar_plain20").parameters()) == 269_722
    mine, theirs = hub("imagenet_resnet34"), torchvision.models.resnet34()
    assert {n: p.shape for n, p in mine.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}


def test_weights_of_torchvision_give_torchvisions_logits(tmp_path):
    torch.manual_seed(1)
    theirs = torchvision.models.resnet50(num_classes=7).eval()
    save_file(theirs.state_dict(), tmp_path / "r50.safetensors")
    mine = hub("imagenet_resnet50", weights=str(tmp_path / "r50.safetensors"), num_classes=7, stride_on="3x3")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(mine(x), theirs(x))


def test_weights_of_a_run(cifar_run):
    net = hub("cifar_resnet20", weights=str(cifar_run.path))
    assert not net.training
    x = torch.randn(3, 3, 32, 32)
    expected = build_model("resnet20")
    expected.load_state_dict(load_file(cifar_run.weights_file))
    with torch.no_grad():
        assert torch.equal(net(x), expected.eval()(x))


def test_weights_that_do_not_fit_are_named(cifar_run, tmp_path):
    alone = shutil.copy(cifar_run.weights_file, tmp_path / "alone.safetensors")
    with pytest.raises(UserError, match="alone.safetensors does not fit this network"):
        hub("cifar_resnet32", weights=str(alone))
    for weights in (cifar_run.path, cifar_run.weights_file):  # plain nets have the same shapes
        with pytest.raises(UserError, match="weights.safetensors are the weights of resnet20, not of plain20"):
            hub("cifar_plain20", weights=str(weights))
    for name, reason in (("recipe.json", "the run is not finished"), ("summary.json", "weights are not kept in git")):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(cifar_run.path / name, tmp_path / "run")
        with pytest.raises(UserError, match=f"neither model.safetensors nor weights.safetensors: {reason}"):
            hub("cifar_resnet20", weights=str(tmp_path / "run"))
    with pytest.raises(UserError, match="nothing.safetensors"):
        hub("cifar_resnet20", weights=str(tmp_path / "nothing.safetensors"))


def test_export_gives_the_recorded_error_from_its_own_files(cifar_run, tmp_path, capsys):
    """Images in 0..1, the exported normalisation and the exported network alone reproduce the run's test error."""
    assert export.main([str(cifar_run.path), str(tmp_path / "out")]) == 0
    folder, hint = capsys.readouterr().out.splitlines()
    assert "after `import reslib.timm_models`" in hint and f"local-dir:{folder}" in hint
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "reslib" and config["num_classes"] == 10
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32] and len(config["label_names"]) == 10
    assert "SYNTHETIC DATA" in (folder / "README.md").read_text()
    source = data.load("synthetic")
    images = source.test.images[:100].permute(0, 3, 1, 2).float() / 255
    parts = load_file(folder / "normalisation.safetensors")
    with torch.no_grad():
        logits = export.load(folder)((images - parts["mean"]) / parts["std"])
    wrong = (logits.argmax(1) != source.test.labels[:100]).double().mean()
    assert wrong.item() == cifar_run.summary()["test_error"] == config["evidence"]["test_error"]
    torch.testing.assert_close(torch.tensor(config["pretrained_cfg"]["mean"]), parts["mean"].mean((1, 2)))


@pytest.fixture(scope="module")
def imagenet_export(runs_dir, tmp_path_factory):
    recipe = Recipe("resnet18", "synthetic-imagenet", shortcut="B", **SMALL, **SMALL_IMAGENET)
    train(recipe, runs_dir, **QUIET)
    return export.export(Run(runs_dir, recipe).path, tmp_path_factory.mktemp("export"))


def test_an_exported_imagenet_net_is_torchvisions(imagenet_export):
    config = json.loads((imagenet_export / "config.json").read_text())
    assert config["architecture"] == "resnet18"
    theirs = torchvision.models.resnet18(num_classes=config["num_classes"])
    theirs.load_state_dict(load_file(imagenet_export / "model.safetensors"))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(export.load(imagenet_export)(x), theirs.eval()(x))


def test_timm_reads_the_export(imagenet_export):
    """torchvision's network without a word of reslib: by its name, and by the folder."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    path = str(imagenet_export / "model.safetensors")
    x = torch.randn(2, 3, 64, 64)
    for theirs in (
        timm.create_model("resnet18", num_classes=10, checkpoint_path=path),
        timm.create_model(f"local-dir:{imagenet_export}", pretrained=True),
    ):
        with torch.no_grad():
            torch.testing.assert_close(export.load(imagenet_export)(x), theirs.eval()(x))


@pytest.fixture(scope="module", params=["resnet20", "own_models:Small"])
def cifar_export(request, runs_dir, tmp_path_factory):
    recipe = Recipe(request.param, "synthetic", **SMALL)
    train(recipe, runs_dir, **QUIET)  # that of cifar_run is there already
    return export.export(Run(runs_dir, recipe).path, tmp_path_factory.mktemp("cifar-export"))


def test_timm_makes_a_network_that_it_does_not_have(cifar_export):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from reslib import timm_models  # noqa: F401 (which registers them)

    theirs = timm.create_model(f"local-dir:{cifar_export}", pretrained=True).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), export.load(cifar_export)(x))
    asked = timm.data.resolve_model_data_config(theirs)
    config = json.loads((cifar_export / "config.json").read_text())["pretrained_cfg"]
    assert list(asked["input_size"]) == [3, 32, 32] and list(asked["mean"]) == config["mean"]


def test_timm_gives_it_another_classifier(cifar_run, tmp_path):
    """As for a network of its own: the body with its weights, a classifier of as many classes as are asked for."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    from reslib import timm_models  # noqa: F401

    name = f"local-dir:{export.export(cifar_run.path, tmp_path)}"
    tuned = timm.create_model(name, pretrained=True, num_classes=3)
    weights = load_file(cifar_run.weights_file)
    assert tuned.fc.weight.shape == (3, 64)
    assert torch.equal(tuned.layer3[0].conv1.weight, weights["layer3.0.conv1.weight"])
    assert not torch.equal(timm.create_model(name).fc.weight, weights["fc.weight"])  # unless they are asked for
    with pytest.raises(UserError, match="local-dir:OUT_FOLDER"):
        timm.create_model("reslib")


@pytest.mark.parametrize(
    "model, fields, same",
    [("resnet18", {"shortcut": "A"}, False), ("plain18", {"shortcut": "B"}, False),
     ("resnet50", {"shortcut": "B"}, False), ("resnet34", {"shortcut": "B"}, True),
     ("resnet50", {"shortcut": "B", "options": "stride_on=3x3"}, True)],
)  # fmt: skip
def test_torchvisions_name_only_for_torchvisions_network(model, fields, same):
    recipe = Recipe(model, "imagenet", **fields)
    net = build_model(model, 1000, recipe.shortcut)
    assert export.is_torchvision(net, recipe) is same


def test_an_unfinished_run_is_named(tmp_path, capsys):
    assert export.main([str(tmp_path), str(tmp_path / "out")]) == 1
    assert "no weights.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_one_line(cifar_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("precious")
    for run, out, code, words in (
        (cifar_run.path, tmp_path / "project", 1, "README.md that is none of an export"),
        (tmp_path / "nothing", tmp_path / "out", 2, "is not the folder of a run"),
        (tmp_path / "file", tmp_path / "out", 2, "is not the folder of a run"),
        (cifar_run.path, tmp_path / "file", 2, "is a file"),
        (cifar_run.path, tmp_path / "file" / "below", 1, "is in the way, not a folder"),
        (cifar_run.path, "/proc/here", 1, "/proc/here"),
    ):
        assert export.main([str(run), str(out)]) == code
        printed, error = capsys.readouterr()
        assert error.startswith("reslib: ") and error.count("\n") == 1 and words in error and not printed
    assert (tmp_path / "project" / "README.md").read_text() == "precious"
    for no_folder in (["", "out"], [str(cifar_run.path), ""], [str(cifar_run.path), "~nobody-of-this-name/x"]):
        with pytest.raises(SystemExit) as end:
            export.main(no_folder)
        assert end.value.code == 2 and re.search("names nothing|cannot be a folder", capsys.readouterr().err)


def test_the_hub_imports_nothing_before_it_is_asked():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import hubconf; assert 'reslib.models' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
