"""Notebooks that train nothing: what is on record is drawn, without images, and what is not is said."""

import pytest
from fake_records import write_run

from reslib.cli import main
from reslib.errors import UserError
from reslib.notebook import open_study
from reslib.presets import PRESETS
from reslib.runs import Run
from reslib.studies import figure1, figure6


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Of Figure 6 at quick the networks of 20 layers, on CIFAR-10, which is not here."""
    (tmp_path / "no images").mkdir()
    monkeypatch.setenv("RESLIB_DATA", str(tmp_path / "no images"))
    monkeypatch.setenv("RESLIB_DOWNLOAD", "off")
    for recipe in figure6(PRESETS["quick"], "cifar10", 1):
        if recipe.model.endswith("20"):
            write_run(tmp_path / "quick" / "runs", recipe)
    return tmp_path


def test_records_are_drawn_and_what_is_missing_is_said(results, capsys):
    study = open_study("figure6", "quick", results=str(results), seeds=1, train=False)
    assert study.dataset_name == "cifar10"
    runs, curves = study.train()
    assert set(runs["model"]) == {"plain20", "resnet20"} and len(curves)
    said = capsys.readouterr().out
    assert "not on record: " in said and "resnet56 (1)" in said and "plain20 (" not in said
    assert {r.model for r in study.expected} == set(runs["model"]) < {r.model for r in study.recipes}
    assert "not on record, and none is trained here" in study.facts()["runs"]


def test_nothing_is_begun(results):
    before = sorted(results.rglob("*"))
    open_study("figure1", "quick", results=str(results), train=False).train()
    assert sorted(results.rglob("*")) == before
    runs = results / "quick" / "runs"
    assert not any(Run(runs, r).path.exists() for r in figure1(PRESETS["quick"], "cifar10", 1) if "56" in r.model)


def test_without_any_record_that_is_said(results):
    with pytest.raises(UserError, match="no records of figure4 in .*runs, and train=False trains none"):
        open_study("figure4", "quick", results=str(results), train=False).train()


def test_all_are_expected_where_they_are_trained(tmp_path):
    study = open_study("figure1", "smoke", results=str(tmp_path), device="cpu")
    assert study.expected == study.recipes and "still to be trained" in study.facts()["runs"]


def test_the_command_executes_notebooks_with_records_alone(results, capsys, monkeypatch):
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    runs = sorted(results.glob("quick/runs/*"))
    assert main(["reproduce", "figure6", "--no-train", "--preset=quick", f"--results={results}"]) == 0
    assert sorted(results.glob("quick/runs/*")) == runs
    assert {p.stem for p in results.glob("quick/figures/*.png")} == {"figure6", "depth"}
    assert "resnet56 (" in (results / "quick" / "notebooks" / "figure6.ipynb").read_text()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--preset=medium"], "no records of a study in "),
        (["gradients", "--preset=quick"], "notebook that draws records 'gradients' is unknown: allowed are"),
        (["--runs-only"], "--runs-only trains and --no-train does not"),
    ],
)
def test_what_cannot_be_drawn(results, capsys, words, said):
    assert main(["reproduce", "--no-train", f"--results={results}", *words]) != 0
    assert said in capsys.readouterr().err
