"""A signal during an evaluation ends it; the next session begins with it, and nothing else is different."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from own_models import Small
from test_distributed import assert_same_curve, free_port, member, numbers
from test_runs import hold
from training import QUIET, processes, rows_of, silent, tiny, weights_of

from reslib import data, distributed, outcome
from reslib.errors import UserError
from reslib.measure import GivenUp, error_and_loss
from reslib.runs import Run, is_locked
from reslib.train import Execution, Interrupted, train

CPU = torch.device("cpu")


def struck_in(monkeypatch, number: int, strike) -> None:
    """From here on `strike` is called at the beginning of this measurement, counted from 1."""
    calls = []

    def measured(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            strike()
        return error_and_loss(*arguments)

    monkeypatch.setattr(outcome, "error_and_loss", measured)


@pytest.mark.parametrize("number", [1, 4, 7, 8])  # the test images first, then those to validate on; four evaluations
def test_the_evaluation_is_left_to_the_next_session(tmp_path, monkeypatch, number):
    recipe = tiny(val_size=10)
    train(recipe, tmp_path / "whole", execution=QUIET, say=silent)
    with monkeypatch.context() as patch:
        began = []

        def strike():
            began.append(time.perf_counter())
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGTERM)

        struck_in(patch, number, strike)
        start = time.perf_counter()
        at = 3 * ((number + 1) // 2)
        with pytest.raises(Interrupted, match=f"SIGTERM received; checkpoint at iteration {at} of 12"):
            train(recipe, tmp_path / "struck", execution=QUIET, say=silent)
    run = Run(tmp_path / "struck", recipe)
    saved = torch.load(run.checkpoint_file, weights_only=True)
    assert saved["state"]["seconds"] < began[0] - start + 1  # what was left is no time of training
    assert saved["state"]["iteration"] == at and len(saved["rows"]) == at // 3 - 1 and not run.ended
    said = []
    summary = train(recipe, tmp_path / "struck", execution=QUIET, say=said.append)
    assert [s["from_iteration"] for s in summary["sessions"]] == [0, at]
    assert f"continues at iteration {at} of 12" in said[0]
    for content in (rows_of, weights_of):
        assert content(tmp_path / "struck", recipe) == content(tmp_path / "whole", recipe)


def test_at_the_time_limit_the_evaluation_goes_on_to_its_end(tmp_path, monkeypatch):
    """One that is longer than the limit would else be begun in every session and ended in none."""
    recipe, passed = tiny(), []
    struck_in(monkeypatch, 1, lambda: passed.append(1e6))
    monkeypatch.setattr("reslib.stopping.time", SimpleNamespace(perf_counter=lambda: time.perf_counter() + sum(passed)))
    with pytest.raises(Interrupted, match="time limit of 1000 s reached; checkpoint at iteration 3"):
        train(recipe, tmp_path, execution=Execution(device="cpu", time_limit=1000.0), say=silent)
    assert len(rows_of(tmp_path, recipe)) == 1


def test_a_measurement_that_is_left_changes_nothing():
    batches, model = data.batches_for(tiny(test_size=1000), data.load("synthetic"), CPU), Small().train()
    asked, seen = iter([False, False, True]), []

    def watched():
        for x, y in batches.eval_batches("test", 100):
            seen.append(len(y))
            yield x, y

    with pytest.raises(GivenUp):
        error_and_loss(model, watched(), CPU, leave=lambda: next(asked))
    assert sum(seen) == 300 and model.training  # the third batch was made, and not looked at
    with pytest.raises(GivenUp):  # another process was told to stop, this one was not

        def as_of_two(totals):
            totals[3] += 1

        error_and_loss(model, batches.eval_batches("test"), CPU, reduce=as_of_two)


def struck_member(rank, *arguments):
    """A process of a job of two, of which the second is told to stop during its second evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            struck_in(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        member(rank, *arguments)


def test_a_signal_to_one_of_two_processes_stops_both(tmp_path):
    recipe = tiny(accumulation=2, test_size=1000)  # a batch for each of them
    train(recipe, tmp_path / "one", execution=QUIET, say=silent)
    run = Run(tmp_path / "two", recipe)
    for target, codes in ((struck_member, [1, 1]), (member, [0, 0])):
        port, context = free_port(), processes()
        arguments = (2, port, [recipe], tmp_path / "two", QUIET, False, None)
        both = [context.Process(target=target, args=(rank, *arguments)) for rank in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(200)
        assert [process.exitcode for process in both] == codes
        if target is struck_member:
            saved = torch.load(run.checkpoint_file, weights_only=True)
            assert saved["state"]["iteration"] == 6 and [row["iteration"] for row in saved["rows"]] == [3]
    assert_same_curve(numbers(tmp_path / "one", recipe), numbers(tmp_path / "two", recipe))


def test_the_processes_of_a_job_do_not_wait_for_another_one(tmp_path, monkeypatch):
    """The others of the group would wait for the first, without a word, until their connection gives up."""
    recipe = tiny()
    other = processes().Process(target=hold, args=(tmp_path, recipe, 600.0))
    other.start()
    try:
        while not is_locked(Run(tmp_path, recipe).path):
            assert other.is_alive()
        told = []
        group = SimpleNamespace(rank=0, world=2, broadcast=lambda value: told.append(value) or value)
        monkeypatch.setattr(distributed, "group", lambda: group)
        monkeypatch.setattr("reslib.train.GROUP_PATIENCE", 0.5)
        said = []
        with pytest.raises(UserError, match=f"is being trained by process {other.pid} on "):
            train(recipe, tmp_path, execution=QUIET, say=said.append)
        assert len(said) == 1 and "waiting for it" in said[0]
        assert isinstance(told[-1], UserError)  # the others hear of it, and raise the same
        words = iter([None, told[-1]])
        group = SimpleNamespace(rank=1, world=2, broadcast=lambda value: next(words))
        with pytest.raises(UserError, match="is being trained by process"):
            train(recipe, tmp_path, execution=QUIET, say=said.append)
    finally:
        other.kill()
        other.join()
