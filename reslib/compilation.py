"""torch.compile of a training step on a processor: tried on the network itself, and kept only where it wins.

On a GPU: gpu_trials.py.

Compiling takes up to minutes, and what it gains depends on network and machine, down to nothing: neither flags nor a
small probe can tell (results/bench). A run that is long enough compiles its own forward and backward
pass, compares both ways in turn, keeps the faster one, and remembers the answer beside the cache of tune.py.
Nothing of a trial stays: weights, statistics, gradients and random state are as they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from . import convolutions, fused_norm, tiles, trials, unit_trials
from .engine import Step
from .errors import first_line
from .machine import cores
from .models.conv_norm_relu import without
from .passes import Passes, difference, sound
from .tune import COMPILE, LONG, MARGIN, Choice

PAYS_AFTER = 20.0  # a compilation is tried where the rest of the run lasts so many times as long
SECONDS_PER_LAYER = 2.0  # of a compilation, until one has been timed here
ROUNDS = 4
OPTIONS = {"dynamic": False, "options": {"fallback_random": True}}  # random numbers of dropout as of the eager step
NAMES = {"winograd": "Winograd's algorithm", "fourier": "Fourier transform"}  # of the algorithms, in words


@dataclass(frozen=True)
class Trial:
    """Seconds of one forward and backward pass of a network both ways, and what compiling took."""

    eager: float
    compiled: float | None  # None: it could not be compiled, or computed something else
    compile_seconds: float
    layers: int
    begun: int = 0  # trials whose process ended in them: nothing else is known

    @property
    def wins(self) -> bool:
        """Whether compiled is faster by more than the margin."""
        return self.compiled is not None and self.compiled * MARGIN < self.eager

    def __str__(self) -> str:
        other = "none" if self.compiled is None else f"{1000 * self.compiled:.0f} ms"
        return (
            f"a pass takes {1000 * self.eager:.0f} ms eager, {other} compiled; compilation {self.compile_seconds:.0f} s"
        )


class CompiledLoss:
    """`loss(x, y, progress)` through torch.compile; eager for good, said once, when compiling fails."""

    def __init__(self, loss, say=print):
        self.eager, self.say = loss, say
        self.reason = cannot_compile()
        self.call, self.proved = loss, bool(self.reason)
        if self.reason:
            say(f"not compiled: {self.reason}")
        else:
            allow_many()
            self.call = self._compiled(loss)

    def _compiled(self, loss):
        return torch.compile(loss, **OPTIONS)

    def __call__(self, x, y, progress):
        if self.proved:
            return self.call(x, y, progress)
        try:
            result = self.call(x, y, progress)
        except Exception as error:  # compilers fail in many ways; a real error shows again in eager mode
            self.give_up(error)
            result = self.eager(x, y, progress)
        self.proved = True
        return result

    @property
    def compiled(self) -> bool:
        """Whether passes are compiled, as far as is known."""
        return self.call is not self.eager

    @property
    def given_up(self) -> bool:
        """Whether it is eager for good."""
        return not self.compiled

    @property
    def way(self) -> str:
        """What of it a record of a captured step says, "" where it is eager."""
        return "compiled" * self.compiled

    def give_up(self, error: Exception) -> None:
        """Eager from now on, said with the reason."""
        self.reason = first_line(error)
        self.say(f"not compiled: {self.reason}")
        self.call = self.eager


def allow_many() -> None:
    """Let torch compile one piece of code for more than eight networks and shapes; the ninth would silently be eager.

    The code of a loss or block is one for all networks of a process.
    """
    import torch._dynamo.config as config

    config.recompile_limit = max(config.recompile_limit, 1000)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 10_000)


@cache
def cannot_compile() -> str:
    """Why torch.compile will not work here for the processor; empty if nothing speaks against it."""
    compiler = os.environ.get("CXX")
    names = [compiler] if compiler else ["g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in names):
        return f"no C++ compiler ({', '.join(names)}) is installed"
    return ""


def accelerate(
    step: Step, chosen: Choice, batch, left: int, limit: float | None = None, before=None, say=print
) -> dict:
    """Give a step on the processor the chosen threads and, where it pays, faster passes; what was done, as evidence.

    Faster: convolutions by other algorithms than the direct sum (reslib/convolutions), batch norm, addition and ReLU in
    one go (fused_norm.py), these with their convolution on matrix tiles (reslib/tiles), and the whole pass compiled,
    which fuses by itself.

    batch: () -> (x, y) of a step. left: steps still to go; limit: seconds, at most, that this process will train.
    before: the evidence of the session that the run continues: the same threads and kind of step give the same bits.
    """
    if before and not chosen.pinned and before["threads"] <= cores():
        chosen = dataclasses.replace(chosen, threads=before["threads"])
    if chosen.threads != torch.get_num_threads():
        torch.set_num_threads(chosen.threads)
    begun = time.perf_counter()
    algorithms = {}
    if not unsuitable(step):
        algorithms = convolutions.choose_layers(step, chosen, batch, left, limit, before, say)
        if algorithms:
            step.loss = convolutions.OtherLoss(step.loss, algorithms)
            step.convolutions = step.loss.convolutions
        for kind in (fused_norm.FusedLoss, tiles.TilesLoss):
            step.loss = unit_trials.choose(kind, step, chosen, batch, left, limit, before, say) or step.loss
        algorithms = _still_met(step, algorithms, batch)
    compiled, why = _decide(step, chosen, batch, left, limit, before, say)
    if compiled is not None:
        step.loss, step.way = compiled, "compiled"
    units, fused = isinstance(step.loss, tiles.TilesLoss), getattr(step.loss, "fuses", False)
    others = [*dict.fromkeys(algorithms.values()), *["fused norms"] * fused, *[tiles.NAME] * units]
    step.way = ", ".join([step.way, *others])
    evidence = {"threads": chosen.threads, "layout": chosen.layout, "compiled": compiled is not None, "why": why}
    for layer, name in algorithms.items():
        evidence.setdefault(name, []).append(str(layer))
    evidence |= ({"fused": True} if fused else {}) | ({"units": True} if units else {})
    evidence["set_up_seconds"] = round(time.perf_counter() - begun, 2)
    same = ("threads", "layout", "compiled", *convolutions.ALGORITHMS, "fused", "units")
    if changed := [name for name in same if before and before.get(name) != evidence.get(name)]:
        was = ", ".join(f"{name} {before.get(name, 'none')}" for name in changed)
        say(f"note: it was begun with {was}; continued otherwise, its bits are not those of an undisturbed run")
    return evidence


def _still_met(step: Step, algorithms: dict, batch) -> dict:
    """Of the convolutions by other algorithms those that units on tiles leave; the step is left with these."""
    if not algorithms or not isinstance(step.loss, tiles.TilesLoss):
        return algorithms
    x, y = batch()
    step.loss.loss, step.convolutions = step.loss.loss.loss, contextlib.nullcontext
    met = convolutions.layers_met(Passes(step, x[: len(x) // step.parts], y[: len(y) // step.parts]))
    kept = {layer: name for layer, name in algorithms.items() if layer in met}
    if kept:
        step.loss.loss = convolutions.OtherLoss(step.loss.loss, kept)
        step.convolutions = step.loss.loss.convolutions
    return kept


def describe(precision: str, evidence: dict) -> str:
    """The evidence in one line for the user."""
    threads = f"{evidence['threads']} thread{'s' * (evidence['threads'] > 1)}"
    way = "compiled" if evidence["compiled"] else "not compiled"
    counts = {name: len(evidence.get(key, ())) for key, name in NAMES.items()}
    other = "".join(f", {n} kind{'s' * (n > 1)} of convolution by {name}" for name, n in counts.items() if n)
    other += ", batch norm and ReLU in one go" if evidence.get("fused") else ""
    other += ", with their convolution on matrix tiles" if evidence.get("units") else ""
    return f"{precision}, {evidence['layout']}, {threads}{other}, {way} ({evidence['why']})"


def _decide(step, chosen, batch, left, limit, before, say) -> tuple[CompiledLoss | None, str]:
    """The compiled loss to train with, or None, and why."""
    if chosen.compile is False:
        reasons = {"given": "as RESLIB_TUNE says", "default": "short or deterministic"}
        return None, reasons.get(chosen.origin, "as asked for")
    if reason := unsuitable(step):
        return None, reason
    if "fourier" in getattr(step.loss, "algorithms", {}).values():
        return None, "large kernels transformed instead"
    if chosen.compile is None and before is not None and not before["compiled"]:
        return None, "as the run was begun"
    sure = bool(chosen.compile or (before and before["compiled"]))
    if reason := cannot_compile():
        if sure:
            say(f"not compiled: {reason}")
        return None, reason
    x, y = batch()
    x, y = x[: len(x) // step.parts], y[: len(y) // step.parts]
    key = trials.network_key(step, x, chosen) + " | fused norms" * getattr(step.loss, "fuses", False)
    key += f" | {tiles.NAME}" * isinstance(step.loss, tiles.TilesLoss)
    known = None if sure else known_trials().get(key)
    if known and not known.wins:
        return None, f"measured before: {known}"
    passes = Passes(step, x, y)
    if not sure:
        expected = known.compile_seconds if known else expected_seconds(step)
        rest = left * min(passes.seconds(step.loss) for _ in range(2))
        if left < LONG or (rest if limit is None else min(rest, limit)) < PAYS_AFTER * expected:
            return None, f"too short to win back about {expected:.0f} s of compilation"
        if known is None:
            say(f"compiling the step to see whether that is faster, about {expected:.0f} s ...")
            loss, trial = try_compiled(passes, say)
            remember(key, trial)
            return (loss if trial.wins else None), str(trial)
    loss = CompiledLoss(without(step.loss), say)
    passes.seconds(loss)  # compiles
    if loss.reason:
        return None, loss.reason
    if chosen.compile:
        return loss, "as RESLIB_TUNE says" if chosen.origin == "given" else "as asked for"
    return loss, f"measured before: {known}" if known else "as the run was begun"


def unsuitable(step: Step) -> str:
    """Why a step's passes are left as they are whatever a measurement would say; empty if nothing speaks against it."""
    if type(step) is not Step or step.device.type != "cpu":
        return "not a plain step on the processor"
    return uncompilable(step)


def uncompilable(step: Step) -> str:
    """Why torch.compile must not have a step's network; empty if nothing speaks against it."""
    if step.group.world > 1:
        return "one of several processes"
    if getattr(step.model, "activation_checkpointing", False):
        return "activation checkpointing"
    if not type(step.model).__module__.startswith("reslib.") and not getattr(step.model, "compilable", False):
        # torch.compile would freeze numbers that a forward pass draws or counts in Python; a trial would add to them
        return "a network of one's own without `compilable = True`"
    return ""


def try_compiled(passes: Passes, say=print, rounds: int = ROUNDS) -> tuple[CompiledLoss | None, Trial]:
    """Compile these passes and compare them with the eager ones, in results and in time, in turn."""
    step = passes.step
    loss = CompiledLoss(without(step.loss), say)
    layers = layers_of(step.model)
    begun = time.perf_counter()
    theirs = passes.run(loss)
    compile_seconds = time.perf_counter() - begun
    mine = passes.run(step.loss)
    if loss.reason or not sound(passes, mine, theirs):
        if not loss.reason:
            say(f"not compiled: loss or gradient would be off by {100 * difference(mine, theirs):.1f}%")
        return None, Trial(mine[0], None, compile_seconds, layers)
    eager, compiled = [], []
    for _ in range(rounds):
        eager.append(passes.seconds(step.loss))
        compiled.append(passes.seconds(loss))
    return loss, Trial(min(eager), min(compiled), compile_seconds, layers)


def layers_of(model: nn.Module) -> int:
    """Convolutions and fully connected layers of a network."""
    return sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())


def expected_seconds(step: Step) -> float:
    """What compiling this step will take, by the compilations timed on this machine."""
    rates = [t.compile_seconds / t.layers for t in known_trials().values() if t.layers]
    return layers_of(step.model) * max(rates, default=SECONDS_PER_LAYER)


def known_trials(name: str = COMPILE) -> dict[str, Trial]:
    """Key of a network -> Trial of this machine, in a file of tune.TRIALS; a damaged entry counts as not made."""
    found = {}
    for key, entry in trials.known(name).items():
        with contextlib.suppress(ValueError, TypeError):
            trial = Trial(**entry)
            str(trial)  # all of them numbers
            found[key] = trial
    return found


def forget(key: str, name: str) -> None:
    """Forget a trial of this machine: the next run makes it again."""
    if key in known_trials(name):
        trials.keep(name, {key: None})


def remember(key: str, trial: Trial, name: str = COMPILE) -> None:
    """Keep a trial for this machine."""
    trials.keep(name, {key: dataclasses.asdict(trial)})
