"""Multiply-adds, parameters and weighted layers of a network, counted from the network itself (Table 1, section 3.3).

The paper's "FLOPs" are multiply-adds of convolutions and fully connected layers: one per multiplication, where many
tools count two. Batch norm, activations, pooling and the addition of a shortcut are left out, as there.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)

# Parts of a module's name that mark layers beside the main path: projection shortcuts, and the auxiliary classifiers
# and regressors that exist for training only.
SIDE_PATHS = ("shortcut", "projection", "downsample", "companion", "auxiliary", "regressor")


def multiply_adds(model: nn.Module, input_size: int = 32, fc: bool = True, channels: int = 3) -> int:
    """Multiply-adds for one (channels, input_size, input_size) image, one per multiplication; fc=False leaves fc out.

    Counts a copy of the network on the meta device, where nothing is computed; a network that cannot run there (one
    that looks at values) is counted by a real forward pass in evaluation mode. The model itself is left as it was.
    """
    try:
        return count(copy.deepcopy(model).to("meta"), input_size, fc, channels)
    except (NotImplementedError, RuntimeError):  # what is wrong with the network itself is raised again below
        return count(copy.deepcopy(model).to("cpu"), input_size, fc, channels)


def count(model: nn.Module, input_size: int, fc: bool, channels: int) -> int:
    """As `multiply_adds`, by a forward pass of this very model where it lies; it is left in evaluation mode."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), _Multiplications() as counter:
        model.eval()(torch.zeros(1, channels, input_size, input_size, device=device))
    return counter.convolutions + (counter.linear if fc else 0)


class _Multiplications(TorchFunctionMode):
    """Counts the multiply-adds of convolutions and linear layers, also where they are called as functions."""

    def __init__(self):
        super().__init__()
        self.convolutions = self.linear = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        output = function(*arguments, **(options or {}))
        if function in CONVOLUTIONS:  # an output value sums over weight[0]
            self.convolutions += output.numel() * _weight(arguments, options)[0].numel()
        elif function in TRANSPOSED:  # an input value spreads over weight[0]
            self.convolutions += arguments[0].numel() * _weight(arguments, options)[0].numel()
        elif function is F.linear:
            self.linear += output.numel() * _weight(arguments, options).shape[1]
        return output


def _weight(arguments, options) -> torch.Tensor:
    return arguments[1] if len(arguments) > 1 else options["weight"]


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
