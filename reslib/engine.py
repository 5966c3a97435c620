"""One optimisation step: forward, backward, update, with nothing decided inside the loop."""

from __future__ import annotations

import contextlib
import math
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from .cuda_graphs import abandon, captured, empty_graph, seconds_per_replay
from .data.memory import mixed_seed
from .distributed import ALONE
from .errors import first_line
from .measure import batch_norms
from .numerics import autocast
from .recipe import Recipe


class Objective(nn.Module):
    """(x, y, progress) -> (loss, logits): the model's own `training_loss`, or cross-entropy of its logits in fp32.

    A module, so that DistributedDataParallel sees the whole forward pass whichever of the two it is.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x, y, progress):
        if hasattr(self.model, "training_loss"):
            return self.model.training_loss(x, y, progress)
        logits = self.model(x).float()
        return F.cross_entropy(logits, y), logits


def make_optimizer(recipe: Recipe, model: nn.Module, device: torch.device) -> torch.optim.SGD:
    """SGD on every trainable parameter, weight decay on all of them; the learning rate is a tensor on CUDA."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    lr = torch.tensor(recipe.lr, device=device) if device.type == "cuda" else recipe.lr
    optimizer = torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=device.type in ("cuda", "cpu"),
    )
    if recipe.momentum:  # PyTorch makes them at the first step, and fails where a parameter takes part only later
        for p in parameters:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def set_learning_rate(optimizer: torch.optim.SGD, lr: float, previous: float) -> None:
    """Change the rate with the velocity of the paper's framework kept: v := m v + lr g, w := w - v.

    PyTorch stores v / lr, so its buffers are scaled by previous / lr when the rate changes.
    """
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr
    if previous != lr:
        buffers = momenta(optimizer)
        if buffers:
            torch._foreach_mul_(buffers, previous / lr)


def momenta(optimizer: torch.optim.SGD) -> list[torch.Tensor]:
    """The momentum buffers of an optimiser that has stepped, in order of its parameters."""
    return [state["momentum_buffer"] for state in optimizer.state.values()]


class Step:
    """`step(x, y, iteration)` trains on one batch and returns (mean loss, number of errors) as tensors on the device.

    With recipe.accumulation = K the batch is worked through in K micro-batches, each with its own batch-norm
    statistics; the processes of a group share them out. Moving averages take the mean over micro-batches, so that the
    numbers do not depend on how many devices there are.
    """

    way = "eager"  # how it runs, in words for the record
    layout = torch.channels_last  # of the images, as of the weights
    convolutions = contextlib.nullcontext  # how the model is called: some by other algorithms (convolutions/)

    def __init__(self, recipe: Recipe, model: nn.Module, optimizer, device, precision: str, group=ALONE):
        self.recipe, self.model, self.optimizer, self.device = recipe, model, optimizer, device
        self.precision, self.group = precision, group
        self.parts = recipe.accumulation // group.world
        self.loss = group.wrap(Objective(model), device, unused=hasattr(model, "training_loss"))
        self.stochastic = getattr(model, "stochastic", False)
        self.follows = hasattr(model, "training_loss")  # the loss may depend on how far the training is
        self.progress = torch.zeros((), device=device)
        self.averages = [b for m in batch_norms(model) for b in (m.running_mean, m.running_var)]
        optimizer.zero_grad(set_to_none=True)

    def __call__(self, x: torch.Tensor, y: torch.Tensor, iteration: int):
        self.progress.fill_(iteration / self.recipe.iterations)
        if self.parts == 1:
            loss, wrong = self._micro(x, y, iteration, 0)
        else:
            loss, wrong = self._accumulate(x, y, iteration)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, wrong

    def _micro(self, x, y, iteration, part):
        if self.stochastic:  # dropout is a pure function of (seed, iteration, micro-batch), like everything random
            number = self.group.rank * self.parts + part
            torch.manual_seed(mixed_seed("dropout", self.recipe.seed, iteration, number))
        x = x.contiguous(memory_format=self.layout)
        with autocast(self.device, self.precision):
            loss, logits = self.loss(x, y, self.progress)
        (loss / self.parts if self.parts > 1 else loss).backward()
        return loss.detach(), (logits.detach().argmax(1) != y).sum()

    def _accumulate(self, x, y, iteration):
        before = [b.clone() for b in self.averages]
        total = [torch.zeros_like(b) for b in self.averages]
        losses, wrongs = [], []
        for part, (xs, ys) in enumerate(zip(x.chunk(self.parts), y.chunk(self.parts), strict=True)):
            for buffer, old in zip(self.averages, before, strict=True):
                buffer.copy_(old)
            with self.group.sync_at(self.loss, part == self.parts - 1):
                loss, wrong = self._micro(xs, ys, iteration, part)
            for sum_, buffer in zip(total, self.averages, strict=True):
                sum_ += buffer
            losses.append(loss)
            wrongs.append(wrong)
        for buffer, sum_ in zip(self.averages, total, strict=True):
            buffer.copy_(sum_ / self.parts)
        return torch.stack(losses).mean(), torch.stack(wrongs).sum()


class CapturedStep(Step):
    """The same step as one CUDA graph: captured once, then replayed without Python or launch overhead.

    What it returns is overwritten by the next call. A network that cannot be captured (it reads a value on the host,
    or branches on one) is trained by the plain step, with a warning; `capturable = False` on it says so beforehand.
    """

    warmup = 3  # eager steps on a side stream before the capture, undone afterwards
    rounds = 3  # of timing two captured steps in turn
    replays = 10  # in each, at least
    timed = 0.1  # seconds in each, at least: a GPU may be shared

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.graph, self.failed = None, ""
        self.trials = []  # of gpu_trials: whether other passes are faster once captured, until that is enough

    @property
    def way(self) -> str:
        """How steps run: as a CUDA graph, or eager and why."""
        if self.graph is not None:
            return ", ".join(filter(None, ("CUDA graph", getattr(self.loss, "way", ""))))
        return f"eager, not captured: {self.failed}" if self.failed else "eager"

    def __call__(self, x, y, iteration):
        with torch.cuda.device(self.device):  # graphs, streams and seeds are those of the current device
            if self.graph is None and not self.failed:
                self._capture(x, y)
            if self.failed:
                return super().__call__(x, y, iteration)
            self.x.copy_(x)
            self.y.copy_(y)
            if self.follows:
                self.progress.fill_(iteration / self.recipe.iterations)
            if self.stochastic:
                torch.cuda.manual_seed(mixed_seed("dropout", self.recipe.seed, iteration, 0))
            self.graph.replay()
            return self.result

    def _capture(self, x, y):
        self.x, self.y = x.clone(memory_format=self.layout), y.clone()
        tensors = [*self.model.parameters(), *self.model.buffers(), *momenta(self.optimizer)]
        saved = [t.detach().clone() for t in tensors]

        @torch.no_grad()
        def undo():
            """Warm-up steps and timed replays must leave no trace."""
            for tensor, old in zip(tensors, saved, strict=True):
                tensor.copy_(old)

        try:
            self._record()
            for trial in self.trials if self.graph is not None else ():
                if self._better(trial, undo) and trial.enough:
                    break
        finally:
            undo()

    def _record(self):
        """Capture a step with the loss as it is now; `failed` says why where that cannot be."""
        before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            self._warm_up()
        before.wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with empty_graph("error"), captured(graph, stream, pool):
                self.result = self._body()
            self.graph = graph
        except Exception as error:
            abandon(graph, before, pool)
            self.optimizer.zero_grad(set_to_none=True)
            first = error.__context__ or error  # ending a broken capture fails too, with words that explain nothing
            if isinstance(first, torch.OutOfMemoryError):
                raise first from None
            if not isinstance(error, (RuntimeError, Warning)):  # not of a capture: the network's own
                raise
            self.failed = first_line(first)
            warnings.warn(f"step not captured as a CUDA graph, training without: {self.failed}", stacklevel=4)

    def _better(self, trial, undo) -> bool:
        """Capture the step with a trial's passes as well where that may pay; whether they win and are kept.

        Whatever goes wrong, short of a fault of the device, the graph from before is there.
        """
        plain = self.graph, self.result, self.loss
        seconds = seconds_per_replay(plain[0], self.replays)
        undo()  # other passes are compared where the run begins
        self.optimizer.zero_grad(set_to_none=True)  # those of the capture would be added to
        keep = False
        try:
            loss = trial.loss(self, seconds)
            if loss is not None:
                keep = self._captured_too(trial, plain[0], loss, seconds, undo)
        except Exception as error:  # compilers fail in many ways, and there may be no room for two graphs
            trial.refused(error)
        finally:
            trial.end()
        if not keep:
            self.graph, self.result, self.loss = plain
            self.failed = ""
            self.optimizer.zero_grad(set_to_none=True)  # they would hold the memory of the other graph
        return keep

    def _captured_too(self, trial, plain, loss, seconds: float, undo) -> bool:
        """Whether a step through another loss, captured and made the step, does the same as the plain graph and wins.

        seconds: of a plain replay.
        """
        self.graph, self.loss = None, loss
        with warnings.catch_warnings():  # the plain step is there: no word of warning
            warnings.simplefilter("ignore", UserWarning)
            self._record()
        if self.graph is None:
            raise RuntimeError(self.failed)
        if not loss.way:
            trial.forget()  # it has said why
            return False
        names = {name: True for name, _ in self.model.named_parameters()}
        names |= {name: False for name, _ in self.model.named_buffers()}
        states = [self._after(replay, undo) for replay in (None, plain, self.graph)]
        if not trial.agrees(names, *states, self.precision):
            return False
        if trial.sure:
            return True
        mine, other = [], []
        replays = max(self.replays, math.ceil(self.timed / max(seconds, 1e-6)))
        for _ in range(self.rounds):
            mine.append(seconds_per_replay(plain, replays))
            other.append(seconds_per_replay(self.graph, replays))
        return trial.wins(min(mine), min(other))

    def _after(self, graph, undo) -> list[torch.Tensor]:
        """Parameters and buffers as they are, or as one replay of a graph makes them; the step is left as it was."""
        undo()
        if graph is not None:
            graph.replay()
        state = [t.detach().clone() for t in (*self.model.parameters(), *self.model.buffers())]
        undo()
        return state

    def _warm_up(self):
        """The eager steps; once more with the plain loss where another fails, as it may only at the backward pass."""
        try:
            for _ in range(self.warmup):
                self._body()
        except Exception as error:
            if getattr(self.loss, "given_up", True) or isinstance(error, torch.OutOfMemoryError):
                raise
            self.loss.give_up(error)
            self._warm_up()

    def _body(self):
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            loss, logits = self.loss(self.x, self.y, self.progress)
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) != self.y).sum()


def make_step(recipe, model, optimizer, device, precision, group=ALONE, eager: bool = False) -> Step:
    """The fastest step this device has for this recipe; with eager=True the plain one."""
    capturable = device.type == "cuda" and recipe.accumulation == 1 and group.world == 1
    capturable &= getattr(model, "capturable", True) and not getattr(model, "activation_checkpointing", False)
    kind = CapturedStep if capturable and not eager else Step
    return kind(recipe, model, optimizer, device, precision, group)
