"""One's own network, given as module:Factory, under the study's protocol."""

import json
import sys

import pytest

from reslib.cli import main
from reslib.errors import UserError
from reslib.models import build_model

MODULE = """
import torch
from torch import nn

class MyNet(nn.Module):
    def __init__(self, num_classes, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def no_arguments():
    return MyNet(10)

def not_a_network(num_classes):
    return [num_classes]

number = 3

class Misspelt(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(10, num_classe)

class NoSuper(nn.Module):
    def __init__(self):
        self.head = nn.Linear(10, 10)

def no_super():
    return NoSuper()

def leaves():
    raise SystemExit(0)

class Net(nn.Module):
    outputs = {"more": lambda y: y.repeat(1, 10), "tuple": lambda y: (y, y), "map": lambda y: y[:, :, None]}
    outputs |= {"fails": lambda y: y @ y, "none": lambda y: None, "training": lambda y: y}

    def __init__(self, num_classes, output):
        super().__init__()
        self.norm, self.fc, self.output = nn.BatchNorm2d(3), nn.Linear(3, num_classes), output

    def forward(self, x):
        logits = self.fc(self.norm(x).mean((2, 3)))
        return (logits, logits) if self.output == "training" and self.training else self.outputs[self.output](logits)

class Tied(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, num_classes)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(self.a(x.mean((2, 3))).relu()))

def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def double(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes)).double()

def uncopyable(num_classes):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))
    network.rest = (i for i in range(3))
    return network

def bare(num_classes):
    return nn.Sequential(nn.AvgPool2d(32), nn.Flatten())
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """A module in the current folder, under a name of its own for each test."""
    name = f"mynets_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    monkeypatch.delenv("RESLIB_RESULTS", raising=False)
    return name


def test_trains_from_the_command_line(module, tmp_path, capsys):
    command = ["train", f"{module}:MyNet", "--preset", "smoke", "--results", str(tmp_path / "out"), "--device", "cpu"]
    command += ["--options", "width=4", "--seed", "3"]
    assert main(command) == 0, capsys.readouterr()
    (run,) = (tmp_path / "out" / "smoke" / "runs").iterdir()
    assert run.name.startswith(f"{module}.MyNet-synthetic-s3-")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["iterations"] == 6 and summary["synthetic"]
    assert summary["parameters"] == 3 * 9 * 4 + 4 + 8 + 40 + 10
    assert summary["multiply_adds"] == 16 * 16 * 3 * 9 * 4 + 40
    assert 0 <= summary["test_error"] <= 1 and summary["layers"] == 2
    assert "test error" in capsys.readouterr().out
    before = (run / "summary.json").read_bytes()
    assert main(command) == 0  # a finished run is not trained again
    assert (run / "summary.json").read_bytes() == before


HELPER = "def scale(x):\n    return 2 * x\n"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_changed_network_does_not_pass_as_the_old_one(module, tmp_path, capsys, monkeypatch):
    from reslib.executor import missing
    from reslib.networks import load_network
    from reslib.presets import PRESETS, cifar_recipe
    from reslib.records import load_runs
    from reslib.tables import cifar10_table

    file, runs_dir = tmp_path / f"{module}.py", tmp_path / "out" / "smoke" / "runs"
    (tmp_path / f"{module}_helper.py").write_text(HELPER)
    edit(file, "import torch\n", f"import torch\nfrom {module}_helper import scale\n")
    command = ["train", f"{module}:MyNet", "--preset", "smoke", "--results", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--time-limit", "0"]) != 0  # interrupted before the first step
    edit(file, "width=8", "width=6")
    capsys.readouterr()
    assert main(command) == 1
    error = capsys.readouterr().err
    assert f"the code of {module}:MyNet has changed since run {module}.MyNet-synthetic-s0-" in error
    assert error.count("\n") == 1 and "remove that run's folder" in error
    edit(file, "width=6", "width=8")
    edit(file, "def no_arguments():", "# A comment and empty lines are no change.\n\n\ndef no_arguments():  # nor here")
    assert main(command) == 0, capsys.readouterr()
    (run,) = runs_dir.iterdir()
    recorded = json.loads((run / "summary.json").read_text())["network_source"]
    assert len(recorded) == 12
    recipe = cifar_recipe(f"{module}:MyNet", PRESETS["smoke"], "synthetic")
    assert missing([recipe], runs_dir) == [] and load_network(run)
    edit(tmp_path / f"{module}_helper.py", "2 * x", "3 * x")  # what it imports from the same folder counts too
    capsys.readouterr()
    assert main(command) == 1 and "has changed since" in capsys.readouterr().err
    assert missing([recipe], runs_dir) == [recipe]  # so that the notebooks say it too
    with pytest.raises(UserError, match="has changed since"):
        load_network(run)
    edit(tmp_path / f"{module}_helper.py", "3 * x", "2 * x")
    assert missing([recipe], runs_dir) == []
    edit(file, "def no_arguments", "def no arguments")  # it no longer runs, so it is not what it was
    assert missing([recipe], runs_dir) == [recipe]
    file.unlink()  # a record needs no source to stay in the table
    assert missing([recipe], runs_dir) == []
    assert (cifar10_table(load_runs(runs_dir))["source"] == "added").sum() == 1


def test_the_notebook_takes_the_same_name_and_the_same_run(module, tmp_path):
    from reslib.notebook import open_study

    name = f"{module}:MyNet"
    assert main(["train", name, "--preset", "smoke", "--results", str(tmp_path), "--device", "cpu"]) == 0
    study = open_study("cifar10_table", "smoke", results=str(tmp_path), models=f" {name} , {module}:no_arguments")
    recipe, split = [r for r in study.recipes if r.model == name]
    assert (tmp_path / "smoke" / "runs" / recipe.run_name / "summary.json").exists()
    assert split.val_size and not recipe.val_size  # the view selected on validation images, as of the paper's rows
    assert [r.model for r in study.recipes].count(f"{module}:no_arguments") == 2


def test_its_row_has_the_statistics_and_views_of_the_papers_and_names_its_departures(module, tmp_path):
    from reslib import tables
    from reslib.records import load_runs

    command = ["train", f"{module}:MyNet", "--preset", "smoke", "--results", str(tmp_path), "--device", "cpu"]
    for more in ([], ["--val-size", "25", "--train-size", "231"], ["--batch-size", "8"]):
        assert main([*command, *more]) == 0
    table = tables.cifar10_table(load_runs(tmp_path / "smoke" / "runs")).set_index("model")
    name = f"{module}:MyNet"
    assert set(table.index[table["source"] == "added"]) == {
        name, f"{name} [batch_size=8]", f"{name} [train_size=231, val_size=25]"
    }  # fmt: skip
    mine = table.loc[name]
    views = [column for column in tables.VIEWS[1:] if column != tables.PEERS]
    assert (mine[[*views, "parameters", "multiply-adds", tables.INTERVAL]] != "").all()
    assert mine[tables.SELECTED].endswith("(n = 1, 25 held out)")
    assert table.loc[f"{name} [batch_size=8]", tables.SELECTED] == ""


def test_factories_of_every_kind(module):
    assert build_model(f"{module}:MyNet", 7).head.out_features == 7
    assert build_model(f"{module}:MyNet", 7, shortcut="A", width=2).head.in_features == 2
    assert build_model(f"{module}:no_arguments", 7).head.out_features == 10


@pytest.mark.parametrize(
    ("suffix", "options", "part"),
    [
        (":Missing", {}, "has no attribute 'Missing'"),
        ("_absent:MyNet", {}, "No module named"),
        ("_broken:f", {}, "cannot be imported"),
        (":", {}, "cannot be imported"),
        (":number", {}, "is of type int, not a class or function"),
        (".py:MyNet", {}, "names a file: allowed is package.module:Factory, here "),
        (":Misspelt", {}, "cannot be made with {'num_classes': 10}: NameError: name 'num_classe' is not"),
        (":leaves", {}, "SystemExit: 0 (mynets_"),
        (":no_super", {}, "AttributeError: cannot assign module before Module.__init__() call (mynets_"),
        (":not_a_network", {}, "gave a list, not a torch.nn.Module"),
        (":MyNet", {"depth": 3}, "unexpected keyword argument 'depth'"),
        (":no_arguments", {"width": 3}, "unexpected keyword argument 'width'"),
    ],
)
def test_mistakes_are_one_clear_line(module, suffix, options, part):
    with pytest.raises(UserError) as caught:
        build_model(module + suffix, 10, **options)
    assert part in str(caught.value) and module in str(caught.value), str(caught.value)


def test_command_line_reports_a_wrong_model_with_exit_code_2(module, capsys):
    assert main(["train", f"{module}:Missing", "--preset", "smoke"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("reslib: ") and error.count("\n") == 1 and "Missing" in error


@pytest.mark.parametrize(
    ("factory", "options", "part"),
    [
        ("Net", "output=more", "gives (2, 100) for images (2, 3, 32, 32) in training: needed are logits (2, 10)"),
        ("Net", "output=tuple", "gives a tuple for images"),
        ("Net", "output=none", "gives a NoneType for images"),
        ("Net", "output=map", "gives (2, 10, 1) for images"),
        ("Net", "output=training", "in training: needed are logits (2, 10)"),
        ("Net", "output=fails", "fails on images (2, 3, 32, 32): RuntimeError: mat1 and mat2 shapes"),
        ("lazy", "", "has lazy layers: give them their sizes"),
        ("double", "", "has parameters of torch.float64: allowed is torch.float32"),
        ("bare", "", "has no parameters to train"),
        ("uncopyable", "", "cannot be copied: TypeError: cannot pickle 'generator' object"),
    ],
)
def test_what_cannot_be_trained_is_told_before_there_is_a_run(module, tmp_path, capsys, factory, options, part):
    command = ["train", f"{module}:{factory}", "--preset", "smoke", "--results", str(tmp_path), "--device", "cpu"]
    assert main([*command, *(["--options", options] if options else [])]) == 1
    error = capsys.readouterr().err
    assert part in error and f"{module}:{factory}" in error and error.count("\n") == 1, error
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("model", ["own_models:Small", "own_models:OwnLoss"])
def test_trying_a_network_changes_nothing_of_it(model):
    import torch

    from reslib.networks import check_own
    from reslib.recipe import Recipe

    torch.manual_seed(0)
    network = build_model(model, 10, **({"dropout": 0.5} if model.endswith("Small") else {})).train()
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.random.get_rng_state()
    check_own(network, Recipe(model), 10)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items()) and network.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_tied_weights_are_saved_and_read_again(module, tmp_path, capsys):
    from reslib.networks import load_network

    command = ["train", f"{module}:Tied", "--preset", "smoke", "--results", str(tmp_path), "--device", "cpu"]
    assert main(command) == 0, capsys.readouterr().err
    (run,) = (tmp_path / "smoke" / "runs").iterdir()
    network, _ = load_network(run)
    assert network.a.weight is network.b.weight and network.a.weight.abs().sum() > 0


def test_the_notes_name_networks_whose_code_has_changed(module, tmp_path):
    from reslib import table_text
    from reslib.records import load_runs

    assert main(["train", f"{module}:MyNet", "--preset", "smoke", "--results", str(tmp_path), "--device", "cpu"]) == 0
    runs = load_runs(tmp_path / "smoke" / "runs")
    assert "Trained before" not in str(table_text.notes(runs))
    edit(tmp_path / f"{module}.py", "width=8", "width=6")
    assert f"Trained before their code was changed to what it is now: {module}:MyNet." in table_text.notes(runs)
    assert "Trained before" not in table_text.caption(runs)
    (tmp_path / f"{module}.py").unlink()
    assert "Trained before" not in str(table_text.notes(runs))
    elsewhere = runs.assign(model="antigravity.game:Net")
    assert "Trained before" not in str(table_text.notes(elsewhere))
    assert "antigravity" not in sys.modules  # a record from elsewhere must not have anything imported
