"""reslib's own training step as a contender: exactly what the trainer does between two evaluations."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch

from .. import data, tune
from ..engine import Step, make_optimizer, make_step, set_learning_rate
from ..measure import error_and_loss
from ..networks import make_model
from ..numerics import autocast, resolve_precision
from ..recipe import Recipe, parse_options
from ..schedule import learning_rate
from ..window import Window
from .clock import Clock, synchronize
from .peer import UsualLoop

NAMES = {  # contender: what it is
    "usual": "the loop everyone writes",
    "fp32": "reslib in fp32",
    "bf16": "reslib with bf16 autocast",
    "compiled": "reslib, the measured precision, torch.compile",
    "fast": "reslib as it trains here: precision, threads and compilation by measurement",
}


class Reslib:
    """`run(steps)` trains and returns the seconds it took. way: a name of NAMES but "usual"."""

    def __init__(self, way: str, recipe: Recipe, source, device, eager: bool = False, say=print):
        begun = time.perf_counter()
        self.name, self.recipe, self.device, self.batch = way, recipe, device, recipe.batch_size
        fixed = way in ("fp32", "bf16")
        self.precision = way if fixed else resolve_precision("auto", device)
        model = make_model(recipe, len(source.classes), Path())
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.batches = data.batches_for(recipe, source, device)
        optimizer = make_optimizer(recipe, self.model, device)
        kind = Step if eager else make_step
        self.step = kind(recipe, self.model, optimizer, device, self.precision)
        chosen, self.threads = None, torch.get_num_threads()
        if device.type == "cpu" and not fixed:
            chosen = tune.choice()
            if way == "compiled":
                chosen = dataclasses.replace(chosen, compile=True, compile_seconds=0.0)
            self.threads = chosen.threads
        with self._threads():
            if chosen and not eager:
                tune.accelerate(self.step, chosen, say=say)
            self.captured = type(self.step) is not Step
            self.compiled = isinstance(self.step.loss, tune.CompiledLoss) and not self.step.loss.reason
            self.window = Window(recipe, device)
            self.iteration, self.lr = 0, recipe.lr
            self.run(1)
        self.compiled = self.compiled and not self.step.loss.reason
        self.setup_seconds = time.perf_counter() - begun
        self.what = ", ".join(
            [
                f"{self.precision}, channels-last, images as uint8 on the device",
                *(["whole step captured as a CUDA graph"] if self.captured else []),
                *(["torch.compile"] if self.compiled else []),
                *([f"{self.threads} threads"] if device.type == "cpu" else []),
            ]
        )

    def _threads(self):
        return Threads(self.threads)

    def run(self, steps: int) -> float:
        with self._threads():
            synchronize(self.device)
            begun = time.perf_counter()
            for _ in range(steps):
                x, y = self._next()
                loss, wrong = self.step(x, y, self.iteration)
                self._count(loss, wrong)
            synchronize(self.device)
            return time.perf_counter() - begun

    def _next(self):
        lr = learning_rate(self.recipe, self.iteration, False, [])
        set_learning_rate(self.step.optimizer, lr, self.lr)
        self.lr = lr
        return self.batches.batch(self.iteration)

    def _count(self, loss, wrong):
        if self.window.filled == self.recipe.eval_every:
            self.window.filled = 0
        self.window.add(loss, wrong)
        self.iteration = (self.iteration + 1) % self.recipe.iterations

    def parts(self, steps: int) -> dict[str, float]:
        """Seconds per step in data, forward, backward and optimiser, with a wait for the device after each.

        A captured or compiled step has no such seams: there the parts are those of the eager step.
        """
        step = self.step
        step.optimizer.zero_grad(set_to_none=True)  # a captured step leaves its gradients behind
        with self._threads():
            clock = Clock(self.device)
            for _ in range(steps):
                x, y = self._next()
                clock.lap("data")
                with autocast(self.device, self.precision):
                    loss, logits = step.loss(x, y, step.progress)
                clock.lap("forward")
                loss.backward()
                clock.lap("backward")
                step.optimizer.step()
                step.optimizer.zero_grad(set_to_none=True)
                clock.lap("optimiser")
                self._count(loss.detach(), (logits.detach().argmax(1) != y).sum())
                clock.lap("metrics")
        return clock.mean(steps)

    def evaluation(self, images: int = 1000) -> float:
        """Seconds per image of the test pass, in large batches."""
        batches = [
            b for b, _ in zip(self.batches.eval_batches("test", 500), range(max(1, images // 500)), strict=False)
        ]
        with self._threads():
            error_and_loss(self.model, batches[:1], self.device, self.precision)
            synchronize(self.device)
            begun = time.perf_counter()
            error_and_loss(self.model, batches, self.device, self.precision)
            return (time.perf_counter() - begun) / sum(len(y) for _, y in batches)

    def settle(self) -> None:
        """Nothing of this loop runs on when it is not its turn."""

    def close(self) -> None:
        self.step = self.batches = self.model = None


class Threads:
    """Within the block this many threads, and memory kept as `tune.accelerate` keeps it; as before after it.

    The contenders share a process: without this the usual loop would get reslib's settings.
    """

    def __init__(self, count: int):
        self.count = count

    def __enter__(self):
        self.before = torch.get_num_threads()
        tune.keep_memory(True)
        if self.count != self.before:
            torch.set_num_threads(self.count)

    def __exit__(self, *error):
        tune.keep_memory(False)
        if self.count != self.before:
            torch.set_num_threads(self.before)


def recipe_for(model: str, batch: int, source, options: str = "") -> Recipe:
    """The paper's CIFAR recipe of a model at a batch size, on the images of `source`."""
    return Recipe(
        model=model, dataset=source.name, batch_size=batch, crop_size=source.train.images.shape[1], options=options
    )


def contender(name: str, recipe: Recipe, source, device, root=None, workers=None, say=print):
    """The named contender, set up and warm."""
    if name == "usual":
        options = parse_options(recipe.options)
        return UsualLoop(recipe.model, recipe.batch_size, source, device, root, workers, options)
    return Reslib(name, recipe, source, device, say=say)
