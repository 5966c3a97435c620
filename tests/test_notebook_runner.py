"""papermill through our runner: one bad notebook stops no other, and a partial one is never taken for finished."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from reslib import notebooks
from reslib.errors import UserError
from reslib.notebook import open_folder, open_study

pytest.importorskip("papermill")


def write(folder, name, *sources):
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {"tags": ["parameters"]} if i == 0 else {}, "source": s,
         "outputs": [], "execution_count": None}
        for i, s in enumerate(sources)
    ]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    text = json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    (folder / f"{name}.ipynb").write_text(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    monkeypatch.setenv("RESLIB_NOTEBOOKS", str(source))
    return source


def arguments(**changes):
    values = {"notebooks": [], "preset": "smoke", "data_root": None, "seeds": 0, "device": "auto"}
    return SimpleNamespace(**{**values, **changes})


def test_failures_are_listed_and_the_others_run(folder, tmp_path, capsys):
    write(folder, "a_bad", 'preset: str = "auto"', "1 / 0")
    write(folder, "b_good", 'preset: str = "auto"', 'assert preset == "smoke"')
    assert notebooks.run_notebooks(arguments(), tmp_path) == 1
    out = tmp_path / "smoke" / "notebooks"
    assert sorted(p.name for p in out.iterdir()) == ["a_bad.failed.ipynb", "b_good.ipynb"]
    said = capsys.readouterr()
    assert "1 of 2 notebooks done" in said.out
    assert "FAILED a_bad: cell 3: ZeroDivisionError: division by zero" in said.err or "ZeroDivisionError" in said.err


def test_a_killed_runner_leaves_no_notebook_that_looks_finished(folder, tmp_path):
    write(folder, "slow", 'preset: str = "auto"', "import time; time.sleep(600)")
    code = (
        "from types import SimpleNamespace as N; from pathlib import Path; from reslib.notebooks import run_notebooks;"
        "run_notebooks(N(notebooks=[], preset='smoke', data_root=None, seeds=0, device='auto'), Path(r'%s'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code % tmp_path], start_new_session=True)
    out = tmp_path / "smoke" / "notebooks"
    try:
        for _ in range(600):
            if list(out.glob("*.ipynb")):
                break
            time.sleep(0.1)
        assert [p.name for p in out.glob("*.ipynb")] == ["slow.running.ipynb"]
        time.sleep(1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    write(folder, "slow", 'preset: str = "auto"', "print('quick now')")
    assert notebooks.run_notebooks(arguments(), tmp_path) == 0
    assert [p.name for p in out.iterdir()] == ["slow.ipynb"]


def test_unknown_notebook_is_refused_before_anything_runs(folder, tmp_path):
    write(folder, "figure1", "x = 1")
    with pytest.raises(UserError, match="notebook 'figur1' is unknown.*figure1"):
        notebooks.run_notebooks(arguments(notebooks=["figur1"]), tmp_path)


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"preset": "tiny"}, "preset 'tiny' is unknown: allowed are"),
        ({"preset": 3}, "preset 3 is of type int: allowed is str"),
        ({"seeds": "3"}, "seeds '3' is of type str: allowed is int"),
        ({"seeds": -1}, "seeds -1 is out of range"),
        ({"device": "gpu"}, "device 'gpu' is unknown"),
        ({"data_root": "/no/such/folder", "preset": "quick"}, "data root '/no/such/folder' is not a folder"),
        ({"models": "no.such.module:Net"}, "model 'no.such.module:Net' cannot be imported"),
    ],
)
def test_bad_notebook_parameters_are_one_clear_line(tmp_path, bad, message):
    values = {"preset": "smoke", "results": str(tmp_path), **bad}
    with pytest.raises(UserError, match=message):
        study = open_study("cifar10_table", **values)
        study.train()


def test_folder_of_a_preset_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RESLIB_PRESET", "smoke")
    assert open_folder("auto", str(tmp_path)).folder == tmp_path / "smoke"
