"""Notebooks that train nothing: what is on record is drawn, without images, and what is not is said."""

import json
from types import SimpleNamespace

import pytest
from fake_records import write_run

from reslib import frames, notebooks, probes, results_index, studies
from reslib.artefacts import drawable
from reslib.cli import main
from reslib.errors import UserError
from reslib.files import write_json
from reslib.notebook import open_study
from reslib.presets import PRESETS, preset_of

QUICK = PRESETS["quick"]
DRAWN = {  # study: data set, which of its runs are on record, what its notebook then prints
    "figure1": ("cifar10", lambda r: r.model == "plain20", "1 of plain56"),
    "figure4": ("imagenette", lambda r: r.model != "plain34", "1 of plain34"),
    "figure6": ("cifar10", lambda r: "56" not in r.model, "1 of resnet56"),
    "fidelity": ("cifar10", lambda r: r.preprocessing == "channel-std", "1 of resnet20 ["),
    "cifar10_table": ("cifar10", lambda r: r.model in ("resnet20", "nin") and not r.val_size, "resnet20 [val_size="),
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Records of the networks of 20 layers of Figure 6 at quick, on CIFAR-10, which is not here."""
    (tmp_path / "no images").mkdir()
    monkeypatch.setenv("RESLIB_DATA", str(tmp_path / "no images"))
    monkeypatch.setenv("RESLIB_DOWNLOAD", "off")
    return record(tmp_path, "figure6", "cifar10", lambda recipe: recipe.model.endswith("20"))


def record(results, study, dataset, wanted, preset=QUICK):
    make, _ = studies.STUDIES[study]
    for recipe in filter(wanted, make(preset, dataset, 1)):
        write_run(results / preset.name / "runs", recipe)
    return results


def test_records_are_drawn_and_what_is_missing_is_said(results, capsys):
    study = open_study("figure6", "quick", results=str(results), seeds=1, train=False)
    assert study.dataset_name == "cifar10"
    runs, curves = study.train()
    assert set(runs["model"]) == {"plain20", "resnet20"} and len(curves)
    said = capsys.readouterr().out
    assert "runs without a record: " in said and "1 of resnet56" in said and "of plain20" not in said
    assert {r.model for r in study.expected} == set(runs["model"]) < {r.model for r in study.recipes}
    assert "not on record, and none is trained here" in study.facts()["runs"]


def test_nothing_is_begun(results):
    before = sorted(results.rglob("*"))
    open_study("figure1", "quick", results=str(results), train=False).train()
    assert sorted(results.rglob("*")) == before


def test_without_any_record_that_is_said_at_once(results, capsys):
    with pytest.raises(UserError, match="train=False draws records, and .*runs has none of figure4: allowed is True"):
        open_study("figure4", "quick", results=str(results), train=False)
    assert capsys.readouterr().out == ""  # of images neither


def test_settings_of_a_changed_preset_are_its_own(tmp_path, capsys):
    preset = preset_of("quick+iterations=500")
    record(tmp_path, "cifar10_table", "cifar10", lambda r: r.model == "nin", preset)
    open_study("cifar10_table", preset.name, results=str(tmp_path), seeds=1, train=False).train()
    said = capsys.readouterr().out
    assert "1 of resnet20, " in said and "1 of resnet20 [val_size=" in said and "iterations" not in said


@pytest.mark.parametrize("name", DRAWN)
def test_the_command_executes_notebooks_with_records_alone(results, name):
    dataset, wanted, said = DRAWN[name]
    record(results, name, dataset, wanted)
    runs = sorted(results.glob("quick/runs/*"))
    assert main(["reproduce", name, "--no-train", "--preset=quick", "--seeds=1", f"--results={results}"]) == 0
    assert sorted(results.glob("quick/runs/*")) == runs
    cells = json.loads((results / "quick" / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    assert said in "".join("".join(o.get("text", [])) for c in cells for o in c.get("outputs", []))
    assert not (results / "quick" / "measurements").exists()


def test_norms_are_drawn_as_they_were_measured(results):
    """By other code, and for another number of seeds than asked for: nothing is measured anew."""
    folder = results / "smoke"
    assert not drawable("gradients", folder)
    norms = probes.gradient_study(preset_of("smoke"), "synthetic", seeds=1)
    frames.save_measurement(norms.assign(key="of another time"), folder, "gradients")
    file = folder / "measurements" / "gradients.csv"
    before = file.read_bytes(), file.stat().st_mtime_ns
    assert drawable("gradients", folder)
    assert main(["reproduce", "gradients", "--no-train", "--preset=smoke", "--seeds=3", f"--results={results}"]) == 0
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert (folder / "figures" / "gradients_training.png").exists()
    assert "wherever it was made" in (folder / "notebooks" / "gradients.ipynb").read_text()
    file.write_text("damaged")
    assert drawable("gradients", folder)  # the notebook says so; the others are drawn


def test_the_index_says_how_such_a_copy_is_made(results):
    folder = results / "quick" / "notebooks"
    for name, value in (("figure1", "False"), ("figure6", "True")):
        given = {"cell_type": "code", "metadata": {"tags": ["injected-parameters"]}, "source": [f"train = {value}"]}
        write_json(folder / f"{name}.ipynb", {"cells": [given]})
    text = results_index.section(results / "quick")
    assert "`reslib reproduce figure1 --no-train --preset quick`" in text
    assert "`reslib reproduce figure6 --preset quick`" in text


def test_a_copy_of_the_checkout_s_own_results_names_no_folder(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(notebooks, "run_batch", lambda names, out, values, traceback: given.append(values) or {})
    values = {"notebooks": ["figure1"], "preset": "smoke", "data_root": None, "seeds": 0, "device": "auto"}
    arguments = SimpleNamespace(**values, traceback=False)
    monkeypatch.setenv("RESLIB_RESULTS", str(tmp_path))
    for results in (tmp_path, tmp_path / "other"):
        notebooks.run_notebooks(arguments, results, train=False)
    assert [v["results"] for v in given] == ["", str(tmp_path / "other")]
    assert [v["train"] for v in given] == [False, False]


def test_what_has_something_to_draw(results):
    folder = results / "quick"
    there = {name for name in studies.STUDIES if drawable(name, folder)}
    assert there == {"figure1", "figure6", "cifar10_table"}  # no half of a comparison, nothing unmeasured
    record(results, "future_work", "cifar10", lambda recipe: True)
    assert drawable("future_work", folder)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--preset=medium"], "nothing on record in "),
        (["architecture"], "--no-train draws what is on record, and architecture does not: allowed are"),
        (["imagenet_tables"], "and imagenet_tables does not: allowed are"),
        (["gradients", "--preset=quick"], "measurements has no gradients.csv: allowed is True, which measures"),
        (["--runs-only"], "--runs-only trains and --no-train does not"),
    ],
)
def test_what_cannot_be_drawn(results, capsys, words, said):
    assert main(["reproduce", "--no-train", f"--results={results}", *words]) != 0
    assert said in capsys.readouterr().err
