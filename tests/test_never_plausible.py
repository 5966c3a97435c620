"""What is broken must not come out as a plausible number, nor overwrite what is not reslib's."""

import errno
import os
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from cifar_sets import made_up, write_folders
from fake_records import change_summary, write_run
from training import QUIET, rows_of, silent, tiny

from reslib import data, distributed, files, native, notebooks, numerics, provenance, report, sources, speeds
from reslib.bench import scaling
from reslib.cli import main
from reslib.data.draws import few_of
from reslib.errors import UserError
from reslib.export import export
from reslib.machine import available_memory
from reslib.presets import folders_of_presets, preset_of
from reslib.recipe import Recipe
from reslib.record_checks import metrics_faults
from reslib.results_index import write_index
from reslib.runs import Run
from reslib.stopping import StopSignal, sigterm_raises
from reslib.train import train

CPU = torch.device("cpu")


def test_some_test_images_of_class_folders_are_of_every_class(tmp_path):
    """Read class by class, the first twenty would be airplanes."""
    for split, count in (("train", 300), ("test", 200)):
        write_folders(tmp_path / "cifar10", split, *made_up(count, 1 + (split == "test")))
    source = data.load("cifar10", tmp_path)
    batches = data.batches_for(Recipe(test_size=40, batch_size=8, iterations=2), source, CPU)
    labels = batches.sets["test"].labels
    assert len(labels) == 40 and len(labels.unique()) == 10
    assert torch.equal(labels, data.batches_for(Recipe(test_size=40, seed=3), source, CPU).sets["test"].labels)


def test_of_mixed_test_images_the_first_are_taken():
    assert few_of(torch.tensor([3, 1, 2, 0]), 2).tolist() == [0, 1]
    assert sorted(few_of(torch.tensor([0, 0, 1, 1]), 4).tolist()) == [0, 1, 2, 3]
    assert few_of(torch.tensor([1]), 1).tolist() == [0]


def test_without_float64_on_the_device_sums_are_made_on_the_processor():
    class OnAppleGpu(SimpleNamespace):
        device = SimpleNamespace(type="mps")

        def cpu(self):
            return torch.ones(2)

    assert numerics.in_double(OnAppleGpu()).dtype == torch.float64


def test_the_commit_is_never_that_of_another_project(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", "-C", tmp_path, *identity, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    package = tmp_path / ".venv" / "lib" / "site-packages" / "reslib"
    package.mkdir(parents=True)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    monkeypatch.delenv("RESLIB_COMMIT", raising=False)
    assert provenance.commit.__wrapped__() == ("unknown", None)
    monkeypatch.setenv("RESLIB_COMMIT", "abc")
    assert provenance.commit.__wrapped__() == ("abc", None)


def test_a_run_that_diverged_at_once_has_no_speed(tmp_path):
    recipe = tiny(model="own_models:NaNAfter", options="steps=2")
    summary = train(recipe, tmp_path / "quick" / "runs", execution=QUIET, say=silent)
    assert summary["status"] == "diverged" and summary["seconds"] > 0 and summary["images_per_second"] < 1e7
    assert not speeds.measurements(tmp_path, "quick")


def test_logits_that_are_no_numbers_do_not_become_an_error(tmp_path):
    recipe = tiny(model="own_models:NaNInEvaluation")
    summary = train(recipe, tmp_path, execution=QUIET, say=silent)
    assert summary["status"] == "diverged" and not rows_of(tmp_path, recipe)
    assert summary["message"] == "the logits of whole images after iteration 3 are not finite"


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("column", ["iteration", "test_loss"])
def test_no_number_in_a_curve_is_named(tmp_path, column, value):
    run = write_run(tmp_path, Recipe("resnet20", iterations=4, eval_every=2))
    frame = pd.read_csv(run.metrics_file, dtype=str)
    frame.loc[0, column] = value
    frame.to_csv(run.metrics_file, index=False)
    (fault,) = metrics_faults(run.metrics_file, run.recipe, run.summary())
    assert fault == f"metrics.csv has numbers that are not finite: {column} {value}"


def test_verify_names_a_record_without_a_commit(tmp_path, capsys):
    run = write_run(tmp_path / "quick" / "runs", Recipe("resnet20"))
    change_summary(run, dirty=True, commit="")
    summary = run.summary() | {"commit": None}
    files.write_json(run.summary_file, summary)
    main(["verify", str(tmp_path)])
    assert "trained with uncommitted changes to an unknown commit" in capsys.readouterr().out


def test_files_that_are_not_ours_stay(tmp_path, capsys):
    write_run(tmp_path / "results" / "quick" / "runs", Recipe("resnet20"))
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "results.csv").write_text("mine")
    assert main(["report", f"--results={tmp_path / 'results'}", f"--out={thesis / 'page.html'}"]) == 0
    assert (thesis / "results.csv").read_text() == "mine" and (thesis / "page.csv").exists()
    assert main(["report", f"--results={tmp_path / 'results'}", f"--out={thesis / 'page.csv'}"]) == 2
    assert "name a .html" in capsys.readouterr().err and (thesis / "page.csv").read_text().startswith("run,")
    (tmp_path / "results" / "README.md").write_text("# Results of my thesis\n")
    with pytest.raises(UserError, match=r"README.md is not an index of results"):
        write_index(tmp_path / "results")
    assert (tmp_path / "results" / "README.md").read_text() == "# Results of my thesis\n"
    for name in ("config.json", "model.safetensors"):
        (thesis / name).write_text("mine")
        with pytest.raises(UserError, match=f"has a {name} that is none of an export"):
            export(tmp_path / "run", thesis)
        (thesis / name).unlink()


def test_a_damaged_measurement_does_not_keep_the_page_from_being_made(tmp_path):
    write_run(tmp_path / "quick" / "runs", Recipe("resnet20"))
    (tmp_path / "quick" / "measurements").mkdir()
    (tmp_path / "quick" / "measurements" / "figure7.csv").touch()
    sections, problems = report.collect(tmp_path)
    assert len(sections) == 1 and len(problems) == 1 and "figure7.csv cannot be read" in problems[0]


def test_a_copy_of_a_preset_is_no_preset(tmp_path):
    for name in ("smoke+backup", "smoke", "medium+iterations=3", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in folders_of_presets(tmp_path)] == ["smoke", "medium+iterations=3"]
    assert preset_of("medium+iterations=3").name == "medium+iterations=3"


def test_a_run_taken_out_of_its_results_has_no_sources(tmp_path):
    known = {"0123456789ab": "c" * 40}
    files.write_json(tmp_path / "sources.json", known)
    assert sources.beside(tmp_path / "quick" / "runs" / "x") == known
    assert sources.beside(tmp_path / "a" / "b" / "x") == {}  # as deep, in no folder of runs
    assert sources.beside(Path("/x")) == sources.beside(Path("/runs/x")) == {}


def test_notebooks_are_given_a_data_root_that_is_one(tmp_path, monkeypatch):
    """After an equals sign bash leaves ~ as it is."""
    seen = {}
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()

    def run_batch(names, out, values, traceback):
        seen.update(values, names=names)
        return {}

    monkeypatch.setattr(notebooks, "run_batch", run_batch)
    arguments = SimpleNamespace(
        notebooks=["figure1", "figure1"], preset="smoke", data_root="~/data", seeds=0, device="cpu", traceback=False
    )
    assert notebooks.run_notebooks(arguments, tmp_path / "results") == 0
    assert seen["data_root"] == str(tmp_path / "data") and seen["names"] == ["figure1"]


def test_a_file_system_that_cannot_lock_is_named(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    words = "lock cannot be locked: Function not implemented; results must lie on a file system with flock"
    with pytest.raises(UserError, match=words), files.alone(tmp_path / "lock"):
        pass
    with pytest.raises(UserError, match=words), Run(tmp_path, tiny()).lock():
        pass


def test_a_group_without_a_rank_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is set, but RANK, MASTER_ADDR, MASTER_PORT not"):
        distributed.group()


def test_no_free_memory_is_not_unknown_memory(monkeypatch):
    point = {"axis": "depth", "value": 40}
    before = [{"axis": "depth", "value": 20, "peak_memory_mib": {"process": 2048}}]
    monkeypatch.setattr(scaling, "available_memory", lambda: 0)
    assert "about 4.0 GiB needed, 0.0 GiB free" in scaling._too_large(point, before)
    monkeypatch.setattr(scaling, "available_memory", lambda: None)
    assert scaling._too_large(point, before) == "" and available_memory() != 0


def test_machine_code_that_the_group_could_have_written_is_not_loaded(tmp_path):
    made, mask = tmp_path / "native" / "loops.so", os.umask(0o002)
    try:
        made.parent.mkdir(mode=0o700)
        made.touch(mode=0o600)
        assert native._safe(made)
        for place, mode in ((made, 0o620), (made, 0o602), (made.parent, 0o770)):
            before = place.stat().st_mode
            place.chmod(mode)
            assert not native._safe(made)
            place.chmod(before)
        assert native._safe(made)
    finally:
        os.umask(mask)


def test_a_handler_that_python_did_not_set_is_no_error(monkeypatch):
    """signal.signal says None of one that a C library has set, and cannot put it back."""
    put, real = [], signal.signal

    def as_of_a_library(number, handler):
        put.append((number, handler))
        real(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr("reslib.stopping.signal.signal", as_of_a_library)
    try:
        with StopSignal(None), sigterm_raises(KeyboardInterrupt):
            pass
        assert put[-3:] == [(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT)]
    finally:
        for number, handler in before.items():
            real(number, handler)
