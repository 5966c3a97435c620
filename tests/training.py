"""Tiny runs, shared by the tests of training."""

from __future__ import annotations

import csv
import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

import pytest

from reslib.recipe import Recipe
from reslib.runs import Run
from reslib.stopping import Interrupted, StopSignal
from reslib.train import Execution, train

QUIET = Execution(device="cpu", deterministic=True)
CONTEXT = multiprocessing.get_context("forkserver")
TIMES = ("seconds", "images_per_second")


def tiny(**changes) -> Recipe:
    fields = {
        "model": "own_models:Small",
        "dataset": "synthetic",
        "iterations": 12,
        "batch_size": 8,
        "train_size": 40,
        "test_size": 64,
        "eval_every": 3,
        "precision": "fp32",
        "lr": 0.05,
    }
    return Recipe(**fields | changes)


def silent(text) -> None:
    pass


def rows_of(runs_dir: Path, recipe: Recipe) -> list[dict]:
    """metrics.csv as text, without the times."""
    with open(Run(runs_dir, recipe).metrics_file) as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def weights_of(runs_dir: Path, recipe: Recipe) -> bytes:
    return Run(runs_dir, recipe).weights_file.read_bytes()


def stop_after(monkeypatch, steps: int) -> None:
    """Every following `train` is stopped after so many steps, as by a signal."""

    class Stop(StopSignal):
        checks = 0

        @property
        def reason(self):
            self.checks += 1
            return "asked to stop" if self.checks > steps else ""

    monkeypatch.setattr("reslib.train.StopSignal", Stop)


def train_in_pieces(monkeypatch, recipe, runs_dir, piece: int, execution=QUIET, say=silent) -> tuple[dict, int]:
    """Train with an interruption after every `piece` steps; the summary and the number of sessions."""
    sessions = 0
    with monkeypatch.context() as patch:
        stop_after(patch, piece)
        while True:
            sessions += 1
            try:
                return train(recipe, runs_dir, execution=execution, say=say), sessions
            except Interrupted:
                assert sessions < 200


def processes():
    """A context whose processes start from a server that has imported torch and reslib and loaded the data.

    The server is started here, with this folder on its path: before Python 3.12 it looks nowhere else and goes without
    what it does not find, so that every process would import torch by itself.
    """
    CONTEXT.set_forkserver_preload(["warm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).resolve().parent), prepend=os.pathsep)
        forkserver.ensure_running()
    return CONTEXT
