"""What was tried on this machine is kept in a file that several processes write to."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from reslib import files, trials
from reslib.files import alone

NAME = "compile.json"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path))


def test_two_at_once_keep_each_others_entries():
    """As of two processes: flock of two open files."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: trials.keep(NAME, {f"network {number}": number}), range(40)))
    assert trials.known(NAME) == {f"network {number}": number for number in range(40)}


@pytest.mark.timeout(20)
def test_a_trial_that_others_wait_for_may_keep_what_it_finds():
    """gpu_trials.py holds a lock of its own meanwhile."""
    with alone(trials.path_of(NAME).with_suffix(".lock")):
        trials.keep(NAME, {"a": 1})
    assert trials.known(NAME) == {"a": 1}


def test_without_locks_entries_are_kept_all_the_same(monkeypatch):
    def flock(file, how):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    trials.keep(NAME, {"a": 1})
    trials.keep(NAME, {"b": 2})
    assert trials.known(NAME) == {"a": 1, "b": 2}


def test_an_entry_is_removed_and_others_stay():
    trials.keep(NAME, {"a": 1, "b": 2})
    trials.keep(NAME, {"a": None, "never there": None})
    assert trials.known(NAME) == {"b": 2}


def test_a_damaged_file_begins_anew():
    trials.path_of(NAME).write_text("{")
    trials.keep(NAME, {"a": 1})
    assert trials.known(NAME) == {"a": 1}


def test_without_a_cache_every_run_tries_again(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / "file"))
    asked = []
    for _ in range(2):
        assert trials.remembered(NAME, "a", lambda: asked.append(1) or True)
    assert len(asked) == 2 and "what is faster here is tried in every run" in capsys.readouterr().err
