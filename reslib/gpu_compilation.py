"""torch.compile of the step that a CUDA GPU replays as one graph; gpu_trials.py says when.

Deep nets are compiled block by block: all blocks of one shape share a compilation, so that it takes as long for 1202
layers as for 56.
"""

from __future__ import annotations

from .compilation import OPTIONS, CompiledLoss, layers_of
from .models.conv_norm_relu import without
from .models.resnet import Block

WHOLE = 20  # layers up to which a residual or plain net is compiled as one: faster still, but it takes longer by depth


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
    return (BlockwiseLoss if deep else CompiledLoss)(without(step.loss), say)
