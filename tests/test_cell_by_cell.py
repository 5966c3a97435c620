"""Every notebook as VS Code runs it: cell by cell in one kernel, then all of them once more."""

import json
from pathlib import Path

import pytest
from own_results import with_results

ROOT = Path(__file__).resolve().parent.parent
OF_TABLES = ("cifar10_table", "imagenet_tables")  # these draw nothing
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def of_type(outputs, kind):
    return [o for o in outputs if kind in o.get("data", {})]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cell_by_cell_twice(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    for name in ("RESLIB_PROGRESS", "PYTEST_CURRENT_TEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RESLIB_PRESET", "smoke")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.reads(with_results(path, tmp_path / "results"), as_version=4)
    (tmp_path / "elsewhere").mkdir()  # VS Code starts kernels in the workspace's folder or the notebook's: any must do
    where = {"metadata": {"path": str(tmp_path / "elsewhere")}}
    client = nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=where)
    passes = []
    with client.setup_kernel():
        for _ in range(2):
            for index, cell in enumerate(book.cells):
                client.execute_cell(cell, index)
            passes.append([json.loads(json.dumps(c.outputs)) for c in book.cells if c.cell_type == "code"])
    counts = [c.execution_count for c in book.cells if c.cell_type == "code"]
    assert counts == list(range(len(counts) + 1, 2 * len(counts) + 1))
    first, second = ([o for outputs in run for o in outputs] for run in passes)
    kind = "text/html" if path.stem in OF_TABLES else "image/png"
    assert of_type(first, kind)
    assert len(of_type(second, "image/png")) == len(of_type(first, "image/png"))
    bars = [sum("reslib-progress" in o["data"]["text/html"] for o in of_type(outputs, "text/html"))
            for outputs in (first, second)]  # fmt: skip
    trains = any("study.train()" in c.source for c in book.cells)
    assert bars == ([1, 0] if trains else [0, 0])  # the second time nothing is left to train
