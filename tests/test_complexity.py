"""Counts against hand computation, torch's own flop counter and the paper."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reslib import complexity, paper
from reslib.models import build_model


def test_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    conv = 8 * 8 * 8 * (3 * 9) + 8 * 8 * 8 * (2 * 9)  # C_out H W, times C_in/groups k k
    assert complexity.multiply_adds(model, 16) == conv + 5120
    assert complexity.multiply_adds(model, 16, fc=False) == conv
    assert complexity.parameters(model) == 8 * 27 + 8 + 8 * 18 + 8 + 5120 + 10
    assert complexity.weighted_layers(model) == 3


def test_transposed_convolution():
    layer = nn.ConvTranspose2d(4, 6, 2, stride=2)
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, 4, 8, 8))
    assert 2 * complexity.multiply_adds(layer, 8, channels=4) == counter.get_total_flops()


@pytest.mark.parametrize("name", ["resnet20", "plain20", "highway19", "nin"])
def test_half_of_torchs_flops(name):
    model = build_model(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert 2 * complexity.multiply_adds(model, 32) == counter.get_total_flops()


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_imagenet_networks_cost_what_table_1_says(depth):
    model = build_model(f"resnet{depth}", num_classes=1000, shortcut="B")
    assert complexity.multiply_adds(model, 224) == pytest.approx(paper.MULTIPLY_ADDS[f"resnet{depth}"], rel=0.02)
    assert complexity.weighted_layers(model) == depth  # projections do not count


@pytest.mark.parametrize("name,layers", [("plain20", 20), ("resnet56", 56), ("highway32", 32), ("fitnet19", 19)])
def test_weighted_layers_are_the_number_in_the_name(name, layers):
    assert complexity.weighted_layers(build_model(name)) == layers


def test_vgg_with_and_without_fc():
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        vgg16, vgg19 = models.vgg16(weights=None, init_weights=False), models.vgg19(weights=None, init_weights=False)
    assert complexity.multiply_adds(vgg16, 224, fc=False) == pytest.approx(paper.MULTIPLY_ADDS["vgg16"], rel=0.01)
    assert complexity.multiply_adds(vgg19, 224) == pytest.approx(paper.MULTIPLY_ADDS["vgg19"], rel=0.01)


class LooksAtValues(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 2)

    def forward(self, x):
        return self.fc(x.flatten(1)) * float(x.sum() >= 0)


def test_a_network_that_looks_at_values_is_counted_too():
    assert complexity.multiply_adds(LooksAtValues(), 2) == 24


def test_the_model_is_left_as_it_was():
    model = build_model("resnet20").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    complexity.multiply_adds(model, 32)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
