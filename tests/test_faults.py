"""What goes wrong on real machines: full disks, damaged files, signals, clocks."""

import os
import pickle
import re
import signal
import subprocess

import pytest
import torch
from training import CONTEXT, QUIET, processes, rows_of, silent, stop_after, tiny, weights_of

from reslib import job, tune
from reslib.errors import UserError
from reslib.numerics import resolve_device
from reslib.record_checks import Findings, check_records
from reslib.records import load_runs
from reslib.runs import Run
from reslib.train import Execution, Interrupted, train


def interrupted(recipe, folder, monkeypatch, steps=5):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, steps)
        train(recipe, folder, execution=QUIET, say=silent)
    return Run(folder, recipe)


def test_a_full_disk_keeps_the_last_checkpoint(mounted, monkeypatch):
    folder, recipe = mounted("size=220k"), tiny()
    run = interrupted(recipe, folder, monkeypatch)
    before = run.checkpoint_file.read_bytes()
    with open(folder / "ballast", "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        train(recipe, folder, execution=QUIET, say=silent)
    assert run.checkpoint_file.read_bytes() == before
    assert not list(run.path.glob(".*.tmp"))
    (folder / "ballast").unlink()
    assert train(recipe, folder, execution=QUIET, say=silent)["status"] == "finished"


def test_read_only_results(mounted):
    folder, done, new = mounted("size=1m"), tiny(), tiny(seed=1)
    summary = train(done, folder, execution=QUIET, say=silent)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    assert train(done, folder, execution=QUIET) == summary  # reading an ended run needs no lock
    with pytest.raises(UserError, match="cannot write to .*: Read-only file system"):
        train(new, folder, execution=QUIET)


def limited(recipe, folder, size, told):
    """Train where no file may grow beyond `size` bytes; what a full disk does to a write, without a disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        train(recipe, folder, execution=Execution("cpu", True, checkpoint_seconds=0.0), say=silent)
        told.send("finished")
    except UserError as error:
        told.send(str(error))


@pytest.mark.parametrize(("size", "file"), [(30_000, "checkpoint.pt"), (100, "recipe.json")])
def test_a_file_that_cannot_be_written_to_its_end_is_not_there(tmp_path, size, file):
    whole, recipe = tmp_path / "whole", tiny()
    train(recipe, whole, execution=QUIET, say=silent)
    hear, tell = CONTEXT.Pipe(duplex=False)
    process = processes().Process(target=limited, args=(recipe, tmp_path, size, tell))
    process.start()
    said, run = hear.recv(), Run(tmp_path, recipe)
    process.join(60)
    assert re.fullmatch(f"cannot write .*{file}: File too large", said)
    assert not (run.path / file).exists() and not list(run.path.glob(".*.tmp")) and not run.ended
    train(recipe, tmp_path, execution=QUIET, say=silent)
    assert weights_of(tmp_path, recipe) == weights_of(whole, recipe)


@pytest.mark.skipif(not os.path.isdir("/sys"), reason="no /sys here, in which nobody may write")
def test_a_place_where_nobody_may_write():
    with pytest.raises(UserError, match="cannot write to /sys/.*"):
        train(tiny(), "/sys/reslib", execution=QUIET)


@pytest.mark.skipif(os.name != "posix" or not os.geteuid(), reason="permissions do not bind root")
def test_a_folder_without_permission(tmp_path):
    train(tiny(), tmp_path, execution=QUIET, say=silent)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match="cannot write to .*: Permission denied"):
            train(tiny(seed=1), tmp_path, execution=QUIET)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("place", ["a file", "/sys/reslib", "/dev/full/cache"])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, place):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / place))  # an absolute place stays as it is
    tune._store({"precision": "fp32", "threads": 1, "compile": None})
    assert tune._cached() == {}
    assert train(tiny(), tmp_path / "runs", execution=QUIET, say=silent)["status"] == "finished"


def test_what_cannot_be_trained_leaves_no_record(tmp_path):
    for changes, words in (
        ({"train_size": 10**6}, "train_size 1000000"),
        ({"val_size": 10**6}, "val_size 1000000"),
        ({"teacher": "nobody"}, "nobody"),
    ):
        recipe = tiny(**changes)
        with pytest.raises(UserError, match=words):
            train(recipe, tmp_path / "runs", execution=QUIET, say=silent)
        assert not list(tmp_path.rglob("*.json")) and load_runs(tmp_path / "runs").empty
        findings = Findings()
        check_records(tmp_path, findings)  # an empty folder is left, and says nothing
        assert findings == Findings()


def test_a_file_where_a_folder_is_expected(tmp_path):
    run = Run(tmp_path / "runs", tiny())
    run.path.parent.mkdir()
    for place, make in (
        (run.path, lambda: run.path.write_text("")),
        (run.path, lambda: run.path.symlink_to("nowhere")),
        (run.path.parent, lambda: run.path.parent.write_text("")),
    ):
        if place == run.path.parent:
            place.rmdir()
        make()
        with pytest.raises(UserError) as caught:
            train(run.recipe, run.path.parent, execution=QUIET)
        assert str(caught.value) == f"cannot write to {run.path}: {place} is in the way, not a folder"
        place.unlink()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA GPU is here")
def test_a_gpu_that_is_not_here(tmp_path):
    with pytest.raises(UserError, match="device 'cuda' is not here: 0 CUDA devices are visible"):
        train(tiny(), tmp_path, execution=Execution(device="cuda"))


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "cuda:99", "cpu:0", "auto:1", "", "cuda:²"])
def test_devices_that_do_not_exist(name):
    with pytest.raises(UserError, match=re.escape(repr(name))):
        resolve_device(name)


DAMAGE = {
    "empty": lambda b: b"",
    "half": lambda b: b[: len(b) // 2],
    "text": lambda b: b"not a checkpoint",
    "one byte": lambda b: b[:-30] + b"\xff" + b[-29:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_named(tmp_path, monkeypatch, damage):
    run = interrupted(tiny(), tmp_path, monkeypatch)
    run.checkpoint_file.write_bytes(damage(run.checkpoint_file.read_bytes()))
    with pytest.raises(UserError, match="checkpoint.pt is not a usable checkpoint: remove it to start over") as caught:
        train(run.recipe, tmp_path, execution=QUIET, say=silent)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    run.checkpoint_file.unlink()
    assert train(run.recipe, tmp_path, execution=QUIET, say=silent)["status"] == "finished"


@pytest.mark.parametrize("key", ["model", "momenta", "state", "rows", "window", "sessions", "recipe"])
def test_a_checkpoint_without_a_part_is_named(tmp_path, monkeypatch, key):
    run = interrupted(tiny(), tmp_path, monkeypatch)
    saved = torch.load(run.checkpoint_file, weights_only=True)
    del saved[key]
    torch.save(saved, run.checkpoint_file)
    with pytest.raises(UserError, match=f"not a usable checkpoint.*{key}"):
        train(run.recipe, tmp_path, execution=QUIET, say=silent)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("bare", [True, False])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, monkeypatch, bare):
    run = interrupted(tiny(), tmp_path, monkeypatch)
    proof = str(tmp_path / "executed")
    if bare:
        run.checkpoint_file.write_bytes(pickle.dumps(Malicious(proof)))
    else:
        torch.save({"recipe": run.recipe.digest, "model": Malicious(proof)}, run.checkpoint_file)
    with pytest.raises(UserError, match="not a usable checkpoint"):
        train(run.recipe, tmp_path, execution=QUIET, say=silent)
    assert not os.path.exists(proof)
    if not bare:  # the trap works
        torch.load(run.checkpoint_file, weights_only=False)
        assert os.path.exists(proof)


def test_a_checkpoint_of_another_recipe(tmp_path, monkeypatch):
    first, second = (interrupted(tiny(seed=seed), tmp_path, monkeypatch) for seed in (0, 1))
    os.replace(first.checkpoint_file, second.checkpoint_file)
    with pytest.raises(UserError, match=f"belongs to recipe {first.recipe.digest}, not {second.recipe.digest}"):
        train(second.recipe, tmp_path, execution=QUIET, say=silent)


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, monkeypatch):
    run, said = interrupted(tiny(), tmp_path, monkeypatch), []
    here = job.environment

    def elsewhere(device):
        return here(device) | {"torch": "3.0.0", "device_name": "Another CPU (4 threads)"}

    monkeypatch.setattr(job, "environment", elsewhere)
    summary = train(run.recipe, tmp_path, execution=QUIET, say=said.append)
    (note,) = [line for line in said if line.startswith("note: ")]
    assert (
        f"torch 3.0.0 (before: {torch.__version__})" in note and "device_name Another CPU (4 threads) (before: " in note
    )
    assert "other code" not in note
    assert [s["torch"] for s in summary["sessions"]] == [str(torch.__version__), "3.0.0"]


def test_metrics_lost_after_the_last_checkpoint_are_written_again(tmp_path, monkeypatch):
    recipe = tiny()
    train(recipe, tmp_path / "whole", execution=QUIET, say=silent)
    with monkeypatch.context() as patch:
        patch.setattr("reslib.train.finish", lambda job: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(recipe, tmp_path, execution=QUIET, say=silent)
    Run(tmp_path, recipe).metrics_file.unlink()
    train(recipe, tmp_path, execution=QUIET, say=silent)
    assert rows_of(tmp_path, recipe) == rows_of(tmp_path / "whole", recipe)
    assert weights_of(tmp_path, recipe) == weights_of(tmp_path / "whole", recipe)
