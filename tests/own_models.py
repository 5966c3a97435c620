"""Small networks for the tests of training, named on the command line as `own_models:Small` and so on."""

import torch
import torch.nn.functional as F
from torch import nn


class Small(nn.Module):
    """One convolution, batch norm, a linear layer: a step takes a millisecond."""

    def __init__(self, num_classes: int = 10, dropout: float = 0.0):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, stride=4, bias=False), nn.BatchNorm2d(8)
        self.dropout, self.fc = nn.Dropout(dropout), nn.Linear(8 * 64, num_classes)
        self.stochastic = dropout > 0

    def forward(self, x):
        return self.fc(self.dropout(F.relu(self.norm(self.conv(x))).flatten(1)))


class Compilable(Small):
    """Says that torch.compile may have it: its forward pass draws and counts nothing in Python."""

    compilable = True


class Wide(Small):
    """With a convolution of a large kernel."""

    compilable = True

    def __init__(self, num_classes: int = 10):
        super().__init__(num_classes, dropout=0.5)
        self.large = nn.Conv2d(8, 8, 7, padding=3)

    def forward(self, x):
        return self.fc(self.dropout(self.large(F.relu(self.norm(self.conv(x))))).flatten(1))


class OwnLoss(Small):
    """With a loss of its own, in which part of the network takes part only half of the time."""

    def __init__(self, num_classes: int = 10):
        super().__init__(num_classes)
        self.extra = nn.Linear(num_classes, 1)

    def training_loss(self, x, y, progress):
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        if float(progress) >= 0.5:
            loss = loss + 0.1 * self.extra(logits).square().mean()
        return loss, logits


class NaNAfter(Small):
    """Its loss is no number from step `steps` on."""

    def __init__(self, num_classes: int = 10, steps: int = 5):
        super().__init__(num_classes)
        self.left = steps

    def forward(self, x):
        logits = super().forward(x)
        if self.training:
            self.left -= 1
            if self.left <= 0:
                return logits * float("nan")
        return logits


class Poisoned(Small):
    """Its loss is a number, its gradients are not."""

    def __init__(self, num_classes: int = 10):
        super().__init__(num_classes)
        self.fc.weight.register_hook(lambda gradient: gradient * float("inf"))


class Dead(Small):
    """Always the same answer, whatever the image."""

    def forward(self, x):
        return super().forward(x) * 0.0 + torch.arange(10.0)


class Hungry(Small):
    """Asks for more memory than any machine has."""

    def forward(self, x):
        if self.training:
            torch.empty(1 << 46)
        return super().forward(x)


class NaNInEvaluation(Small):
    """Sound in training, no numbers on whole images: as moving averages that have overflowed."""

    def forward(self, x):
        return super().forward(x) * (1.0 if self.training else float("nan"))
