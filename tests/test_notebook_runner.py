"""papermill through our runner: one bad notebook stops no other, and a partial one is never taken for finished."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from reslib import notebooks
from reslib.errors import UserError
from reslib.files import alone
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
    values = {"notebooks": [], "preset": "smoke", "data_root": None, "seeds": 0, "device": "auto", "traceback": False}
    return SimpleNamespace(**{**values, **changes})


def test_failures_are_listed_and_the_others_run(folder, tmp_path, capsys):
    write(folder, "a_bad", 'preset: str = "auto"', "1 / 0")
    write(folder, "b_good", 'preset: str = "auto"', 'assert preset == "smoke"')
    assert notebooks.run_notebooks(arguments(), tmp_path) == 1
    out = tmp_path / "smoke" / "notebooks"
    assert sorted(p.name for p in out.iterdir()) == [".batch.json", "a_bad.failed.ipynb", "b_good.ipynb"]
    said = capsys.readouterr()
    assert "1 of 2 notebooks done" in said.out
    assert "FAILED a_bad: cell 3: ZeroDivisionError: division by zero" in said.err


def test_bad_input_is_one_line_and_its_traceback_stands_in_the_notebook(folder, tmp_path, capfd):
    cell = "from reslib.errors import UserError\nraise UserError('no such thing')"
    write(folder, "bad", 'preset: str = "auto"', cell)
    assert notebooks.run_notebooks(arguments(), tmp_path) == 1
    said, failed = capfd.readouterr(), tmp_path / "smoke" / "notebooks" / "bad.failed.ipynb"
    of_zmq = "Assertion failed: pfd.revents"  # which it prints now and then as a kernel ends on a busy machine
    lines = [line for line in said.err.splitlines() if not line.startswith(of_zmq)]
    assert lines == [f"FAILED bad: cell 3: no such thing (see {failed})"]  # and nothing of the kernel
    assert "Traceback" not in said.out and "Traceback" in failed.read_text()
    assert notebooks.run_notebooks(arguments(traceback=True), tmp_path) == 1
    assert "raise UserError('no such thing')" in capfd.readouterr().err


def test_a_killed_runner_leaves_no_notebook_that_looks_finished(folder, tmp_path):
    write(folder, "slow", 'preset: str = "auto"', "import time; time.sleep(600)")
    code = (
        "from types import SimpleNamespace as N; from pathlib import Path; from reslib.notebooks import run_notebooks;"
        "run_notebooks(N(notebooks=[], preset='smoke', data_root=None, seeds=0, device='auto',"
        " traceback=False), Path(r'%s'))"
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


RUNNER = """
import sys
from pathlib import Path
from types import SimpleNamespace

from reslib.cli import _line
from reslib.notebooks import run_notebooks

arguments = SimpleNamespace(notebooks=[], preset="smoke", data_root=None, seeds=0, device="auto", traceback=False)
try:
    sys.exit(run_notebooks(arguments, Path(sys.argv[1])))
except KeyboardInterrupt as stop:
    print(_line(stop))
    sys.exit(1)
"""


def in_background(tmp_path):
    """The runner in a process of its own, its words in a file."""
    with open(tmp_path / "words", "w") as words:
        return subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(tmp_path)], start_new_session=True, stdout=words, stderr=words
        )


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def sleeper(pid: Path, until: Path) -> str:
    """A cell that writes its kernel's number and sleeps, once `until` is there no more."""
    return (
        f"import os, time\nopen(r'{pid}', 'w').write(str(os.getpid()))\n"
        f"if not os.path.exists(r'{until}'):\n    time.sleep(600)"
    )


def test_a_batch_that_was_killed_goes_on_where_it_was(folder, tmp_path, capsys):
    executions, pid, go = (tmp_path / name for name in ("executions", "pid", "go"))
    write(folder, "a_first", 'preset: str = "auto"', f"open(r'{executions}', 'a').write('x')")
    write(folder, "b_slow", 'preset: str = "auto"', sleeper(pid, go))
    process = in_background(tmp_path)
    try:
        wait_for(lambda: pid.exists() and pid.read_text())
    finally:
        os.kill(process.pid, signal.SIGKILL)  # the runner alone: its kernel must not outlive it for long
        process.wait()
    out = tmp_path / "smoke" / "notebooks"
    assert sorted(p.name for p in out.iterdir()) == [".batch.json", "a_first.ipynb", "b_slow.running.ipynb"]
    wait_for(lambda: not alive(int(pid.read_text())))
    go.touch()
    assert notebooks.run_notebooks(arguments(), tmp_path) == 0
    assert "notebook a_first was done before this batch was interrupted" in capsys.readouterr().out
    assert executions.read_text() == "x"
    assert sorted(p.name for p in out.iterdir()) == ["a_first.ipynb", "b_slow.ipynb"]
    assert notebooks.run_notebooks(arguments(notebooks=["a_first"]), tmp_path) == 0  # a new batch does it again
    assert executions.read_text() == "xx"


def test_a_second_runner_waits_for_the_first(folder, tmp_path, capfd):
    write(folder, "a", 'preset: str = "auto"')
    (tmp_path / "smoke").mkdir()
    codes = []
    with alone(tmp_path / "smoke" / "lock"):
        second = threading.Thread(target=lambda: codes.append(notebooks.run_notebooks(arguments(), tmp_path)))
        second.start()
        time.sleep(1)
        assert not list((tmp_path / "smoke" / "notebooks").iterdir())
    second.join(120)
    assert codes == [0]
    assert f"process {os.getpid()} on {socket.gethostname()} executes notebooks into" in capfd.readouterr().out


def test_what_a_killed_batch_has_done_counts_only_while_nothing_changed(folder, tmp_path):
    write(folder, "a", 'preset: str = "auto"')
    out = tmp_path / "smoke" / "notebooks"
    out.mkdir(parents=True)

    def batch(**values):
        return notebooks.Batch(out, ["a"], {"preset": "smoke", **values})

    (out / "a.ipynb").write_text("{}")
    assert not batch().has("a")  # a notebook that is there is not one of this batch
    batch().add("a")
    assert batch().has("a") and not batch(seeds=3).has("a")
    record = tmp_path / "smoke" / "runs" / "some" / "summary.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    os.utime(record, (1, 1))  # trained since, under a clock that goes backwards
    assert not batch().has("a")
    batch().add("a")
    assert batch().has("a")
    record.write_text("{ }")
    assert not batch().has("a")
    batch().add("a")
    write(folder, "a", 'preset: str = "quick"')
    assert not batch().has("a")
    batch().add("a")
    (out / "a.ipynb").unlink()
    assert not batch().has("a")
    (out / ".batch.json").write_text("{")
    assert not batch().has("a")


def test_a_kernel_that_dies_is_named_with_its_cell(folder, tmp_path, capsys):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    write(folder, "a_killed", 'preset: str = "auto"', "x = 1", kill, "y = 2")
    write(folder, "b_good", 'preset: str = "auto"', 'assert preset == "smoke"')
    assert notebooks.run_notebooks(arguments(), tmp_path) == 1
    out, said = tmp_path / "smoke" / "notebooks", capsys.readouterr()
    assert "1 of 2 notebooks done" in said.out
    assert "FAILED a_killed: cell 4: DeadKernelError: the kernel died: killed, or out of memory" in said.err
    assert sorted(p.name for p in out.iterdir()) == [".batch.json", "a_killed.failed.ipynb", "b_good.ipynb"]
    write(folder, "a_killed", 'preset: str = "auto"')
    assert notebooks.run_notebooks(arguments(), tmp_path) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a_killed.ipynb", "b_good.ipynb"]


def test_sigterm_ends_the_kernel_too_and_says_how_to_go_on(folder, tmp_path):
    pid = tmp_path / "pid"
    write(folder, "slow", 'preset: str = "auto"', sleeper(pid, tmp_path / "never"))
    process = in_background(tmp_path)
    wait_for(lambda: pid.exists() and pid.read_text())
    process.terminate()
    assert process.wait(60) == 1
    assert (tmp_path / "words").read_text() == "notebook slow ...\ninterrupted; the same command continues\n"
    wait_for(lambda: not alive(int(pid.read_text())))


def test_papermill_alone_names_a_misspelled_parameter(folder, tmp_path):
    parameters = 'preset: str = "auto"  # help\nseeds: int = 0  # help'
    write(folder, "n", parameters, "from reslib.notebook import open_folder", "open_folder(preset)")
    command = [sys.executable, "-m", "papermill", str(folder / "n.ipynb"), str(tmp_path / "out.ipynb")]
    done = subprocess.run([*command, "-p", "sedes", "3"], capture_output=True, text=True)
    assert done.returncode and "notebook parameter 'sedes' is unknown: allowed are preset, seeds" in done.stderr


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
        ({"data_root": "/no/such/folder", "preset": "quick"}, "data_root '/no/such/folder' is not a folder"),
        ({"data_root": "a\0b"}, "data_root 'a.*' cannot be a folder"),
        ({"results": "a\0b"}, "results 'a.*' cannot be a folder"),
        ({"train": "no"}, "train 'no' is of type str: allowed is bool"),
        ({"seeds": True}, "seeds True is of type bool: allowed is int"),
        ({"models": "no.such.module:Net"}, "model 'no.such.module:Net' cannot be imported"),
    ],
)
def test_bad_notebook_parameters_are_one_clear_line(tmp_path, bad, message):
    values = {"preset": "smoke", "results": str(tmp_path), **bad}
    with pytest.raises(UserError, match=message):
        open_study("cifar10_table", **values)  # before anything is trained


def test_folder_of_a_preset_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RESLIB_PRESET", "smoke")
    assert open_folder("auto", str(tmp_path)).folder == tmp_path / "smoke"
