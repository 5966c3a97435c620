"""torch.compile of the step that a CUDA GPU replays as one graph: tried on the network itself, kept where it is faster.

The step is captured plain first, in a second or two. Where the run is long enough, its passes are compiled, captured as
well, and the two are timed in turn. Deep nets are compiled block by block: all blocks of one shape share a compilation,
so that it takes as long for 1202 layers as for 56.
"""

from __future__ import annotations

import time

import torch

from .compilation import OPTIONS, CompiledLoss, Trial, cannot_compile, known_trials, layers_of, remember, uncompilable
from .models.resnet import Block
from .passes import Passes, difference, sound
from .provenance import device_name
from .tune import LONG, MARGIN, asked

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


def accelerate(step, left: int, limit: float | None = None, before: str = "", measure: bool = True, say=print) -> None:
    """Let a captured step try compiled passes at its first call, or compile them right away where that is decided.

    RESLIB_TUNE decides by compile=true or compile=false. before: how the steps of the session were taken that the run
    continues ("CUDA graph, compiled"), which go on alike. left: steps still to go; limit: seconds, at most, that this
    process will train. measure: whether the choice may depend on a measurement. `step.way` says what came of it.
    """
    wanted = asked("compile")
    if wanted is None and before.startswith("CUDA graph"):
        wanted = before.endswith("compiled")
    if wanted:
        if reason := uncompilable(step) or cannot_compile():
            say(f"not compiled: {reason}")
        else:
            step.loss = compiled_loss(step, say)
    elif wanted is None and measure and left >= LONG and hasattr(step, "trial") and not step.stochastic:
        if not (uncompilable(step) or cannot_compile()):
            step.trial = GpuTrial(left, limit, say)


class GpuTrial:
    """What a captured step asks about compiled passes: whether to make them, and whether they win."""

    def __init__(self, left: int, limit: float | None, say):
        self.left, self.limit, self.say = left, limit, say
        self.key, self.layers, self.compile_seconds = "", 0, 0.0

    def loss(self, step, seconds: float) -> CompiledLoss | None:
        """Compiled passes of a step that takes `seconds` captured; None where that would not pay or is not right."""
        r, shape = step.recipe, "x".join(map(str, step.x.shape))
        where = f"{device_name(step.device)}, torch {torch.__version__}"
        self.key = f"{r.model} {r.options} {r.shortcut} | {shape} | {step.precision} captured | {where}"
        self.layers = layers_of(step.model)
        known = known_trials().get(self.key)
        if known and not known.wins:
            self.say(f"not compiled: measured before, {known}")
            return None
        expected = known.compile_seconds if known else EXPECTED
        rest = self.left * seconds
        if (rest if self.limit is None else min(rest, self.limit)) < PAYS_AFTER * expected:
            return None
        self.say(f"compiling the step to see whether that is faster, about {expected:.0f} s ...")
        passes, begun = Passes(step, step.x, step.y), time.perf_counter()
        loss = compiled_loss(step, self.say)
        try:
            theirs = passes.run(loss)
        except Exception as error:  # compilers fail in many ways
            loss.give_up(error)
        if loss.reason:
            return self._never(seconds)
        self.compile_seconds = time.perf_counter() - begun
        mine = passes.run(step.loss)
        if not sound(passes, mine, theirs):
            self.say(f"not compiled: loss or gradient would be off by {100 * difference(mine, theirs):.1f}%")
            return self._never(seconds)
        return loss

    def _never(self, seconds: float) -> None:
        remember(self.key, Trial(seconds, None, self.compile_seconds, self.layers))

    def refused(self, reason: str) -> None:
        """The compiled passes could not be captured: said, and not remembered, since the next run may have the room."""
        self.say(f"not compiled: {reason}")

    def wins(self, eager: float, compiled: float) -> bool:
        """Whether the compiled step of these seconds is faster by more than the margin; remembered."""
        trial = Trial(eager, compiled, self.compile_seconds, self.layers)
        remember(self.key, trial)
        verdict = "kept" if trial.wins else f"not kept: by less than {100 * (MARGIN - 1):.0f}%"
        self.say(
            f"a step takes {1000 * eager:.2f} ms captured, {1000 * compiled:.2f} ms compiled and captured "
            f"(compilation {self.compile_seconds:.0f} s): {verdict}"
        )
        return trial.wins
