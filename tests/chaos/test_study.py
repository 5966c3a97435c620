"""`reslib reproduce` and a kernel, killed in the middle of real notebooks of the study, end as if left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_notebook_runner import alive
from training import rows_of, weights_of

from reslib.notebooks import last_started
from reslib.runs import read_recipe

pytest.importorskip("papermill")

NOTEBOOKS = ("figure6", "figure1")  # share runs
SETTINGS = {"RESLIB_TUNE": "precision=fp32,threads=1,compile=false", "OMP_NUM_THREADS": "1", "RESLIB_DOWNLOAD": "off"}


def reproduce(results: Path, words: Path):
    command = [sys.executable, "-m", "reslib", "reproduce", *NOTEBOOKS, "--preset=smoke", "--device=cpu"]
    command += ["--executor=inline", "--deterministic", "--checkpoint-every=0s", f"--results={results}"]
    with open(words, "a") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=file, start_new_session=True, env=os.environ | SETTINGS, cwd=words.parent
        )


def until(condition, process, seconds=600.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end and process.poll() is None, "it ended, or waited too long"
        time.sleep(0.02)
    return found


def kernels(process) -> list[int]:
    """The processes that a runner has started to execute notebooks in."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"ipykernel" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except (OSError, ValueError, IndexError):  # it ended meanwhile
            continue
    return found


@pytest.mark.long
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here, in which a kernel is found")
def test_real_notebooks_killed_in_the_middle_end_as_if_left_alone(tmp_path):
    whole, results, words = tmp_path / "whole", tmp_path / "results", tmp_path / "words"
    assert reproduce(whole, tmp_path / "words of the whole").wait(600) == 0
    runs, notebooks = results / "smoke" / "runs", results / "smoke" / "notebooks"

    # Killed while the second run is trained: the first one is not trained again
    process = reproduce(results, words)
    until(lambda: len(list(runs.glob("*/checkpoint.pt"))) and list(runs.glob("*/summary.json")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    stamps = {path: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}
    assert stamps and not list(notebooks.glob("[!.]*"))

    # A kernel killed while it executes the first notebook: named, the other one is executed, exit code 1
    process = reproduce(results, words)
    (kernel,) = until(lambda: kernels(process), process)
    until(lambda: last_started(notebooks / f"{NOTEBOOKS[0]}.running.ipynb"), process)
    os.kill(kernel, signal.SIGKILL)
    assert process.wait(600) == 1
    text = words.read_text()
    assert f"FAILED {NOTEBOOKS[0]}: " in text and "the kernel died: killed, or out of memory" in text
    assert {p.name for p in notebooks.glob("*.ipynb")} == {f"{NOTEBOOKS[0]}.failed.ipynb", f"{NOTEBOOKS[1]}.ipynb"}
    assert stamps.items() <= {path: path.stat().st_mtime_ns for path in runs.glob("*/summary.json")}.items()
    stamps = {path: path.stat().st_mtime_ns for path in [*runs.glob("*/*.*"), notebooks / f"{NOTEBOOKS[1]}.ipynb"]}

    # Killed while the first notebook is executed again, then left alone: only that one is executed
    process = reproduce(results, words)
    (kernel,) = until(lambda: kernels(process), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 120
    while alive(kernel):  # a kernel does not outlive its runner
        assert time.monotonic() < end
        time.sleep(0.1)
    assert reproduce(results, words).wait(600) == 0
    assert f"notebook {NOTEBOOKS[1]} was done before this batch was interrupted" in words.read_text()
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}  # nothing was trained or executed twice

    # The same results
    assert sorted(p.name for p in notebooks.iterdir()) == sorted(f"{name}.ipynb" for name in NOTEBOOKS)
    names = [path.parent.name for path in (whole / "smoke" / "runs").glob("*/recipe.json")]
    assert sorted(names) == sorted(path.name for path in runs.iterdir())
    for name in names:
        recipe = read_recipe(runs / name / "recipe.json")
        assert rows_of(runs, recipe) == rows_of(whole / "smoke" / "runs", recipe)
        assert weights_of(runs, recipe) == weights_of(whole / "smoke" / "runs", recipe)
    for kind in ("figures", "tables"):
        for path in (whole / "smoke" / kind).glob("*.*"):
            if path.suffix in (".png", ".csv"):
                assert (results / "smoke" / kind / path.name).read_bytes() == path.read_bytes(), path.name
