"""FitNet-4, row 4 of Table 6: Romero et al., *FitNets: Hints for Thin Deep Nets* (2014).

Trained directly by default; with hints from a teacher that was trained here:

    reslib train maxout --preset medium                                # it prints the name of its run folder
    reslib train fitnet19 --preset medium --teacher maxout-cifar10-s0-...     # its own row: FitNet-19 [teacher=true]

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .initial import initialise, variance_after
from .losses import cross_entropy
from .maxout import MaxoutConv, MaxoutLinear


class FitNet19(nn.Module):
    """FitNet-4 (Romero et al. 2014), 19 layers: 17 maxout convolutions 3x3, a dense maxout layer, softmax.

    Widths 32 32 32 48 48 | 80 x 6 | 128 x 6, max pools 2, 2 and 8. The released file gives the dense layer 500 units
    of five pieces, 2.74M parameters; two pieces give the paper's 2.5M (and its 250K for FitNet-1), the default here.

    batch_norm: on by default, a departure. The original has none, and its authors needed hints to train it. Without it
    short starts here (50 or 60 iterations) ended near chance at learning rates up to 0.01 and diverged from 0.02 on.
    It has no scale, so the parameter count is unchanged.

    teacher: a trained maxout network (anything with `guide`), frozen, kept out of the parameters and checkpoints, which
    must have been trained with the same preprocessing. While progress < hint_fraction the loss is the hint loss alone,
    half the mean square between the teacher's hint and a convolutional maxout regressor on layer 11; after that
    cross-entropy + lambda * soft cross-entropy at temperature 3, lambda falling linearly from 4 to 1 (the release's
    numbers). The regressor's parameters are extra, and unused in the end. Without a teacher: cross-entropy.
    """

    widths = (32, 32, 32, 48, 48, 80, 80, 80, 80, 80, 80, 128, 128, 128, 128, 128, 128)
    pooled = (4, 10)  # layers, counted from 0, that end in a 2x2 max pool; the second is the guided layer
    stochastic = False

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        teacher: nn.Module | None = None,
        hint_fraction: float = 0.1,
        temperature: float = 3.0,
        dense_pieces: int = 2,
        batch_norm: bool = True,
    ):
        super().__init__()
        if teacher is not None and not hasattr(teacher, "guide"):
            raise UserError(f"teacher {type(teacher).__name__} gives no hints: allowed is a maxout network")
        if not 0 <= hint_fraction < 1:
            raise UserError(f"hint_fraction {hint_fraction} is out of range: allowed is 0 up to, not including, 1")
        self.hint_fraction, self.temperature = hint_fraction, temperature
        self.convs = nn.ModuleList(
            MaxoutConv(a, b, 3, padding=1, variance=variance_after(2) if a > 3 else 0.0, batch_norm=batch_norm)
            for a, b in zip((3, *self.widths), self.widths, strict=False)
        )
        self.dense = MaxoutLinear(128, 500, dense_pieces, variance=variance_after(2))
        self.classifier = initialise(nn.Linear(500, num_classes), std=0.01)
        self._teacher = []  # a list hides the teacher from parameters(), state_dict() and train()
        if teacher is not None:
            self._teacher.append(teacher.eval().requires_grad_(False))
            example = next(teacher.parameters()).new_zeros(1, 3, image_size, image_size)
            with torch.no_grad():
                hint = teacher.guide(example)[0]
            kernel = image_size // 4 - hint.shape[2] + 1  # 2: it takes the 8x8 map to the teacher's 7x7
            self.regressor = MaxoutConv(
                self.widths[self.pooled[1]], hint.shape[1], kernel, padding=0, variance=variance_after(2)
            )

    def _apply(self, fn, recurse=True):  # to(device) and the like take the teacher along
        for teacher in self._teacher:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def guided_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled map of the guided layer (N, 80, 8, 8) and the logits (N, K)."""
        for i, layer in enumerate(self.convs):
            x = layer(x)
            if i in self.pooled:
                x = F.max_pool2d(x, 2)
            if i == self.pooled[1]:
                guided = x
        x = x.amax((2, 3))  # (N, 128): the 8x8 pool
        return guided, self.classifier(self.dense(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.guided_and_logits(x)[1]

    def training_loss(self, x: Tensor, y: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        """Loss with the teacher's hints where there is a teacher (progress from 0 to 1), and the logits."""
        guided, logits = self.guided_and_logits(x)
        loss = cross_entropy(logits, y)
        if not self._teacher:
            return loss, logits
        with torch.no_grad():
            hint, teacher_logits = self._teacher[0].guide(x)
        hint_loss = 0.5 * F.mse_loss(self.regressor(guided).float(), hint.float())
        soft_targets = (teacher_logits.float() / self.temperature).softmax(1)
        distillation = F.cross_entropy(logits.float() / self.temperature, soft_targets)
        mix = 4 - 3 * (progress - self.hint_fraction) / (1 - self.hint_fraction)  # lambda of stage 2
        stage1 = progress < self.hint_fraction  # a tensor: no branch, so that a CUDA graph can hold both stages
        return torch.where(stage1, hint_loss, loss + mix * distillation), logits
