"""Which convolutions of a network are computed by another algorithm than the direct sum: tried here, layer by layer."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from .. import trials, tune
from ..numerics import autocast
from ..passes import Passes, difference, sound
from ..tune import LONG, Choice
from . import fourier, winograd
from .layers import Layer, channels_last, layer_of

ALGORITHMS = {"winograd": winograd, "fourier": fourier}
MARGIN = 1.1  # times faster another algorithm must be on a layer alone
ROUNDS = 5  # turns of both ways of a layer
TURNS = 9  # and of a whole pass, of which a sixth is gained: three could be spoilt by a neighbour


class Convolutions(TorchFunctionMode):
    """While active, calls of `conv2d` for these layers go by their algorithm; `met` lists all layers called.

    algorithms: Layer -> a name of ALGORITHMS.
    """

    def __init__(self, algorithms=()):
        super().__init__()
        self.algorithms, self.met = dict(algorithms), {}

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function is F.conv2d and (layer := layer_of(*arguments, **options)):
            self.met[layer] = None
            if layer in self.algorithms:
                return convolve(self.algorithms[layer], layer, *arguments, **options)
        return function(*arguments, **options)


def convolve(algorithm: str, layer: Layer, input, weight, bias=None, *others, **named):
    """What `torch.conv2d` gives for a call with this layer's shapes, by an algorithm of ALGORITHMS."""
    y = ALGORITHMS[algorithm].conv2d(input, weight, bias, layer)
    # in the order of the direct sum's output: dropout draws its numbers in the order of the memory
    return y.contiguous(memory_format=torch.channels_last if channels_last(input) else torch.contiguous_format)


class OtherLoss(nn.Module):
    """`loss(x, y, progress)` with some convolutions by their algorithm."""

    def __init__(self, loss: nn.Module, algorithms):
        super().__init__()
        self.loss, self.algorithms = loss, dict(algorithms)

    def forward(self, x, y, progress):
        with self.convolutions():
            return self.loss(x, y, progress)

    def convolutions(self) -> Convolutions:
        """A context in which the model computes as here."""
        return Convolutions(self.algorithms)


def layers_met(passes: Passes) -> list[Layer]:
    """The convolutions of stride 1 in one pass of a network, in the order of their first call."""
    with Convolutions() as mode:
        passes.run(passes.step.loss)
    return list(mode.met)


def choose_layers(step, chosen: Choice, batch, left: int, limit=None, before=None, say=print) -> dict[Layer, str]:
    """Layer -> algorithm: those of the run that is continued, else those that a trial finds faster.

    The arguments are those of compilation.accelerate. No trial for a run that is short, nor for one that was begun
    without. Before an algorithm is used, loss and gradient of the whole pass are compared, and its time.
    """
    begun = {name: before.get(name, []) if before else [] for name in ALGORITHMS}
    sure = [name for name in ALGORITHMS if getattr(chosen, name) or begun[name]]
    tried = [name for name in ALGORITHMS if getattr(chosen, name) is not False]
    if chosen.compile and not chosen.fourier and "fourier" in tried:
        tried.remove("fourier")  # its many small operations would take minutes to compile
    if before or left < LONG:
        tried = [name for name in tried if name in sure]
    for name in list(tried):
        if reason := ALGORITHMS[name].unavailable(step.precision):
            tried.remove(name)
            if name in sure:
                say(f"no convolutions by {name}: {reason}")
    if not tried:
        return {}
    x, y = batch()
    passes = Passes(step, x[: len(x) // step.parts], y[: len(y) // step.parts])
    count, met, found = len(passes.x), layers_met(passes), {}
    for name in tried:
        layers = [layer for layer in met if ALGORITHMS[name].promising(layer, count)]
        if begun[name]:
            found |= {layer: name for layer in layers if str(layer) in begun[name]}
            continue
        if layers and name not in sure:
            if limit is not None and limit < 10 * TURNS * passes.seconds(step.loss):
                continue
            layers = [layer for layer in layers if _known_to_win(name, layer, count, chosen.layout)]
        other = dict.fromkeys(layers, name)
        if other and _proved(passes, other, chosen, name in sure, say):
            found |= other
    return found


def _proved(passes: Passes, algorithms: dict[Layer, str], chosen: Choice, sure: bool, say) -> bool:
    """Whether the whole pass computes the same with these algorithms, and, unless they are sure, takes less time."""
    step, names = passes.step, " and ".join(dict.fromkeys(algorithms.values()))
    loss = OtherLoss(step.loss, algorithms)
    mine, theirs = passes.run(step.loss), passes.run(loss)
    if not sound(passes, mine, theirs):
        say(f"no convolutions by {names}: loss or gradient would be off by {100 * difference(mine, theirs):.1f}%")
        return False
    if sure:
        return True
    key = trials.network_key(step, passes.x, chosen, algorithms)
    return trials.remembered(tune.CONVOLUTIONS, key, lambda: passes.gain(loss, TURNS) > tune.MARGIN)


def _known_to_win(algorithm: str, layer: Layer, batch: int, layout: str) -> bool:
    """`wins`, asked once per machine."""
    key = f"{algorithm} {layer} | {layer.precision} {batch} images | {layout} {torch.get_num_threads()} threads"
    return trials.remembered(tune.CONVOLUTIONS, key, lambda: wins(algorithm, layer, batch, tune.LAYOUTS[layout]))


def wins(algorithm: str, layer: Layer, batch: int, layout, clock=time.perf_counter) -> bool:
    """Whether a layer alone is faster so on random maps, forward and backward: the best of turns of both ways."""
    cpu, drawn = torch.device("cpu"), torch.Generator().manual_seed(0)
    x = torch.randn(batch, layer.inputs, *layer.size, generator=drawn).contiguous(memory_format=layout)
    x = x.bfloat16() if layer.precision == "bf16" else x
    weight = torch.randn(layer.outputs, layer.inputs, *layer.kernel, generator=drawn).contiguous(memory_format=layout)
    ways = {
        "direct": lambda: F.conv2d(x, weight, padding=layer.padding),
        "other": lambda: convolve(algorithm, layer, x, weight),
    }
    taken = {way: [] for way in ways}
    for tensor in (x, weight):
        tensor.requires_grad_()
    for _ in range(ROUNDS):
        for way, call in ways.items():
            begun = clock()
            with autocast(cpu, layer.precision):
                y = call()
            y.square().sum().backward()
            taken[way].append(clock() - begun)
            x.grad = weight.grad = None
    return min(taken["other"]) * MARGIN < min(taken["direct"])
