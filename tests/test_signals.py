"""SIGTERM, Ctrl-C and the time limit: a checkpoint and a clear line, at every stage of a run."""

import os
import re
import signal
import threading
import time

import pytest
import torch
from training import CONTEXT, QUIET, processes, silent, tiny

from reslib.runs import read_json
from reslib.stopping import StopSignal
from reslib.train import train


def command(arguments, out):
    """`reslib` in a process of its own, its errors in a file."""
    import sys

    from reslib.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, such as CI, start ignoring it
    sys.stderr = open(out, "w", buffering=1)  # noqa: SIM115
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    sys.exit(main(arguments))


def start(tmp_path, *more, iterations=100_000):
    recipe = tiny(iterations=iterations, eval_every=20)
    fields = {k: v for k, v in recipe.essentials().items() if k != "model"}
    options = [f"--{k.replace('_', '-')}={v}" for k, v in fields.items()]
    arguments = ["train", recipe.model, "--preset=smoke", "--device=cpu", "--deterministic", f"--results={tmp_path}"]
    arguments += [*options, *more]
    process = processes().Process(target=command, args=(arguments, str(tmp_path / "err")))
    process.start()
    runs = tmp_path / "smoke" / "runs"
    return process, runs, tmp_path / "err"


def only_run(runs):
    return next(runs.glob("*/metrics.csv")).parent


def wait_for(condition, seconds=200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_is_a_clear_line_too(tmp_path, number):
    out = tmp_path / "err"
    process = processes().Process(target=held_up, args=(str(tmp_path), str(out)))
    process.start()
    wait_for(lambda: (tmp_path / "preparing").exists())
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 75 and out.read_text() == "reslib: interrupted; the same command continues\n"
    assert not list(tmp_path.rglob("*.json"))


def held_up(folder, out):
    """`reslib train` that takes long to prepare."""
    import reslib.train

    def prepare(*arguments):
        open(os.path.join(folder, "preparing"), "w").close()
        time.sleep(600)

    reslib.train.prepare = prepare
    command(["train", "own_models:Small", "--preset=smoke", "--device=cpu", f"--results={folder}"], out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_write_a_checkpoint_and_say_so(tmp_path, number):
    process, runs, err = start(tmp_path)
    wait_for(lambda: list(runs.glob("*/metrics.csv")))
    path = only_run(runs)
    (path / "checkpoint.pt").unlink(missing_ok=True)
    os.kill(process.pid, number)
    process.join(200)
    lines = err.read_text().splitlines()
    assert process.exitcode == 75 and len(lines) == 1, lines
    assert f"{signal.Signals(number).name} received; checkpoint at iteration" in lines[0]
    at = int(re.search(r"iteration (\d+) of", lines[0])[1])
    saved = torch.load(path / "checkpoint.pt", weights_only=True)
    assert saved["state"]["iteration"] == at and saved["sessions"][-1]["to_iteration"] == at
    assert not (path / "summary.json").exists()


def knows_torch(tell):
    import sys

    tell.send([name in sys.modules for name in ("torch._inductor", "own_models", "reslib.executor")])


def test_the_processes_of_these_tests_start_with_everything_imported():
    hear, tell = CONTEXT.Pipe(duplex=False)
    process = processes().Process(target=knows_torch, args=(tell,))
    process.start()
    assert hear.recv() == [True, True, True]
    process.join(60)


def test_the_time_limit_of_the_command_line(tmp_path):
    process, runs, err = start(tmp_path, "--time-limit=0.5s")
    process.join(200)
    (line,) = err.read_text().splitlines()
    assert process.exitcode == 75 and "time limit of 0.5 s reached; checkpoint at iteration" in line
    assert next(runs.glob("*/checkpoint.pt")).exists()
    assert read_json(next(runs.glob("*/recipe.json")))["iterations"] == 100_000


def test_only_an_impatient_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # a process in the background may be born ignoring it
    with StopSignal(None) as stop:
        assert not stop.reason
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):  # launchers repeat signals
            os.kill(os.getpid(), number)
        assert stop.reason == "SIGINT received"
        stop.noticed -= 10
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    assert signal.getsignal(signal.SIGINT) is before


def test_who_presses_ctrl_c_is_answered_at_once_and_once(capfd):
    with StopSignal(None, "resnet20-cifar10-s0") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == "SIGTERM received"
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "resnet20-cifar10-s0: SIGTERM received; stopping with a checkpoint after this batch ..."


def test_training_in_a_thread_leaves_signals_alone(tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train(tiny(iterations=2), tmp_path, execution=QUIET, say=silent))
    )
    thread.start()
    thread.join()
    assert results[0]["status"] == "finished"
