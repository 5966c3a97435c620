"""ImageNet testing against slow, obvious references: crops one by one, sliding windows in a loop, sorting by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms import functional as TF

from reslib.data.imagenet import FolderBatches
from reslib.errors import UserError
from reslib.evaluate import (
    Views,
    centre_crop_logits,
    ensemble,
    evaluate_views,
    merge_views,
    multi_scale_scores,
    resize,
    ten_crop_scores,
    top_k_errors,
)
from tests_imagenet_helpers import in_memory, make_set, on_disk, tiny


class TinyNet(nn.Module):
    """Stride 8, ReLU maps, global pooling and fc: a ResNet as far as testing is concerned."""

    def __init__(self, classes=6):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1), nn.ReLU()
        )
        self.fc = nn.Linear(16, classes)
        nn.init.normal_(self.fc.weight, std=2)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class Torchvision(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.net = resnet18(num_classes=7)
        self.fc = self.net.fc

    def features(self, x):
        n = self.net
        return n.layer4(n.layer3(n.layer2(n.layer1(n.maxpool(n.relu(n.bn1(n.conv1(x))))))))

    def forward(self, x):
        return self.net(x)
