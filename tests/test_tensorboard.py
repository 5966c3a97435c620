"""TensorBoard logs as an option: the scalars of metrics.csv, in the run's folder."""

import csv
import sys
from dataclasses import replace

import pytest
from training import QUIET, silent, stop_after, tiny, train_in_pieces

from reslib.cli import main
from reslib.errors import UserError
from reslib.outcome import Board
from reslib.runs import Run
from reslib.stopping import Interrupted
from reslib.train import train

LOGGED = replace(QUIET, tensorboard=True)
COLUMNS = ("train_loss", "train_error", "test_error", "lr")


def check_logs(run: Run):
    """What TensorBoard reads from the run's folder, all files together, is what metrics.csv holds: each row once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(run.path / "tensorboard")).Reload()
    with open(run.metrics_file) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 1
    for column in COLUMNS:
        points = log.Scalars(column)
        assert [p.step for p in points] == [int(row["iteration"]) for row in rows]
        assert [p.value for p in points] == pytest.approx([float(row[column]) for row in rows], rel=1e-5)


@pytest.fixture(autouse=True)
def _needs_tensorboard(request):
    if "without" not in request.node.name:
        pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def test_the_logs_hold_what_metrics_csv_holds(tmp_path):
    recipe = tiny()
    train(recipe, tmp_path, execution=LOGGED, say=silent)
    check_logs(Run(tmp_path, recipe))


def test_logs_of_an_interrupted_run_have_every_row_once(tmp_path, monkeypatch):
    _, sessions = train_in_pieces(monkeypatch, tiny(), tmp_path, piece=4, execution=LOGGED)
    assert sessions > 2
    check_logs(Run(tmp_path, tiny()))


def test_logs_asked_for_late_have_the_rows_before(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 8)
        train(tiny(), tmp_path, execution=QUIET, say=silent)
    train(tiny(), tmp_path, execution=LOGGED, say=silent)
    check_logs(Run(tmp_path, tiny()))


def test_a_kill_between_checkpoint_and_logs_loses_no_point(tmp_path, monkeypatch):
    """A point is written after the checkpoint that has its row; a kill in between must not lose it."""
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Board, "add", lambda board, row: 1 / 0)
        train(tiny(), tmp_path, execution=LOGGED, say=silent)
    assert Run(tmp_path, tiny()).checkpoint_file.exists()
    train(tiny(), tmp_path, execution=LOGGED, say=silent)
    check_logs(Run(tmp_path, tiny()))


def test_nothing_is_written_unasked(tmp_path):
    train(tiny(), tmp_path, execution=QUIET, say=silent)
    assert not (Run(tmp_path, tiny()).path / "tensorboard").exists()


def test_without_tensorboard_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r'tensorboard is not installed: pip install "reslib\[tensorboard\]"'):
        train(tiny(), tmp_path, execution=LOGGED, say=silent)


def test_without_tensorboard_the_command_says_so_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = ["train", "own_models:Small", "--preset=smoke", "--device=cpu", f"--results={tmp_path}", "--tensorboard"]
    assert main(command) == 1
    assert capsys.readouterr().err.startswith("reslib: tensorboard is not installed") and not any(tmp_path.iterdir())
