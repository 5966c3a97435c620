"""Live progress: what it shows in a notebook, in a terminal, and when asked to be quiet."""

import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from reslib import progress
from reslib.recipe import Recipe

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


def test_quiet_when_asked(handle, monkeypatch, capsys):
    monkeypatch.setenv("RESLIB_PROGRESS", "off")
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
