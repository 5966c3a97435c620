"""Deeply-supervised net, row 3 of Table 6: Lee et al., *Deeply-Supervised Nets* (2014).

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import choose
from .losses import cross_entropy, squared_hinge
from .nin import NIN


class DSN(NIN):
    """Deeply-supervised net (Lee et al. 2014): the NIN body, a linear companion classifier on each k x k convolution.

    Loss = output loss + weight(progress) * sum of max(0, companion loss - gamma). The weight is
    companion_weight * (1 - progress), after the paper's rule for alpha_m, so that the companions fade away; gamma lets
    one vanish sooner. loss="hinge" (squared, the paper's DSN-SVM and the released configuration) or "softmax".
    As in the release both pools are max pools and a companion reads the whole map before ReLU. That release trains
    the companions at 0.001 of the learning rate, a recipe has one rate: here their input is divided by the square
    root of its length, without which some 200,000 inputs make the step diverge.
    """

    def __init__(
        self,
        num_classes: int = 10,
        image_size: int = 32,
        dropout: float = 0.5,
        loss: str = "hinge",
        companion_weight: float = 0.1,
        gamma: float = 0.0,
    ):
        super().__init__(num_classes, dropout, second_pool=nn.MaxPool2d)
        choose("loss", loss, ("hinge", "softmax"))
        self.criterion = squared_hinge if loss == "hinge" else cross_entropy
        self.companion_weight, self.gamma = companion_weight, gamma
        sides = [image_size, image_size // 2, image_size // 4]
        self.companions = nn.ModuleList(nn.Linear(192 * side * side, num_classes) for side in sides)
        for layer in self.companions:
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def training_loss(self, x: Tensor, y: Tensor, progress: Tensor) -> tuple[Tensor, Tensor]:
        """Loss with the companion classifiers', whose weight falls with progress (0 to 1), and the logits."""
        maps, logits = self.hidden_and_logits(x)
        extra = 0.0
        for layer, hidden in zip(self.companions, maps, strict=True):
            flat = hidden.permute(0, 2, 3, 1).flatten(1)  # a view of a channels_last map
            extra = extra + F.relu(self.criterion(layer(flat * flat.shape[1] ** -0.5), y) - self.gamma)
        weight = self.companion_weight * (1 - progress)
        return self.criterion(logits, y) + weight * extra, logits
