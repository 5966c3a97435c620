"""For the tests of matrix tiles: a unit's drawn arguments, and its results by one way and another."""

import copy

import torch
from convolving import CPU
from torch import nn

from reslib.models.conv_norm_relu import norm_relu
from reslib.numerics import autocast


def drawn(images, inputs, outputs, height, width, added, stride=1):
    """Convolution, norm with weights and averages of its own, maps, what is added to them, slopes of the output.

    height, width: of the output.
    """
    generator = torch.Generator().manual_seed(images + inputs + outputs + height + width)
    conv, norm = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs)
    conv.to(memory_format=torch.channels_last)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) / (3 * inputs**0.5))
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            values.copy_(torch.rand(outputs, generator=generator) + 0.1)
        norm.bias.sub_(0.6)

    def maps(channels, times=1):
        values = torch.randn(images, channels, times * height, times * width, generator=generator).bfloat16()
        return values.contiguous(memory_format=torch.channels_last)

    x, other, slopes = maps(inputs, stride), maps(outputs) if added else None, maps(outputs)
    before = results(
        lambda conv, norm, relu, *others: usually(conv, norm, nn.Identity(), *others), conv, norm, x, other
    )
    slopes[before[0].abs() < 0.05] = 0  # whether ReLU passes these, a rounding decides
    return conv, norm, x, other, slopes


def usually(conv, norm, relu, x, added):
    return norm_relu(norm, relu, conv(x), added)


def results(way, conv, norm, x, added, slopes=None, exact=False):
    """Output, gradients and moving averages of one call: under autocast, or in double precision.

    Without slopes the output in double precision alone.
    """
    exact = exact or slopes is None
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
    if exact:  # from the very numbers that are multiplied
        conv.weight.data = conv.weight.data.bfloat16()
        conv, norm, x = conv.double(), norm.double(), x.double()
        added = None if added is None else added.double()
    x = x.detach().clone().requires_grad_()
    added = None if added is None else added.detach().clone().requires_grad_()
    with autocast(CPU, "fp32" if exact else "bf16"):
        y = way(conv, norm, nn.ReLU(inplace=True), x, added)
    if slopes is None:
        return [y.detach()]
    leaves = [x, conv.weight, norm.weight, norm.bias, *([added] if added is not None else [])]
    gradients = torch.autograd.grad(y, leaves, slopes.to(y.dtype))
    return [y.detach(), *gradients, norm.running_mean, norm.running_var, norm.num_batches_tracked]


def off(values, truth):
    return float((values.double() - truth.double()).norm() / truth.double().norm().clamp(min=1e-30))
