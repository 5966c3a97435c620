"""Runs on a real Ray cluster of several nodes (raylets) on this machine, one of which is killed in mid-training.

The long tests start clusters; the others check what is said when there is none.
"""

import csv
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from reslib import cluster
from reslib.errors import UserError
from reslib.executor import execute, missing
from reslib.job import Execution
from reslib.presets import preset_of
from reslib.recipe import Recipe
from reslib.runs import Run, read_json
from reslib.stopping import Interrupted
from reslib.studies import plan

CPU = Execution(device="cpu", checkpoint_seconds=0.2)
SMALL = {"batch_size": 32, "train_size": 256, "test_size": 64, "precision": "fp32", "dataset": "synthetic"}
TIMES = ("seconds", "images_per_second")


def recipe(iterations, seed=0, model="resnet8"):
    return Recipe(model, iterations=iterations, eval_every=max(1, iterations // 10), seed=seed, **SMALL)


def rows(run):
    """The evaluations without the two columns that measure time."""
    with open(run.metrics_file) as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def wait_for(condition, seconds=400, what="condition"):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not come within {seconds} s"
        time.sleep(0.1)


def on_ray(recipes, runs_dir, say=print, execution=CPU, address="auto", **options):
    return execute(recipes, runs_dir, execution=execution, executor="ray", address=address, say=say, **options)


def test_without_ray_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'ray is not installed: pip install "reslib\[cluster\]"'):
        on_ray([recipe(2)], tmp_path)


@pytest.mark.parametrize("gpus", [0, -1, 1.5])
def test_impossible_fractions_are_named(tmp_path, gpus):
    with pytest.raises(UserError, match=f"gpus_per_run {gpus} is out of range"):
        on_ray([recipe(2)], tmp_path, gpus_per_run=gpus)


def test_no_cluster_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match="no Ray cluster at address '127.0.0.1:1'") as caught:
        on_ray([recipe(2)], tmp_path, address="127.0.0.1:1")
    assert "\n" not in str(caught.value)


class FakeRay:
    """What `_needs` asks of a cluster."""

    def __init__(self, *nodes):
        self.resources = nodes

    def cluster_resources(self):
        return {"GPU": sum(n.get("GPU", 0) for n in self.resources)} if any("GPU" in n for n in self.resources) else {}

    def nodes(self):
        return [{"Alive": True, "Resources": n} for n in self.resources]


@pytest.mark.parametrize(
    "nodes, device, wanted, where",
    [([{"CPU": 8, "GPU": 4}], "auto", {"num_cpus": 1, "num_gpus": 0.25}, "cuda"),
     ([{"CPU": 8, "GPU": 4}], "cuda:3", {"num_cpus": 1, "num_gpus": 0.25}, "cuda"),
     ([{"CPU": 8, "GPU": 4}], "cpu", {"num_cpus": 2, "num_gpus": 0}, "cpu"),
     ([{"CPU": 1}, {"CPU": 1}], "auto", {"num_cpus": 1, "num_gpus": 0}, "cpu"),
     ([{"CPU": 8}], "cuda", {"num_cpus": 1, "num_gpus": 0.25}, "cuda")],
)  # fmt: skip
def test_what_a_run_asks_for(nodes, device, wanted, where):
    said = []
    needs, execution = cluster._needs(FakeRay(*nodes), Execution(device=device, time_limit=9), 0.25, said.append)
    assert needs == wanted and execution.device == where and execution.time_limit is None
    assert bool(said) == (device == "cuda")


@pytest.fixture
def start(monkeypatch):
    """Starts a cluster: start(resources of the head, resources of a node, ...)."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    services = pytest.importorskip("ray._private.services")
    monkeypatch.setattr(services, "get_node", patient(services.get_node))  # Ray gives a node 30 s to start
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", "240")
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "300000")
    memory = {"object_store_memory": 80_000_000, "include_dashboard": False}
    system = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 8}
    clusters = []

    def starting(head, *others):
        clusters.append(Cluster(initialize_head=True, head_node_args={**head, **memory, "_system_config": system}))
        clusters[0].workers = [clusters[0].add_node(**other, **memory) for other in others]
        clusters[0].wait_for_nodes(timeout=240)
        return clusters[0]

    yield starting
    if ray.is_initialized():
        ray.shutdown()
    for cluster_ in clusters:
        cluster_.shutdown()


@pytest.fixture
def nodes(start):
    """A head without processors and two nodes with one each: every run sits on one of the two."""
    return start({"num_cpus": 0, "num_gpus": 0}, *({"num_cpus": 1, "num_gpus": 0} for _ in range(2)))


def patient(ask, seconds=300):
    """`ask`, until it answers: on a busy machine a node takes its time."""

    def asking(*arguments):
        end = time.monotonic() + seconds
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)

    return asking


def inline(recipes, runs_dir):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert execute(recipes, runs_dir, execution=CPU, say=lambda text: None) == []
    finally:
        torch.set_num_threads(threads)
    return [rows(Run(runs_dir, r)) for r in recipes]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_node_loses_nothing(nodes, tmp_path):
    """Two long runs, one per node; the node of the first is killed; the run ends on the other with inline's rows."""
    recipes = [recipe(300, seed) for seed in (0, 1)]
    run = Run(tmp_path / "ray", recipes[0])
    result = {}

    def drive():
        result["failures"] = on_ray(recipes, tmp_path / "ray", address=nodes.address)

    driver = threading.Thread(target=drive)
    driver.start()
    kill_the_node_of(run, nodes)
    driver.join(600)
    assert result["failures"] == []
    assert [rows(Run(tmp_path / "ray", r)) for r in recipes] == inline(recipes, tmp_path / "inline")
    sessions = read_json(run.summary_file)["sessions"]
    assert len(sessions) >= 2 and sessions[-1]["from_iteration"] > 0  # continued, not begun again


def kill_the_node_of(run, nodes):
    """Kill the node that trains `run`, once it has written a checkpoint."""
    wait_for(lambda: run.checkpoint_file.exists(), what="the first checkpoint")
    holder = int((run.path / "lock").read_text().split()[1])
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes.workers}
    parents = ancestors(holder)
    nodes.remove_node(next(node for pid, node in raylets.items() if pid in parents), allow_graceful=False)
    assert not run.ended, "the node was killed too late for this test to mean anything"


def ancestors(pid):
    found = []
    while pid > 1:
        found.append(pid)
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return found


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_command_on_a_cluster_that_loses_a_node(nodes, tmp_path):
    """`reslib reproduce --executor ray` as it is typed: a node is killed in the middle, the command ends well, the same
    command again finds everything done, and the rows are those of inline."""
    preset = preset_of("smoke+iterations=240,eval_every=24,precision=fp32")
    recipes = [r for r in plan(preset, {"cifar": "synthetic"}, 1, ["figure1"]) if r.model in ("plain20", "resnet20")]
    assert len(recipes) == 2
    command = [sys.executable, "-m", "reslib", "reproduce", "figure1", "--preset", preset.name, "--runs-only"]
    command += ["--models=plain20,resnet20", "--executor=ray", f"--address={nodes.address}", "--gpus-per-run=0.5"]
    command += ["--device=cpu", "--checkpoint-every=0.2s", f"--results={tmp_path}"]
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    runs = [Run(tmp_path / preset.name / "runs", r) for r in recipes]
    kill_the_node_of(runs[0], nodes)
    out, _ = begun.communicate(timeout=700)
    assert begun.returncode == 0 and "2 of 2 runs to train" in out and "[2/2]" in out, out
    assert all(run.summary()["status"] == "finished" for run in runs)
    again = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert again.returncode == 0 and again.stdout == "", again.stdout + again.stderr
    assert [rows(run) for run in runs] == inline(recipes, tmp_path / "inline")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_failures_are_named_and_the_rest_trained(nodes, tmp_path):
    good, bad = recipe(4), recipe(4).replace(train_size=9_999, val_size=9_999)
    said = []
    failures = on_ray([bad, good], tmp_path, said.append, address=nodes.address)
    assert len(failures) == 1 and failures[0].startswith(f"{bad.run_name} failed: val_size 9999")
    assert Run(tmp_path, good).summary()["status"] == "finished"
    assert any(good.run_name in text and "finished" in text for text in said)
    # a driver that starts again finds what is done: only the failed one is tried
    assert missing([bad, good], tmp_path) == [bad]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_time_limit_leaves_checkpoints(nodes, tmp_path):
    recipes = [recipe(20_000, seed) for seed in (0, 1, 2)]  # three for two places: one is never begun
    limited = Execution(device="cpu", checkpoint_seconds=600, time_limit=90)
    with pytest.raises(Interrupted, match="time limit of 90 s reached"):
        on_ray(recipes, tmp_path, execution=limited, address=nodes.address)
    begun = [r for r in recipes if Run(tmp_path, r).checkpoint_file.exists()]
    assert 1 <= len(begun) <= 2
    for r in begun:
        assert 0 < torch.load(Run(tmp_path, r).checkpoint_file, weights_only=True)["state"]["iteration"] < 20_000


DRIVER = """
import sys
from reslib.executor import execute
from reslib.job import Execution
from reslib.recipe import Recipe
from reslib.stopping import Interrupted
recipe = Recipe.from_dict(__import__("json").loads(sys.argv[1]))
try:
    print(execute([recipe], sys.argv[2], execution=Execution(device="cpu"), executor="ray", address=sys.argv[3]))
except Interrupted as stop:
    print("interrupted:", stop)
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ctrl_c_and_a_second_driver(nodes, tmp_path):
    """Ctrl-C at the driver writes a checkpoint far away; the same command finishes the run as if nothing had been."""
    import json

    one = recipe(300)
    run = Run(tmp_path / "ray", one)
    command = [sys.executable, "-c", DRIVER, json.dumps(one.to_dict()), str(tmp_path / "ray"), nodes.address]
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(lambda: run.metrics_file.exists(), what="the first evaluation")
    begun.send_signal(signal.SIGINT)
    out, _ = begun.communicate(timeout=400)
    assert "interrupted: SIGINT received" in out
    assert run.checkpoint_file.exists() and not run.ended
    second = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert second.returncode == 0 and second.stdout.strip().endswith("[]"), second.stdout + second.stderr
    assert rows(run) == inline([one], tmp_path / "inline")[0]
    assert len(read_json(run.summary_file)["sessions"]) == 2


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("share, at_once", [(0.25, 4), (1, 1)])
def test_thin_nets_share_a_gpu(start, tmp_path, monkeypatch, share, at_once):
    """Four runs on a real cluster with four processors and one GPU, in name alone: nothing is computed on it."""
    together = start({"num_cpus": 4, "num_gpus": 1})

    def stand_in(fields, runs_dir, data_root, preset, execution, threads):
        """Waits until as many run as shall run at once; writes down how many it saw, and its GPU."""
        from pathlib import Path

        def count(kind):
            return len(list(Path(runs_dir).glob(f"*.{kind}")))

        mine, end = Path(runs_dir) / str(fields["seed"]), time.monotonic() + 240
        mine.with_suffix(".begun").touch()
        while count("begun") < at_once and time.monotonic() < end:
            time.sleep(0.1)
        running = count("begun") - count("ended")
        mine.with_suffix(".txt").write_text(f"{running} {os.environ['CUDA_VISIBLE_DEVICES']} {execution.device}")
        time.sleep(2)
        mine.with_suffix(".ended").touch()
        return "failed", "nothing was trained"

    monkeypatch.setattr(cluster, "_train_one", stand_in)
    four = [recipe(2, seed) for seed in range(4)]
    wherever = Execution(device="auto")
    assert len(on_ray(four, tmp_path, execution=wherever, address=together.address, gpus_per_run=share)) == 4
    seen = [(tmp_path / f"{seed}.txt").read_text().split() for seed in range(4)]
    assert max(int(running) for running, *_ in seen) == at_once
    assert {(gpu, device) for _, gpu, device in seen} == {("0", "cuda")}
