"""Several runs at once in one process: each is the run it is alone."""

import time
from types import SimpleNamespace

import pytest
import torch
from training import QUIET, rows_of, silent, tiny, weights_of

from reslib import outcome, together
from reslib.errors import UserError
from reslib.executor import execute, missing
from reslib.runs import Run
from reslib.stopping import Interrupted
from reslib.together import Pace, train_together, turn
from reslib.train import Execution, train

SEEDS = [tiny(seed=s, iterations=6 + 3 * s, options="dropout=0.5") for s in range(3)]


def test_every_seed_is_what_it_is_alone(tmp_path):
    said = []
    assert execute(SEEDS, tmp_path / "all", execution=QUIET, executor="together", workers=3, say=said.append) == []
    for recipe in SEEDS:
        alone = train(recipe, tmp_path / "one", execution=QUIET, say=silent)
        assert rows_of(tmp_path / "all", recipe) == rows_of(tmp_path / "one", recipe)
        assert weights_of(tmp_path / "all", recipe) == weights_of(tmp_path / "one", recipe)
        summary = Run(tmp_path / "all", recipe).summary()
        assert summary["test_error"] == alone["test_error"] and summary["sessions"][0]["runs_at_once"] == 3
    first, last = (next(i for i, line in enumerate(said) if f"seed {s}" in line) for s in (0, 2))
    ends = [i for i, line in enumerate(said) if line.endswith("finished")]
    assert first < last < ends[0], "the runs went on in turn"


def test_groups_follow_each_other(tmp_path):
    said = []
    assert execute(SEEDS, tmp_path, execution=QUIET, executor="together", workers=2, say=said.append) == []
    assert [line.split()[0] for line in said if line.startswith("[")] == ["[2/3]", "[3/3]"]
    assert missing(SEEDS, tmp_path) == []


def test_a_failure_stops_no_other(tmp_path):
    bad = [tiny(model="own_models:Hungry"), tiny(train_size=10**7)]
    failures = execute([bad[0], SEEDS[0], bad[1]], tmp_path, execution=QUIET, executor="together", say=silent)
    assert len(failures) == 2 and "out of memory" in " ".join(failures) and "train_size" in " ".join(failures)
    assert missing([SEEDS[0]], tmp_path) == []
    with pytest.raises(UserError, match="out of memory"):
        train_together([bad[0]], tmp_path, execution=QUIET, say=silent)


def test_stopped_together_they_go_on_together(tmp_path):
    with pytest.raises(Interrupted, match="time limit"):
        train_together(SEEDS, tmp_path / "cut", execution=Execution(device="cpu", time_limit=0.0), say=silent)
    assert all(Run(tmp_path / "cut", r).checkpoint_file.exists() for r in SEEDS)
    threads = torch.get_num_threads()
    train_together(SEEDS, tmp_path / "cut", execution=QUIET, say=silent)
    assert torch.get_num_threads() == threads
    for recipe in SEEDS:
        train(recipe, tmp_path / "whole", execution=QUIET, say=silent)
        assert weights_of(tmp_path / "cut", recipe) == weights_of(tmp_path / "whole", recipe)


def test_a_run_that_cannot_be_finished_stops_no_other(tmp_path, monkeypatch):
    def finish(job):
        if job.recipe.seed == 0:
            raise OSError(28, "No space left on device", "weights.safetensors")
        return outcome.finish(job)

    monkeypatch.setattr(together, "finish", finish)
    failures = execute(SEEDS, tmp_path, execution=QUIET, executor="together", workers=3, say=silent)
    assert len(failures) == 1 and "No space left on device" in failures[0]
    assert missing(SEEDS, tmp_path) == SEEDS[:1] and Run(tmp_path, SEEDS[0]).checkpoint_file.exists()
    monkeypatch.undo()
    assert execute(SEEDS, tmp_path, execution=QUIET, executor="together", say=silent) == [] == missing(SEEDS, tmp_path)


def test_runs_are_held_in_one_order_whatever_was_asked(tmp_path, monkeypatch):
    """Otherwise two processes that ask for the same in other orders would wait for each other for ever."""
    order, lock = [], Run.lock

    def noted(run, *arguments):
        order.append(run.recipe.seed)
        return lock(run, *arguments)

    monkeypatch.setattr(Run, "lock", noted)
    for asked in (SEEDS, SEEDS[::-1]):
        with pytest.raises(Interrupted):
            train_together(asked, tmp_path, execution=Execution(device="cpu", time_limit=0.0), say=silent)
    assert order[:3] == order[3:]


@pytest.mark.parametrize("call", [train_together, lambda recipes, *rest, **more: train(recipes[0], *rest, **more)])
def test_the_time_limit_counts_while_another_process_holds_the_run(tmp_path, call):
    with Run(tmp_path, SEEDS[0]).lock():
        begun = time.monotonic()
        with pytest.raises(Interrupted, match="time limit of 0.5 s reached while another process trains it"):
            call(SEEDS[:1], tmp_path, execution=Execution(device="cpu", time_limit=0.5), say=silent)
        assert time.monotonic() - begun < 30
    assert not Run(tmp_path, SEEDS[0]).recipe_file.exists()


class Event:
    """Of a GPU that is done with a step when it is told so."""

    def __init__(self, done=False):
        self.done = done

    def query(self):
        return self.done

    def synchronize(self):
        self.done = True


def test_no_run_is_given_more_steps_than_it_needs_while_others_wait(monkeypatch):
    gpu = torch.device("cuda")
    given, paces = [], [Pace(gpu), Pace(gpu)]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=given.pop))
    for _ in range(Pace.ahead):
        assert turn(paces) == [0, 1]
        given[:] = [Event(), Event()]
        for pace in paces:
            pace.note()
    first, second = (pace.events[0] for pace in paces)
    second.done = True
    assert turn(paces) == [1] and not first.done
    given[:] = [Event()]
    paces[1].note()
    assert turn(paces) == [0] and first.done  # waited for, instead of asking again and again
    assert turn([Pace(torch.device("cpu"))] * 2) == [0, 1]


def test_an_error_of_the_device_is_told_of_every_run(tmp_path, monkeypatch):
    def broken(paces):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(together, "turn", broken)
    failures = execute(SEEDS, tmp_path, execution=QUIET, executor="together", workers=3, say=silent)
    assert len(failures) == 3 and all("illegal memory access" in line for line in failures)
