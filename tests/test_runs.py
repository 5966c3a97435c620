"""Records: whole files, locks, frames; executors; records of older versions."""

import json
import os
import signal
import time

import pandas as pd
import pytest
import torch
from training import QUIET, processes, rows_of, silent, tiny, train_in_pieces

from reslib import executor, machine
from reslib.errors import UserError
from reslib.executor import execute, missing
from reslib.files import whole_file, write_json, write_text
from reslib.recipe import Recipe
from reslib.records import load_curves, load_runs
from reslib.runs import Run, is_locked, read_json, read_weights, results_root, write_weights
from reslib.train import Execution, Interrupted, train


def wait_for(condition, seconds=200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_a_file_is_whole_or_absent(tmp_path):
    target = tmp_path / "new" / "file.txt"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), whole_file(target) as file:
        file.write("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]
    with pytest.raises(ValueError):
        write_json(target, {"error": float("nan")})  # never a number that JSON does not have
    assert target.read_text() == "old"


def test_what_a_killed_process_left_half_written_is_removed_by_the_next_write(tmp_path):
    names = [".file[1].txt.7.aa.tmp", ".file[1].txt.8.bb.tmp", ".other.txt.7.aa.tmp", "file[1].txt.7.aa.tmp"]
    for name in names:
        (tmp_path / name).write_text("half")
    hours_ago = time.time() - 2 * 3600
    for name in (names[0], *names[2:]):
        os.utime(tmp_path / name, (hours_ago, hours_ago))
    write_text(tmp_path / "file[1].txt", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"file[1].txt", *names[1:]}  # names[1] may be in writing


def test_frames_of_finished_interrupted_running_and_diverged_runs(tmp_path, monkeypatch):
    done, stopped, bad, running = tiny(), tiny(seed=1), tiny(model="own_models:NaNAfter"), tiny(seed=2)
    train(done, tmp_path, execution=QUIET, say=silent)
    train(bad, tmp_path, execution=QUIET, say=silent)
    with pytest.raises(Interrupted):
        train(stopped, tmp_path, execution=Execution(device="cpu", time_limit=0.0), say=silent)
    with Run(tmp_path, running).lock():
        Run(tmp_path, running).begin()
        runs = load_runs(tmp_path).set_index("run")
    status = {r: runs.status[r.run_name] for r in (done, stopped, bad, running)}
    assert list(status.values()) == ["finished", "interrupted", "diverged", "running"]
    assert runs.precision_asked[done.run_name] == "fp32"
    assert runs.parameters[done.run_name] == 216 + 16 + 5130
    assert pd.isna(runs.test_error[stopped.run_name])
    curves = load_curves(runs.reset_index())
    assert set(curves.run) == {done.run_name, bad.run_name}
    assert len(curves[curves.run == done.run_name]) == 4
    assert list(load_runs(tmp_path / "nothing").columns) and load_curves(runs.iloc[:0]).empty


def test_a_recipe_of_an_older_version_is_still_the_same_run(tmp_path):
    recipe = tiny()
    summary = train(recipe, tmp_path, execution=QUIET, say=silent)
    run = Run(tmp_path, recipe)
    old = {k: v for k, v in read_json(run.recipe_file).items() if k not in ("crops", "padding", "teacher", "options")}
    write_json(run.recipe_file, old)
    assert Recipe.from_dict(old) == recipe
    assert train(recipe, tmp_path, execution=QUIET) == summary
    assert load_runs(tmp_path).crops[0] == "sample"


def test_what_does_not_belong_together_is_refused(tmp_path):
    recipe = tiny()
    train(recipe, tmp_path, execution=QUIET, say=silent)
    other = recipe.replace(seed=5)
    os.rename(Run(tmp_path, recipe).path, Run(tmp_path, other).path)
    with pytest.raises(UserError, match=f"holds recipe {recipe.digest}, not {other.digest}: move it away"):
        train(other, tmp_path, execution=QUIET)
    write_json(Run(tmp_path, other).recipe_file, other.to_dict())
    with pytest.raises(UserError, match=f"recorded for recipe {recipe.digest}, not {other.digest}"):
        train(other, tmp_path, execution=QUIET)
    write_json(Run(tmp_path, other).recipe_file, recipe.to_dict())
    Run(tmp_path, other).summary_file.unlink()
    with pytest.raises(UserError, match=f"holds recipe {recipe.digest}, not {other.digest}: move it away"):
        train(other, tmp_path, execution=QUIET)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff", '{"recipe_hash": "00000000"}'])
def test_a_damaged_summary_is_named(tmp_path, text):
    run = Run(tmp_path, tiny())
    write_json(run.recipe_file, run.recipe.to_dict())
    write_text(run.summary_file, text)
    with pytest.raises(UserError, match="summary.json"):
        train(run.recipe, tmp_path, execution=QUIET)


def test_weights_come_back_and_damage_is_named(tmp_path):
    file, model = tmp_path / "weights.safetensors", torch.nn.Linear(3, 2)
    write_weights(file, model)
    assert torch.equal(read_weights(file)["weight"], model.weight)
    content = file.read_bytes()
    for damaged in (b"", content[:9], content[:-1], b"\xff" * 100, b"\xff" * 7 + content[7:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="weights.safetensors cannot be read"):
            read_weights(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(tmp_path / "missing.safetensors")


def hold(path, recipe, seconds):
    with Run(path, recipe).lock():
        time.sleep(seconds)


def test_one_process_at_a_time(tmp_path):
    recipe, said = tiny(), []
    run = Run(tmp_path, recipe)
    holder = processes().Process(target=hold, args=(tmp_path, recipe, 3.0))
    holder.start()
    wait_for(lambda: is_locked(run.path))
    with pytest.raises(UserError, match=f"run {recipe.run_name} is being trained by process {holder.pid} on "):
        train(recipe, tmp_path, execution=Execution(device="cpu", patience=0.0), say=silent)
    summary = train(recipe, tmp_path, execution=QUIET, say=said.append)
    assert f"is being trained by process {holder.pid}" in said[0] and "waiting" in said[0]
    assert summary["status"] == "finished" and not is_locked(run.path)
    holder.join()


def test_two_processes_train_one_run_once(tmp_path):
    recipe, context = tiny(iterations=30), processes()
    both = [context.Process(target=train, args=(recipe, tmp_path, None, "", QUIET, silent)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0]
    assert len(read_json(Run(tmp_path, recipe).summary_file)["sessions"]) == 1


def test_looking_at_a_run_does_not_keep_it_from_being_trained(tmp_path):
    run = Run(tmp_path, tiny())
    with run.lock(0.0):
        assert is_locked(run.path) and is_locked(run.path)
    assert not is_locked(run.path) and not is_locked(tmp_path / "nothing")


def test_results_root(tmp_path, monkeypatch):
    assert results_root(tmp_path) == tmp_path
    monkeypatch.setenv("RESLIB_RESULTS", str(tmp_path / "there"))
    assert results_root() == tmp_path / "there"


def test_inline_lists_failures_and_trains_the_others(tmp_path):
    recipes, said = [tiny(), tiny(train_size=100_000), tiny(model="own_models:Missing"), tiny(seed=1)], []
    failures = execute(recipes, tmp_path, execution=QUIET, say=said.append)
    assert len(failures) == 2
    assert failures[0].startswith(recipes[1].run_name) and "train_size 100000" in failures[0]
    assert "'own_models:Missing' cannot be imported" in failures[1]
    assert all("\n" not in line for line in failures)
    assert missing(recipes, tmp_path) == recipes[1:3]
    assert "4 of 4 runs to train" in said[0]
    assert execute([recipes[0]], tmp_path, say=said.append) == []


def test_local_workers_list_failures_and_train_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(executor.multiprocessing, "get_context", lambda kind: processes())
    recipes = [tiny(seed=0), tiny(train_size=100_000), tiny(seed=1), tiny(model="own_models:NaNAfter")]
    failures = execute(recipes, tmp_path, execution=QUIET, executor="local", workers=2, say=silent)
    assert len(failures) == 1 and "train_size 100000" in failures[0]
    runs = load_runs(tmp_path).set_index("run").status
    assert [runs[r.run_name] for r in recipes if r.train_size < 100] == ["finished", "finished", "diverged"]
    train(recipes[0], tmp_path / "inline", execution=QUIET, say=silent)
    assert rows_of(tmp_path, recipes[0]) == rows_of(tmp_path / "inline", recipes[0])


def test_a_processor_is_measured_before_workers_disturb_each_other(tmp_path, monkeypatch):
    """Also where RESLIB_TUNE says but a part: each of them would measure the rest, all at once."""
    done = []
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32")
    monkeypatch.setattr(executor, "choice", lambda: done.append("measured"))
    monkeypatch.setattr(executor.multiprocessing, "get_context", lambda kind: done.append("workers") or processes())
    for iterations in (1, 500):
        execute([tiny(iterations=iterations, train_size=100_000)], tmp_path, executor="local", workers=2, say=silent)
    assert done == ["workers", "measured", "workers"]


def test_available_memory_is_that_of_the_container(monkeypatch, tmp_path):
    free = machine.available_memory()
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert free is None or machine.available_memory() > 0
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 700\ninactive_file 200\n")
    assert machine.available_memory() in (2200, None)
    (tmp_path / "memory.max").write_text("max\n")
    assert free is None or machine.available_memory() > 2000


def test_a_worker_that_dies_is_reported_and_the_run_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(executor.multiprocessing, "get_context", lambda kind: processes())
    recipe = tiny(iterations=2000, eval_every=100)
    sharp = Execution(device="cpu", deterministic=True, checkpoint_seconds=0.0)
    run = Run(tmp_path, recipe)

    def kill_the_worker(text):
        if "100/2000" in text:
            os.kill(int((run.path / "lock").read_text().split()[1]), signal.SIGKILL)

    failures = execute([recipe], tmp_path, execution=sharp, executor="local", workers=1, say=kill_the_worker)
    assert failures == [f"{recipe.run_name} failed: its process died; the same command continues it"]
    assert run.checkpoint_file.exists() and not is_locked(run.path)


def local_parent(recipe, runs_dir):
    executor.multiprocessing.get_context = lambda kind: processes()
    sharp = Execution(device="cpu", deterministic=True)
    execute([recipe], runs_dir, execution=sharp, executor="local", workers=1, say=silent)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_stop_at_a_checkpoint_when_their_parent_goes(tmp_path, number):
    recipe = tiny(iterations=100_000, eval_every=50)
    run = Run(tmp_path, recipe)
    parent = processes().Process(target=local_parent, args=(recipe, tmp_path))
    parent.start()
    wait_for(run.metrics_file.exists)
    run.checkpoint_file.unlink()
    os.kill(parent.pid, number)
    wait_for(lambda: not is_locked(run.path))
    parent.join()
    assert run.checkpoint_file.exists()


def test_a_time_limit_counts_for_the_whole_call(tmp_path):
    recipes = [tiny(iterations=100_000, eval_every=1000), tiny(seed=1)]
    begun = time.monotonic()
    with pytest.raises(Interrupted, match="time limit of .* s reached; checkpoint at iteration"):
        execute(recipes, tmp_path, execution=Execution(device="cpu", time_limit=0.5), say=silent)
    assert time.monotonic() - begun < 20
    assert Run(tmp_path, recipes[0]).checkpoint_file.exists()
    assert not Run(tmp_path, recipes[1]).path.exists()


def test_other_data_are_refused(tmp_path, monkeypatch):
    recipe = tiny()
    with pytest.raises(Interrupted):
        train(recipe, tmp_path, execution=Execution(device="cpu", time_limit=0.0), say=silent)
    import dataclasses

    from reslib import data

    real = data.load("synthetic")
    monkeypatch.setattr(data, "load", lambda *a: dataclasses.replace(real, fingerprint="0123456789abcdef"))
    with pytest.raises(UserError, match=f"begun on data {real.fingerprint}, but the data here is 0123456789abcdef"):
        train(recipe, tmp_path, execution=QUIET, say=silent)


def test_other_code_is_noted_and_recorded(tmp_path, monkeypatch):
    recipe, said = tiny(), []
    with pytest.raises(Interrupted):
        train(recipe, tmp_path, execution=Execution(device="cpu", time_limit=0.0), say=silent)
    monkeypatch.setattr("reslib.provenance.source", lambda: "0123456789ab")
    summary = train(recipe, tmp_path, execution=QUIET, say=said.append)
    assert "continues with other code" in said[0]
    assert summary["source"] == summary["sessions"][1]["source"] == "0123456789ab"
    assert summary["sessions"][0]["source"] != "0123456789ab"


def test_the_note_is_absent_when_nothing_changed(tmp_path, monkeypatch):
    said = []
    summary, sessions = train_in_pieces(monkeypatch, tiny(), tmp_path, 5, say=said.append)
    assert sessions == 3 and not any("other code" in line for line in said)
    name = tiny().run_name
    assert [line for line in said if "continues" in line] == [
        f"{name}: continues at iteration {at} of 12" for at in (5, 10)
    ]
    train(tiny(), tmp_path, execution=QUIET, say=said.append)
    assert said[-1] == f"{name}: finished already, nothing is trained"
    assert json.loads(json.dumps(summary)) == summary


def test_workers_on_a_processor_share_its_cores_and_its_memory(monkeypatch):
    memory = {"bytes": 100 << 30}
    monkeypatch.setattr(executor, "available_memory", lambda: memory["bytes"])
    monkeypatch.setattr(executor, "cores", lambda: 2)
    assert executor.local_workers(QUIET, 0, 23) == 2
    assert executor.local_workers(QUIET, 0, 1) == 1
    assert executor.local_workers(QUIET, 5, 23) == 5
    monkeypatch.setattr(executor, "cores", lambda: 64)
    assert executor.local_workers(QUIET, 0, 23) == executor.CPU_WORKERS
    memory["bytes"] = 5 << 30
    assert executor.local_workers(QUIET, 0, 23) == 1
    with pytest.raises(UserError, match="device 'tpu'"):
        executor.local_workers(Execution(device="tpu"), 0, 23)


def test_several_runs_of_auto_train_at_once_one_alone_trains_here(tmp_path, monkeypatch):
    monkeypatch.setattr(executor.multiprocessing, "get_context", lambda kind: processes())
    monkeypatch.setattr(executor, "local_workers", lambda execution, asked, runs: min(2, runs))
    recipes, said = [tiny(seed=0), tiny(seed=1)], []
    assert execute(recipes, tmp_path, execution=QUIET, executor="auto", say=said.append) == []
    assert missing(recipes, tmp_path) == []
    assert sorted(line.split()[0] for line in said if ": finished" in line) == ["[1/2]", "[2/2]"]
    pids = []
    alone = {"on_row": lambda row: pids.append(os.getpid())}
    assert execute([tiny(seed=2)], tmp_path, execution=QUIET, executor="auto", say=silent, **alone) == []
    assert set(pids) == {os.getpid()}


def test_the_processor_is_named_by_more_than_its_marketing_name(monkeypatch):
    from reslib import machine, provenance

    flags = "fma avx512_bf16 avx2"
    found = {"model name": "AMD EPYC", "cpu family": "25", "model": "17", "flags": flags}
    monkeypatch.setattr(machine, "cpuinfo", lambda: found)
    assert machine.processor() == "AMD EPYC, family 25, model 17, avx512_bf16"
    assert provenance.environment(torch.device("cpu"))["processor"] == machine.processor()
    monkeypatch.setattr(machine, "cpuinfo", dict)
    assert machine.processor()
