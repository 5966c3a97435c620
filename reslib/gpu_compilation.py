"""torch.compile of the step that a CUDA GPU replays as one graph: tried on the network itself, kept where it is faster.

The step is captured plain first, in a second or two. Where the run is long enough, its passes are compiled, captured as
well, and the two are timed in turn. Deep nets are compiled block by block: all blocks of one shape share a compilation,
so that it takes as long for 1202 layers as for 56.
"""

from __future__ import annotations

import math
import time

import torch

from .compilation import OPTIONS, CompiledLoss, Trial, known_trials, layers_of, remember, uncompilable
from .engine import CapturedStep
from .models.resnet import Block
from .passes import Passes, difference, sound
from .provenance import device_name
from .tune import COMPILE_GPU, LONG, MARGIN, asked

WHOLE = 20  # layers up to which a residual or plain net is compiled as one: faster still, but it takes longer by depth
EXPECTED = 30.0  # seconds of a compilation, until one has been timed here
PAYS_AFTER = 4.0  # times as long as the compilation must the rest of the run be: gains are about a fifth


class BlockwiseLoss(CompiledLoss):
    """`loss(x, y, progress)` with every block of its network through torch.compile; the rest of it stays eager."""

    def _compiled(self, loss):
        self.blocks = [module for module in loss.modules() if isinstance(module, Block)]
        for block in self.blocks:
            block.compile(**OPTIONS)
        self.calls = [block._compiled_call_impl for block in self.blocks]
        self._use(None)
        return self._through_blocks

    def _use(self, calls) -> None:
        """Only within a call: evaluations would be compiled anew for their shapes."""
        for block, call in zip(self.blocks, calls or [None] * len(self.blocks), strict=True):
            block._compiled_call_impl = call

    def _through_blocks(self, x, y, progress):
        self._use(self.calls)
        try:
            return self.eager(x, y, progress)
        finally:
            self._use(None)


def compiled_loss(step, say=print) -> CompiledLoss:
    """The loss of a step through torch.compile, as a whole or block by block."""
    deep = layers_of(step.model) > WHOLE and any(isinstance(m, Block) for m in step.model.modules())
    return (BlockwiseLoss if deep else CompiledLoss)(step.loss, say)


def accelerate(step, left: int, limit: float | None = None, sessions=(), measure: bool = True, say=print) -> None:
    """Let a captured step try compiled passes at its first call, or compile those of any step where that is decided.

    RESLIB_TUNE decides by compile=true or compile=false. sessions: of the run that is continued, whose steps go on as
    the last of them took them. left: steps still to go; limit: seconds, at most, that this process will train.
    measure: whether the choice may depend on a measurement. `step.way` says what came of it. Networks with dropout are
    compiled only where asked for: the soundness of the passes cannot be checked against double precision.
    """
    wanted, before = asked("compile"), way_of(sessions)
    if before and (begun := before.endswith("compiled")) != bool(begun if wanted is None else wanted):
        say(
            f"note: its steps were taken as {before}; continued otherwise, its bits are not those of an undisturbed run"
        )
    if wanted is None and before:
        wanted = begun
    reason = uncompilable(step)
    if wanted:
        if reason:
            say(f"not compiled: {reason}")
        else:
            step.loss = compiled_loss(step, say)
        return
    tried = isinstance(step, CapturedStep) and not step.stochastic and not reason
    if wanted is None and measure and left >= LONG and tried:
        step.trial = GpuTrial(left, limit, say)


def way_of(sessions) -> str:
    """How the last session that took a step took its steps, "" where none was captured."""
    ways = [s.get("step", "") for s in sessions if s.get("to_iteration", 0) > s.get("from_iteration", 0)]
    return ways[-1] if ways and ways[-1].startswith("CUDA graph") else ""


class GpuTrial:
    """What a captured step asks about compiled passes: whether to make them, and whether they win.

    sure: they have won before on this machine, in this network; then they are not timed again.
    """

    def __init__(self, left: int, limit: float | None, say):
        self.left, self.limit, self.say, self.sure = left, limit, say, False
        self.key, self.layers, self.compile_seconds = "", 0, 0.0

    def loss(self, step, seconds: float) -> CompiledLoss | None:
        """Compiled passes of a step that takes `seconds` captured; None where that would not pay or is not right.

        Raises what the passes raise.
        """
        r, shape = step.recipe, "x".join(map(str, step.x.shape))
        where = f"{device_name(step.device)}, torch {torch.__version__}"
        self.key = f"{r.model} {r.options} {r.shortcut} | {shape} | {step.precision} | {where}"
        self.layers = layers_of(step.model)
        known = known_trials(COMPILE_GPU).get(self.key)
        if known and not known.wins:
            self.say(f"not compiled: measured before, {known}")
            return None
        self.sure = bool(known)
        expected = known.compile_seconds if known else EXPECTED
        rest = self.left * seconds
        if (rest if self.limit is None else min(rest, self.limit)) < PAYS_AFTER * expected:
            return None
        purpose = "" if known else " to see whether that is faster"
        self.say(f"compiling the step{purpose}, about {expected:.0f} s ...")
        passes, begun = Passes(step, step.x, step.y), time.perf_counter()
        loss = compiled_loss(step, self.say)
        if loss.reason:
            return None  # no compiler, it has said
        theirs = passes.run(loss.call)  # not through the one that says of any error that there is no compiler
        self.compile_seconds = time.perf_counter() - begun
        loss.proved = True
        mine = passes.run(step.loss)
        if not sound(passes, mine, theirs):
            off = difference(mine, theirs)
            self.say(f"not compiled: loss or gradient would be off by {100 * off:.1f}%")
            if math.isfinite(off):
                self._remember(Trial(seconds, None, self.compile_seconds, self.layers))
            return None
        return loss

    def refused(self, error: Exception) -> None:
        """Something failed on the way: said, and remembered unless the next run may have the room."""
        text = str(error).strip()
        self.say(f"not compiled: {text.splitlines()[0] if text else type(error).__name__}")
        if not isinstance(error, torch.OutOfMemoryError):
            self._remember(Trial(0.0, None, self.compile_seconds, self.layers))

    def wins(self, eager: float, compiled: float) -> bool:
        """Whether the compiled step of these seconds is faster by more than the margin; remembered."""
        trial = Trial(eager, compiled, self.compile_seconds, self.layers)
        self._remember(trial)
        verdict = "kept" if trial.wins else f"not kept: by less than {100 * (MARGIN - 1):.0f}%"
        self.say(
            f"a step takes {1000 * eager:.2f} ms captured, {1000 * compiled:.2f} ms compiled and captured "
            f"(compilation {self.compile_seconds:.0f} s): {verdict}"
        )
        return trial.wins

    def _remember(self, trial: Trial) -> None:
        if self.key:
            remember(self.key, trial, COMPILE_GPU)
