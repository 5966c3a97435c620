"""A sound results folder for the tests of `reslib verify`, and ways to damage it."""

import shutil
from pathlib import Path

import pytest
from fake_records import change_summary, write_run

from reslib import artefacts, verify
from reslib.cli import main
from reslib.files import sha256
from reslib.presets import PRESETS
from reslib.results_index import END, START
from reslib.studies import figure1

ROOT = Path(__file__).parent.parent
QUICK = PRESETS["quick"]
LENGTH = QUICK.scale["iterations"]


def write_results(root):
    for i, recipe in enumerate(figure1(QUICK, "cifar10", 2)):
        error = (0.1 if recipe.model == "plain20" else 0.2) + i / 100  # far enough apart for a claim to hold
        write_run(root / "results" / "quick" / "runs", recipe, error=error, weights=b"w")
    artefacts.write_all(root / "results" / "quick")
    (root / "README.md").write_text(f"{START}\n{END}\n")
    assert main(["verify", str(root / "results"), "--write-index"]) == 0


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    write_results(root)
    return root


@pytest.fixture
def results(sound, tmp_path):
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    return tmp_path / "results"


@pytest.fixture
def fast(monkeypatch):
    """Records only: figures and tables are not drawn again."""
    monkeypatch.setattr(verify, "check_drawings", lambda *a: None)


@pytest.fixture
def tables(monkeypatch, results):
    """Of the artefacts the tables alone that the README quotes."""
    keep(monkeypatch, results, "cifar10", "by_depth", "claims")


@pytest.fixture
def figure(monkeypatch, results):
    """Of the artefacts Figure 1 alone."""
    keep(monkeypatch, results, "figure1")


def keep(monkeypatch, results, *names):
    (results / "README.md").unlink()
    (results.parent / "README.md").unlink() if "figure1" in names else None
    written = [p.name for n in names for p in artefacts.write(n, results / "quick", results.parent / "fresh")]
    for path in (results / "quick").glob("[ft]*/*.*"):
        if path.name not in written:
            path.unlink()
    monkeypatch.setattr(artefacts, "ARTEFACTS", {name: artefacts.ARTEFACTS[name] for name in names})


def runs_of(results):
    from reslib.runs import Run

    return [Run(results / "quick" / "runs", recipe) for recipe in figure1(QUICK, "cifar10", 2)]


def rewrite(run, change):
    """Change metrics.csv and sign the summary anew, so that only the rows themselves are at fault."""
    header, *rows = run.metrics_file.read_text().splitlines()
    run.metrics_file.write_text("\n".join([header, *change(rows)]) + "\n")
    change_summary(run, metrics_sha256=sha256(run.metrics_file))


def found(results):
    return verify.verify(results)


def only(findings):
    (problem,) = findings.problems
    return problem
