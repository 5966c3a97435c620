"""Multiply-adds, parameters and weighted layers of a network, counted from the network itself (Table 1, section 3.3).

The paper's "FLOPs" are multiply-adds of convolutions and fully connected layers: one per multiplication, where many
tools count two. Batch norm, activations, pooling and the addition of a shortcut are left out, as there.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

# Parts of a module's name that mark layers beside the main path: projection shortcuts, and the auxiliary classifiers
# and regressors that exist for training only.
SIDE_PATHS = ("shortcut", "projection", "downsample", "companion", "auxiliary", "regressor")


def multiply_adds(model: nn.Module, input_size: int = 32, fc: bool = True, channels: int = 3) -> int:
    """Multiply-adds for one (channels, input_size, input_size) image, one per multiplication; fc=False leaves fc out.

    Counts a copy of the network on the meta device, where nothing is computed; a network that cannot run there (one
    that looks at values) is counted by a real forward pass in evaluation mode. The model itself is left as it was.
    """
    try:
        return _count(copy.deepcopy(model).to("meta"), input_size, fc, channels)
    except (NotImplementedError, RuntimeError):
        return _count(copy.deepcopy(model).to("cpu"), input_size, fc, channels)


def _count(model: nn.Module, input_size: int, fc: bool, channels: int) -> int:
    total = 0

    def count_conv(layer, inputs, output):
        nonlocal total  # an output value sums over weight[0]; in a transposed one every input value spreads over it
        values = inputs[0] if isinstance(layer, _ConvTransposeNd) else output
        total += values.numel() * layer.weight[0].numel()

    def count_linear(layer, inputs, output):
        nonlocal total
        total += output.numel() * layer.in_features

    for layer in model.modules():
        if isinstance(layer, _ConvNd):
            layer.register_forward_hook(count_conv)
        elif fc and isinstance(layer, nn.Linear):
            layer.register_forward_hook(count_linear)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        model.eval()(torch.zeros(1, channels, input_size, input_size, device=device))
    return total


def parameters(model: nn.Module) -> int:
    """Trainable values: weights, biases and batch norm's scale and shift."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def weighted_layers(model: nn.Module) -> int:
    """Convolutions and fully connected layers on the main path, the number in a network's name.

    Layers are told apart by name: anything under a module named like `SIDE_PATHS` is not on the main path.
    """
    return sum(
        isinstance(layer, (_ConvNd, nn.Linear)) and not any(part in name.lower() for part in SIDE_PATHS)
        for name, layer in model.named_modules()
    )
