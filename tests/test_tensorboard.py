"""TensorBoard logs as an option: the scalars of metrics.csv, in the run's folder."""

import csv
import sys
from dataclasses import replace

import pytest
from training import QUIET, silent, tiny

from reslib.errors import UserError
from reslib.runs import Run
from reslib.train import train


def test_the_logs_hold_what_metrics_csv_holds(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tiny()
    train(recipe, tmp_path, execution=replace(QUIET, tensorboard=True), say=silent)
    run = Run(tmp_path, recipe)
    log = EventAccumulator(str(run.path / "tensorboard")).Reload()
    with open(run.metrics_file) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 1
    for column in ("train_loss", "train_error", "test_error", "lr"):
        points = log.Scalars(column)
        assert [p.step for p in points] == [int(row["iteration"]) for row in rows]
        assert [p.value for p in points] == pytest.approx([float(row[column]) for row in rows], rel=1e-5)


def test_nothing_is_written_unasked(tmp_path):
    train(tiny(), tmp_path, execution=QUIET, say=silent)
    assert not (Run(tmp_path, tiny()).path / "tensorboard").exists()


def test_without_tensorboard_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r'tensorboard is not installed: pip install "reslib\[tensorboard\]"'):
        train(tiny(), tmp_path, execution=replace(QUIET, tensorboard=True), say=silent)
