"""Live progress: what it shows in a notebook, in a terminal, and when asked to be quiet."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from reslib import progress
from reslib.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
ROW = {"iteration": 10, "test_error": 0.5}


class Handle:
    def __init__(self):
        self.shown = []

    def update(self, html):
        self.shown.append(html.data)


@pytest.fixture
def handle(monkeypatch):
    display = pytest.importorskip("IPython.display")
    handle = Handle()
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    monkeypatch.setattr(display, "display", lambda html, display_id: handle.shown.append(html.data) or handle)
    monkeypatch.delenv("RESLIB_PROGRESS", raising=False)
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    return handle


def test_bar_and_curve_move_in_place(handle):
    bar = progress.Progress(2)
    bar.begin(Recipe(iterations=20))
    bar.say("<b>not markup</b>")
    bar.on_row(ROW)
    trees = [ElementTree.fromstring(text) for text in handle.shown]  # well formed
    last = trees[-1]
    assert last.find('.//*[@role="progressbar"]').get("aria-valuenow") == "25"  # half of the first of two runs
    assert last.find(".//polyline").get("points") == f"{progress.WIDTH / 2:.1f},{progress.HEIGHT / 2:.1f}"
    assert "run 1 of 2: resnet20 seed 0" in handle.shown[-1] and last.find(".//b") is None
    bar.begin(Recipe(model="plain20", iterations=20))
    bar.on_row(ROW)
    bar.done()
    done = ElementTree.fromstring(handle.shown[-1])
    assert done.find('.//*[@role="progressbar"]').get("aria-valuenow") == "100"
    assert len(done.findall(".//polyline")) == 2 and "2 of 2 runs trained" in handle.shown[-1]


def test_a_terminal_gets_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "in_notebook", lambda: False)
    monkeypatch.delenv("RESLIB_PROGRESS", raising=False)
    bar = progress.Progress(1)
    bar.begin(Recipe())
    bar.say("line")
    bar.on_row(ROW)
    assert capsys.readouterr().out == "line\n"


@pytest.mark.parametrize(
    "name, value", [("RESLIB_PROGRESS", "off"), ("PYTEST_CURRENT_TEST", "notebooks/figure1.ipynb::Cell 4 (setup)")]
)
def test_quiet_when_asked_and_under_nbval(handle, monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    bar = progress.Progress(1)
    bar.begin(Recipe())
    bar.say("line")
    bar.on_row(ROW)
    bar.done()
    assert handle.shown == [] and capsys.readouterr().out == ""


def test_in_notebook_asks_the_kernel(monkeypatch):
    pytest.importorskip("IPython")
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    assert progress.in_notebook()
    monkeypatch.setattr("IPython.get_ipython", lambda: None)
    assert not progress.in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert not progress.in_notebook()


def test_nbval_tells_its_kernels_that_it_runs_them(tmp_path):
    """A real nbval run: the notebook itself asserts that it is quiet there."""
    pytest.importorskip("nbval", reason="nbval is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    cells = [nbformat.v4.new_code_cell("from reslib.progress import is_quiet\nassert is_quiet()")]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "quiet.ipynb")
    environment = {k: v for k, v in os.environ.items() if k not in ("RESLIB_PROGRESS", "PYTEST_CURRENT_TEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env"]
    done = subprocess.run(
        [*command, str(tmp_path / "quiet.ipynb")], cwd=tmp_path, capture_output=True, text=True,
        env=environment | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
