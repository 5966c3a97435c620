"""One's own network, given as module:Factory, under the study's protocol."""

import json

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
        (":number", {}, "is a int, not a class or function"),
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
