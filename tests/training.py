"""Tiny runs, shared by the tests of training."""

from __future__ import annotations

import csv
import multiprocessing
import os
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from reslib import data
from reslib.data.memory import mixed_seed
from reslib.networks import make_model
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


def slow_loop(recipe, keep_velocity=True, accumulation=1, device="cpu"):
    """Plain PyTorch: v := m v + lr g, w := w - v; without keep_velocity PyTorch's v := m v + g, w := w - lr v."""
    source = data.load(recipe.dataset)
    batches = data.batches_for(recipe, source, torch.device(device))
    torch.manual_seed(mixed_seed("initial weights", recipe.seed))
    model = make_model(recipe, 10, None).to(device)
    model.train()
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    losses, errors, rates = [], [], []
    for i in range(recipe.iterations):
        rate = recipe.lr
        for drop in recipe.lr_drops:
            if i >= drop * recipe.iterations:
                rate = rate / 10
        x, y = batches.batch(i)
        gradients = [torch.zeros_like(p) for p in model.parameters()]
        parts, wrong = [], 0
        for xs, ys in zip(x.chunk(accumulation), y.chunk(accumulation), strict=True):
            logits = model(xs)
            loss = F.cross_entropy(logits, ys)
            for g, d in zip(gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True):
                g += d / accumulation
            parts.append(loss.item())
            wrong += (logits.argmax(1) != ys).sum().item()
        with torch.no_grad():
            for p, g, v in zip(model.parameters(), gradients, velocity, strict=True):
                g = g + recipe.weight_decay * p
                if keep_velocity:
                    v.mul_(recipe.momentum).add_(rate * g)
                    p -= v
                else:
                    v.mul_(recipe.momentum).add_(g)
                    p -= rate * v
        losses.append(sum(parts) / len(parts))
        errors.append(wrong / recipe.batch_size)
        rates.append(rate)
    return losses, errors, rates


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
