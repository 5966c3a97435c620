"""Faster passes for the step that a CUDA GPU replays as one graph: tried on the network itself, kept where they win.

The step is captured plain first, in a second or two. Where the run is long enough, other passes are made, captured as
well, and the two are timed in turn: first with the units of thin/, and where those do not win by far, through
torch.compile. Either takes half a minute, the first time on a machine.
"""

from __future__ import annotations

import fcntl
import math
import time

import torch

from .compilation import Trial, forget, known_trials, layers_of, remember, uncompilable
from .engine import CapturedStep
from .errors import UserError, first_line
from .files import lock_file
from .gpu_compilation import compiled_loss
from .passes import TOLERANCE, Passes, difference, sound, unlike_step
from .provenance import device_name
from .thin import NAME, ThinLoss, unavailable
from .trials import path_of
from .tune import COMPILE_GPU, LONG, MARGIN, UNITS_GPU, asked

ENOUGH = 1.4  # times as fast as plain: well above the quarter that torch.compile gains (notebook speed)
DEADLY = 2  # trials that ended their process, after which no run tries again: a kernel can make a device fail
PAYS_AFTER = 4.0  # a trial is made where the rest of the run lasts so many times as long: gains are about a fifth


def accelerate(step, left: int, limit: float | None = None, sessions=(), measure: bool = True, say=print) -> None:
    """Let a captured step try faster passes at its first call, or give any step those that are decided on.

    RESLIB_TUNE decides by compile=true or false and units=true or false. sessions: of the run that is continued, whose
    steps go on as the last of them took them. left: steps still to go; limit: seconds, at most, that this process will
    train. measure: whether the choice may depend on a measurement. `step.way` says what came of it. Networks with
    dropout get other passes only where asked for: their soundness cannot be checked against double precision.
    """
    asked_for, before = {trial.name: asked(trial.field) for trial in TRIALS}, way_of(sessions)
    names = [name for name, wanted in asked_for.items() if wanted]
    if before is not None and not names:
        names = [before] if before and asked_for.get(before) is not False else [""]
    name = names[0] if names else None
    for trial in TRIALS:
        if trial.name == name:
            if reason := trial.unsuitable(step):
                say(f"{trial.refusal}: {reason}")
                name = ""
            else:
                step.loss = trial.passes_of(step, say) or step.loss
        elif trial.name in names:
            say(f"{trial.refusal}: {name} asked for as well")
    if before is not None and name != before:
        was = "CUDA graph" + f", {before}" * bool(before)
        say(f"note: its steps were taken as {was}; continued otherwise, its bits are not those of an undisturbed run")
    tried = isinstance(step, CapturedStep) and not step.stochastic
    if name is None and measure and left >= LONG and tried:
        step.trials = [
            trial(left, limit, say)
            for trial in TRIALS
            if asked_for[trial.name] is not False and not trial.unsuitable(step)
        ]


def way_of(sessions) -> str | None:
    """How the last session that took a step took its steps: a trial's name, "" where plain, None where not captured."""
    ways = [s.get("step", "") for s in sessions if s.get("to_iteration", 0) > s.get("from_iteration", 0)]
    if not ways or not ways[-1].startswith("CUDA graph"):
        return None
    return ways[-1].partition(", ")[2]


class GpuTrial:
    """What a captured step asks about other passes: whether to make them, and whether they win.

    Each kind of passes adds `unsuitable(step)`, why a step must not have them, and `passes_of(step, say)`, the step's
    loss the other way, with `way` and `give_up`, or None where it cannot be made and has said why.

    sure: they have won before on this machine, in this network; then they are not timed again. gain: times as fast as
    the step was.
    """

    name = field = file = ""  # in records, in RESLIB_TUNE, of known trials
    words = refusal = ""  # of messages
    expected = 30.0  # seconds of making them, until that has been timed here
    failures_last = True  # whether what failed once is not tried again

    def __init__(self, left: int, limit: float | None, say):
        self.left, self.limit, self.say, self.sure = left, limit, say, False
        self.key, self.layers, self.seconds, self.gain, self.off = "", 0, 0.0, 1.0, 0.0
        self.held = None  # the lock file, while this process alone tries here

    def first_pass(self, passes: Passes, loss):
        """What a pass through such a loss gives, its failures raised."""
        return passes.run(loss)

    def loss(self, step, seconds: float):
        """The other passes of a step that takes `seconds` captured; None where that would not pay or is not right.

        Raises what the passes raise.
        """
        r, shape = step.recipe, "x".join(map(str, step.x.shape))
        where = f"{device_name(step.device)}, torch {torch.__version__}"
        self.key = f"{r.model} {r.options} {r.shortcut} | {shape} | {step.precision} | {where}"
        if against := getattr(step.loss, "way", ""):
            self.key += f" | against {against}"
        self.layers = layers_of(step.model)
        known = known_trials(self.file).get(self.key)
        if alone := not (known and not known.begun) and self._hold():
            known = known_trials(self.file).get(self.key)
        begun = known.begun if known else 0
        if alone and begun >= DEADLY:
            self.say(f"{self.refusal}: {begun} trials ended their process; RESLIB_TUNE={self.field}=true tries again")
            return None
        if begun:
            known = None
        if known and not known.wins:
            self.say(f"{self.refusal}: measured before{self._seconds(known)}")
            return None
        self.sure = bool(known)
        self.gain = known.eager / known.compiled if known else self.gain
        expected = known.compile_seconds if known else self.expected
        rest = self.left * seconds
        if (rest if self.limit is None else min(rest, self.limit)) < PAYS_AFTER * expected:
            return None
        purpose = "" if known else " to see whether that is faster"
        self.say(f"{self.words} the step{purpose}, about {expected:.0f} s ...")
        if alone:  # until it has come to an end
            self._remember(Trial(seconds, None, expected, self.layers, begun + 1))
        passes, start = Passes(step, step.x, step.y), time.perf_counter()
        loss = self.passes_of(step, self.say)
        theirs = self.first_pass(passes, loss) if loss is not None else None
        self.seconds = time.perf_counter() - start
        if loss is None or not loss.way:
            self.forget()
            return None  # nothing in this network that could be otherwise, or no means
        mine = passes.run(step.loss)
        self.off = difference(mine, theirs)
        if not sound(passes, mine, theirs):
            self._wrong(f"loss or gradient would be off by {100 * self.off:.1f}%", math.isfinite(self.off))
            return None
        return loss

    def _hold(self) -> bool:
        """Whether no other process tries here, until `end`: else what it began is under way and has killed nobody."""
        try:
            self.held = lock_file(path_of(self.file).with_suffix(".lock"))
            fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (UserError, OSError):
            self.end()
            return False
        return True

    def end(self) -> None:
        """Let others try."""
        if self.held is not None:
            self.held.close()
            self.held = None

    def agrees(self, names, before, plain, other, precision: str) -> bool:
        """Whether the step does, captured, what the plain one does: parameters, statistics, counts of batches."""
        allowed = max(TOLERANCE[precision], 2 * self.off)
        if unlike := unlike_step(names, before, plain, other, allowed, precision):
            self._wrong(f"captured, {unlike}")
        return not unlike

    def _wrong(self, words: str, last: bool = True) -> None:
        """They compute something else: said and, where it is to last, remembered."""
        self.say(f"{self.refusal}: {words}")
        if last:
            self._remember(Trial(0.0, None, self.seconds, self.layers))
        else:
            self.forget()

    def refused(self, error: Exception) -> None:
        """Something failed on the way: said, and remembered unless the next run may have the room."""
        self._wrong(first_line(error), self.failures_last and not isinstance(error, torch.OutOfMemoryError))

    def wins(self, plain: float, other: float) -> bool:
        """Whether the step of the other passes is faster by more than the margin; remembered."""
        trial = Trial(plain, other, self.seconds, self.layers)
        self._remember(trial)
        self.gain = plain / other
        verdict = "kept" if trial.wins else f"not kept: by less than {100 * (MARGIN - 1):.0f}%"
        self.say(f"a step takes{self._seconds(trial)}: {verdict}")
        return trial.wins

    @property
    def enough(self) -> bool:
        """Whether passes that won gain so much that no others need be tried."""
        return self.gain >= ENOUGH

    def _seconds(self, trial: Trial) -> str:
        if trial.compiled is None:
            return ", it failed or computed something else"
        return (
            f" {1000 * trial.eager:.2f} ms captured, {1000 * trial.compiled:.2f} ms {self.name} and captured "
            f"(compilation {trial.compile_seconds:.0f} s)"
        )

    def forget(self) -> None:
        """The next run tries again."""
        if self.key:
            forget(self.key, self.file)

    def _remember(self, trial: Trial) -> None:
        if self.key:
            remember(self.key, trial, self.file)


class ThinTrial(GpuTrial):
    """Units by kernels of our own (thin/)."""

    name, field, file = NAME, "units", UNITS_GPU
    words, refusal = f"compiling {NAME} for", f"no {NAME}"
    failures_last = False  # the machine may lack what Triton needs, and without it this fails within seconds

    @staticmethod
    def unsuitable(step) -> str:
        """Why a step must not have these passes, "" where nothing speaks against it."""
        if not isinstance(step, CapturedStep):
            return "for captured steps alone"
        if step.precision != "bf16":
            return f"for bf16 alone, not {step.precision}"
        return unavailable(step.device)

    @staticmethod
    def passes_of(step, say):
        """The step's loss the other way."""
        return ThinLoss(step.loss, say)


class CompilerTrial(GpuTrial):
    """torch.compile, of the whole network or block by block (gpu_compilation.py)."""

    name, field, file = "compiled", "compile", COMPILE_GPU
    words, refusal = "compiling", "not compiled"

    @staticmethod
    def unsuitable(step) -> str:
        """Why a step must not have these passes, "" where nothing speaks against it."""
        return uncompilable(step)

    @staticmethod
    def passes_of(step, say):
        """The step's loss the other way, None without a compiler."""
        loss = compiled_loss(step, say)
        return None if loss.reason else loss

    def first_pass(self, passes: Passes, loss):
        """As above; not through the one that says of any error that there is no compiler."""
        result = passes.run(loss.call)
        loss.proved = True
        return result


TRIALS = (ThinTrial, CompilerTrial)  # in this order, until one gains enough
