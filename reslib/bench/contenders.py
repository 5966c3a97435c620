"""reslib's own training step as a contender: exactly what the trainer does between two evaluations."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from pathlib import Path

import torch

from .. import compilation, data, gpu_trials, thin, tiles, tune
from ..engine import Step, make_optimizer, make_step, set_learning_rate
from ..errors import UserError
from ..measure import error_and_loss
from ..models.resnet import Block
from ..networks import make_model
from ..numerics import autocast, resolve_precision
from ..recipe import Recipe, parse_options
from ..schedule import learning_rate
from ..window import Window
from .clock import Clock, synchronize

NAMES = {  # contender: what it is
    "usual": "the loop everyone writes",
    "fp32": "reslib in fp32",
    "bf16": "reslib with bf16 autocast",
    "eager": "reslib with the measured precision, layout and threads; neither compiled nor captured",
    "compiled": "reslib with the measured precision, layout and threads, through torch.compile",
    "convolved": "as eager, with other algorithms of convolution where a trial finds them faster",
    "fused": "as eager, with batch norm, addition and ReLU in one go where a trial finds that faster",
    "tiles": "as fused, with whole units on matrix tiles where a trial finds that faster",
    "fast": "reslib as it trains a long run here",
    "contiguous": "as eager, but images and weights NCHW",
    "freed": "as eager, but memory goes back to the system after every step",
    "thin": "reslib with bf16, captured, with the units of thin nets by kernels of its own (on a GPU)",
    "blocks": "as eager, but every residual block through torch.compile: one compilation per shape",
}
TRIALS = {  # contender: what it may try, of the fields of tune.EAGER
    "compiled": {"compile": True},
    "convolved": {"winograd": None, "fourier": None},
    "fused": {"fused": None},
    "tiles": {"fused": None, "units": None},
}
LONG_RUN = 64_000  # iterations of the paper's recipe


class Reslib:
    """`run(steps)` trains and returns the seconds it took. way: a name of NAMES but "usual".

    threads: of the processor, where they are shared out. cold: nothing that torch.compile made before is used again, so
    that the time of setting up is that of a first run (but for the loops of native.py, about 6 s once).
    """

    def __init__(self, way: str, recipe: Recipe, source, device, threads=None, cold: bool = False, say=print):
        begun = time.perf_counter()
        self.name, self.recipe, self.device, self.batch = way, recipe, device, recipe.batch_size
        fixed, cpu = way in ("fp32", "bf16"), device.type == "cpu"
        self.precision = way if fixed else resolve_precision("auto", device)
        if reason := self._unavailable():
            raise UserError(f"contender {way}: {reason}")
        chosen = tune.Choice(self.precision, torch.get_num_threads(), **tune.EAGER, origin="fixed")
        if cpu and not fixed:
            chosen = tune.choice()
            if way != "fast":
                chosen = dataclasses.replace(chosen, **tune.EAGER | TRIALS.get(way, {}))
        chosen = dataclasses.replace(chosen, layout="contiguous") if way == "contiguous" else chosen
        self.threads = threads or chosen.threads
        chosen, layout = dataclasses.replace(chosen, threads=self.threads), tune.LAYOUTS[chosen.layout]
        model = make_model(recipe, len(source.classes), Path())
        self.model = model.to(device, memory_format=layout).train()
        self.batches = data.batches_for(recipe, source, device)
        optimizer = make_optimizer(recipe, self.model, device)
        self.step = (Step if way == "eager" else make_step)(recipe, self.model, optimizer, device, self.precision)
        self.step.layout = layout
        self.captured = type(self.step) is not Step
        self.speed = {}
        if way == "thin":
            self.step.loss = thin.ThinLoss(self.step.loss, say)
        if way == "blocks":
            compilation.allow_many()
            for block in (m for m in self.model.modules() if isinstance(m, Block)):
                block.compile(dynamic=False)
        with self.settings(), _caches(not cold):
            if cpu:
                first = functools.partial(self.batches.batch, 0)
                self.speed = compilation.accelerate(self.step, chosen, first, LONG_RUN, say=say)
            elif way == "compiled":
                self.step.loss = compilation.CompiledLoss(self.step.loss, say)
            elif way == "fast":
                gpu_trials.accelerate(self.step, LONG_RUN, say=lambda text: say(f"    {text}"))
            self.window = Window(recipe, device)
            self.iteration, self.lr = 0, recipe.lr
            self.stream = iter(())
            self.run(1)
        self.setup_seconds = time.perf_counter() - begun
        self.what = self._describe()

    def _unavailable(self) -> str:
        """Why this machine cannot compute so; empty if it can."""
        if self.name == "thin":
            return thin.unavailable(self.device)
        if self.name == "tiles":
            return tiles.unavailable(self.precision) if self.device.type == "cpu" else "on processors alone"
        return ""

    def _describe(self) -> str:
        if self.speed:
            return f"{compilation.describe(self.precision, self.speed)}, images as uint8 in memory"
        compiled = not self.captured and getattr(self.step.loss, "compiled", False)  # a captured step says so itself
        layout = "contiguous" if self.name == "contiguous" else "channels-last"
        parts = [f"{self.precision}, {layout}, images as uint8 on the device"]
        parts += [f"step: {self.step.way}"] + ["passes through torch.compile"] * compiled
        return ", ".join(parts)

    def settings(self):
        """The settings of PyTorch that a run trains under."""
        exact = self.device.type == "cuda" and self.precision == "fp32"
        return Settings(self.threads, exact, keep=self.name != "freed")

    def run(self, steps: int) -> float:
        """Seconds for `steps` steps."""
        with self.settings():
            synchronize(self.device)
            begun = time.perf_counter()
            for _ in range(steps):
                self.one_step()
            synchronize(self.device)
            return time.perf_counter() - begun

    def one_step(self) -> None:
        """One training step."""
        x, y = self._next()
        self._count(*self.step(x, y, self.iteration))

    def _next(self):
        lr = learning_rate(self.recipe, self.iteration, False, [])
        if lr != self.lr:
            set_learning_rate(self.step.optimizer, lr, self.lr)
            self.lr = lr
        if (batch := next(self.stream, None)) is None:  # the first, or the run is over and begins anew
            self.stream = self.batches.stream(self.iteration, self.recipe.iterations)
            batch = next(self.stream)
        return batch

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
        with self.settings():
            for number in range(steps + 1):
                if number < 2:  # not of the first: it asks for the memory of eager steps and looks for their kernels
                    clock = Clock(self.device)
                x, y = self._next()
                x = x.contiguous(memory_format=step.layout)
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
        batches = list(itertools.islice(self.batches.eval_batches("test"), max(1, images // 500)))
        with self.settings(), self.step.convolutions():
            error_and_loss(self.model, batches[:1], self.device, self.precision)
            synchronize(self.device)
            begun = time.perf_counter()
            error_and_loss(self.model, batches, self.device, self.precision)
            return (time.perf_counter() - begun) / sum(len(y) for _, y in batches)

    def settle(self) -> None:
        """Nothing of this loop runs on when it is not its turn."""

    def close(self) -> None:
        """Free the device's memory."""
        self.step = self.batches = self.stream = self.model = None


class Settings:
    """Within the block this many threads, memory kept or not, and no TF32 if `exact`; afterwards as before.

    The contenders share a process: without this the usual loop would get reslib's settings.
    """

    def __init__(self, threads: int, exact: bool = False, keep: bool = True):
        self.threads, self.exact, self.keep, self.before = threads, exact, keep, []

    def __enter__(self):
        flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        self.before.append((torch.get_num_threads(), flags))
        tune.keep_memory(self.keep)
        self._set(self.threads, (False, False) if self.exact else flags)

    def __exit__(self, *error):
        tune.keep_memory(False)
        self._set(*self.before.pop())

    @staticmethod
    def _set(threads, flags):
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


@contextlib.contextmanager
def _caches(used: bool):
    """Whether torch.compile and Triton may take what they compiled before from their caches."""
    if used:
        yield
        return
    import torch._inductor.config

    with torch._inductor.config.patch(force_disable_caches=True), thin.compiled_anew():
        yield


def recipe_for(model: str, batch: int, source, options: str = "") -> Recipe:
    """The paper's CIFAR recipe of a model at a batch size, on the images of `source`."""
    return Recipe(
        model=model, dataset=source.name, batch_size=batch, crop_size=source.train.images.shape[1], options=options
    )


def contender(name: str, recipe: Recipe, source, device, root=None, workers=None, cold: bool = False, say=print):
    """The named contender, set up and warm."""
    if name == "usual":
        from .peer import UsualLoop  # it imports torchvision: seconds, in which a run has its first step done

        options = parse_options(recipe.options)
        return UsualLoop(recipe.model, recipe.batch_size, source, device, root, workers, options)
    return Reslib(name, recipe, source, device, cold=cold, say=say)
