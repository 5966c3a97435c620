"""Two processes against one: the same curve, and nothing lost when one of them dies."""

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from imagenet_sets import make_imagenet, make_set
from imagenet_sets import tiny as folders
from training import QUIET, processes, silent, tiny

from reslib.data import imagenet
from reslib.data.imagenet import FolderBatches
from reslib.distributed import Group, check_divisible, own_store
from reslib.errors import UserError
from reslib.job import prepare
from reslib.runs import Run, read_json, read_weights
from reslib.train import Execution, train

HERE = Path(__file__).resolve().parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def member(rank, world, port, recipes, runs_dir, execution, disks, data_root):
    runs_dir = Path(runs_dir) / f"machine{rank}" if disks else runs_dir
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for recipe in recipes:
        train(recipe, runs_dir, data_root, execution=execution, say=silent)


def together(recipes, runs_dir, execution=QUIET, world=2, disks=False, data_root=None):
    """Start the processes of one job; disks: each has a disk of its own, as machines without shared storage."""
    port, context = free_port(), processes()
    members = [
        context.Process(target=member, args=(rank, world, port, recipes, runs_dir, execution, disks, data_root))
        for rank in range(world)
    ]
    for process in members:
        process.start()
    return members


def numbers(runs_dir, recipe) -> list[dict]:
    with open(Run(runs_dir, recipe).metrics_file) as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v or "nan") for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in rows]


def assert_same_curve(one, two, rel=1e-3):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=rel, abs=1e-6, nan_ok=True)


def test_two_processes_give_the_curve_of_one(tmp_path):
    recipes = [
        tiny(accumulation=2, test_size=600, eval_every=2, warmup_lr=0.01, warmup_window=3, val_size=10),
        tiny(accumulation=4, options="dropout=0.5", model="own_models:Small"),
        tiny(accumulation=2, model="own_models:OwnLoss"),  # its own loss, part of the network idle at first
    ]
    for recipe in recipes:
        train(recipe, tmp_path / "one", execution=QUIET, say=silent)
    members = together(recipes, tmp_path / "two")
    for process in members:
        process.join(200)
    assert [p.exitcode for p in members] == [0, 0]
    for recipe in recipes:
        assert_same_curve(numbers(tmp_path / "one", recipe), numbers(tmp_path / "two", recipe))
        ours, theirs = (read_weights(Run(tmp_path / d, recipe).weights_file) for d in ("one", "two"))
        for name in ours:
            if "num_batches" not in name:
                assert (ours[name] - theirs[name]).abs().max() < 1e-4, name
        summary = read_json(Run(tmp_path / "two", recipe).summary_file)
        assert summary["sessions"][0]["processes"] == 2


def test_two_processes_on_image_folders_give_the_curve_of_one(tmp_path):
    """A set in memory, and one of 1000 classes decoded in use: an epoch is four steps, and takes each image once."""
    make_set(tmp_path / "imagenette")
    make_imagenet(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "train" / "n0007" / "0.JPEG").unlink()
    (tmp_path / "imagenet" / "train" / "n0007" / "0.JPEG").write_bytes(b"<html>")
    small = {"model": "resnet18", "options": "width=2", "accumulation": 2, "precision": "fp32", "eval_every": 3}
    recipes = [
        folders(dataset="imagenette", batch_size=8, iterations=9, val_size=3, **small),
        folders(dataset="imagenet", batch_size=250, iterations=6, test_size=401, **small),
    ]
    for recipe in recipes:
        train(recipe, tmp_path / "one", tmp_path, execution=QUIET, say=silent)
    members = together(recipes, tmp_path / "two", data_root=tmp_path)
    for process in members:
        process.join(200)
    assert [p.exitcode for p in members] == [0, 0]
    for recipe in recipes:
        one, two = (Run(tmp_path / d, recipe) for d in ("one", "two"))
        assert_same_curve(numbers(one.path.parent, recipe), numbers(two.path.parent, recipe))
        ours, theirs = (read_weights(run.weights_file) for run in (one, two))
        assert all((ours[n] - theirs[n]).abs().max() < 1e-4 for n in ours if "num_batches" not in n)
        ours, theirs = (read_json(run.summary_file) for run in (one, two))
        assert ours["unreadable"] == theirs["unreadable"] and theirs["sessions"][0]["processes"] == 2
    assert theirs["unreadable"] == ["train/n0007/0.JPEG"]
    batches = FolderBatches(recipe, imagenet.load("imagenet", tmp_path), "cpu", workers=0)
    seen = torch.cat([y for rank in range(2) for _, y in batches.stream(0, 4, rank, 2)])
    assert sorted(seen.tolist()) == sorted([*range(7), 8, *range(8, 1000)])  # the next in place of the unreadable one


@pytest.mark.parametrize("worlds", [(2, 1), (1, 2)])
def test_a_run_continues_with_another_number_of_processes(tmp_path, worlds):
    recipe = tiny(accumulation=2, iterations=400, eval_every=100)
    train(recipe, tmp_path / "one", execution=QUIET, say=silent)
    sharp = Execution(device="cpu", deterministic=True, checkpoint_seconds=0.0)
    members = together([recipe], tmp_path / "two", sharp, worlds[0])
    run = Run(tmp_path / "two", recipe)
    end = time.monotonic() + 200
    while not run.checkpoint_file.exists() and time.monotonic() < end:
        time.sleep(0.01)
    for process in members:
        os.kill(process.pid, signal.SIGTERM)
    for process in members:
        process.join(200)
    assert not run.ended and all(p.exitcode for p in members)
    members = together([recipe], tmp_path / "two", QUIET, worlds[1])
    for process in members:
        process.join(200)
    sessions = read_json(run.summary_file)["sessions"]
    assert [s["processes"] for s in sessions] == list(worlds)
    assert sessions[0]["to_iteration"] == sessions[1]["from_iteration"] > 0
    assert_same_curve(numbers(tmp_path / "one", recipe)[:1], numbers(tmp_path / "two", recipe)[:1], rel=5e-2)


@pytest.mark.parametrize("disks", [False, True])
def test_a_killed_job_continues_with_nothing_repeated_or_lost(tmp_path, disks):
    """Both processes get SIGKILL; whether the second one sees the disk of the first makes no difference."""
    recipe = tiny(accumulation=2, iterations=30, eval_every=10, train_size=200)
    sharp = Execution(device="cpu", deterministic=True, checkpoint_seconds=0.0)
    train(recipe, tmp_path / "whole", execution=QUIET, say=silent)
    place = tmp_path / "killed" / ("machine0" if disks else "")
    members, run = together([recipe], tmp_path / "killed", sharp, disks=disks), Run(place, recipe)
    end = time.monotonic() + 200
    while not run.metrics_file.exists() and time.monotonic() < end:
        time.sleep(0.005)
    for process in members:
        process.kill()
    for process in members:
        process.join(200)
    assert not run.ended and [p.exitcode for p in members] == [-signal.SIGKILL] * 2
    for process in (again := together([recipe], tmp_path / "killed", disks=disks)):
        process.join(200)
    assert [p.exitcode for p in again] == [0, 0]
    first, second = read_json(run.summary_file)["sessions"]
    assert first["to_iteration"] == second["from_iteration"] >= 10 and second["to_iteration"] == 30
    assert_same_curve(numbers(tmp_path / "whole", recipe), numbers(place, recipe), rel=1e-3)
    ours, theirs = (read_weights(Run(d, recipe).weights_file) for d in (tmp_path / "whole", place))
    for name in ours:
        if "num_batches" not in name:  # counts micro-batches, of which one process sees both
            assert (ours[name] - theirs[name]).abs().max() < 1e-4, name


def test_processes_with_different_data_are_told_so(tmp_path, monkeypatch):
    class Two(Group):
        def gather(self, value):
            return [value, "ffff"]

    with pytest.raises(UserError, match="read different data: fingerprints .*ffff"):
        prepare(Run(tmp_path, tiny()), None, "", QUIET, Two())


def worker(launchers: list[subprocess.Popen], rank: int) -> int:
    """The process of this rank of a torchrun job."""
    for task in (task for job in launchers for task in Path(f"/proc/{job.pid}/task").iterdir()):
        for pid in (task / "children").read_text().split():
            if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return int(pid)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_restarts_after_a_kill(tmp_path, rank, nodes):
    """Two processes under one launcher, or under a launcher each as on two machines; one is killed."""
    recipe = tiny(accumulation=2, iterations=60, eval_every=10, batch_size=16, model="resnet8")
    train(recipe, tmp_path / "one" / "smoke" / "runs", execution=QUIET, say=silent)
    fields = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in recipe.to_dict().items()}
    options = [f"--{k.replace('_', '-')}={v}" for k, v in fields.items() if k != "model"]  # all: smoke has its own
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={2 // nodes}", "--max-restarts=1"]
    command += [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
    command += ["--rdzv-id=job", "--local-addr=localhost", "-m", "reslib", "train", recipe.model]
    command += ["--preset=smoke", "--device=cpu"]
    command += ["--deterministic", "--checkpoint-every=0s", f"--results={tmp_path / 'two'}", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    with contextlib.ExitStack() as files:
        errors = [tmp_path / f"errors{node}" for node in range(nodes)]
        launchers = [
            subprocess.Popen(command, env=environment, stderr=files.enter_context(open(file, "w"))) for file in errors
        ]
        run = Run(tmp_path / "two" / "smoke" / "runs", recipe)
        end = time.monotonic() + 250
        while not run.metrics_file.exists() and time.monotonic() < end and launchers[0].poll() is None:
            time.sleep(0.02)
        assert launchers[0].poll() is None, "it ended, or trained something else"
        os.kill(worker(launchers, rank), signal.SIGKILL)
        codes = [job.wait(timeout=250) for job in launchers]
    assert codes == [0] * nodes, "\n".join(file.read_text()[-6000:] for file in errors)
    sessions = read_json(run.summary_file)["sessions"]
    assert len(sessions) == 2 and sessions[1]["from_iteration"] == sessions[0]["to_iteration"] >= 10
    assert_same_curve(
        numbers(tmp_path / "one" / "smoke" / "runs", recipe)[:3], numbers(run.path.parent, recipe)[:3], 2e-2
    )


def test_processes_of_a_new_attempt_do_not_meet_those_of_the_last(monkeypatch):
    """The common store still names a port where nobody answers, and one where another attempt's store does."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    for left in (f"{free_port()} dead", None):
        common, found = dist.HashStore(), []
        other = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        other.set("token", "another")
        common.set("reslib", left or f"{other.port} dead")
        second = threading.Thread(target=lambda c=common, f=found: f.append(own_store(c, 1, 2)))
        second.start()
        time.sleep(0.5)
        assert not found
        first = own_store(common, 0, 2)
        second.join(60)
        first.set("who", "first of two")
        assert found[0].get("who") == b"first of two"
    common.set("reslib", f"{free_port()} dead")
    with pytest.raises(RuntimeError):
        own_store(common, 1, 2, patience=0)


def test_micro_batches_must_be_shared_evenly():
    check_divisible(tiny(accumulation=4), 2)
    with pytest.raises(UserError, match="accumulation 1 cannot be shared by 2 processes: set it to a multiple of 2"):
        check_divisible(tiny(), 2)
    with pytest.raises(UserError, match="batch_size 16 cannot be shared equally by 3 processes: allowed are 1, 2"):
        check_divisible(tiny(batch_size=16, accumulation=4), 3)
