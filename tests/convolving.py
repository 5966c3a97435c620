"""For the tests of convolutions: a layer computed directly and by another algorithm; a step with its first batch."""

import functools

import torch
import torch.nn.functional as F
from training import tiny

from reslib.convolutions.choose import convolve
from reslib.engine import make_optimizer, make_step
from reslib.models import build_model
from reslib.numerics import autocast

CPU = torch.device("cpu")


def results(convolve, layer, dtype=torch.float64, batch=2, form=torch.contiguous_format):
    """(output, gradients of input, kernel and bias) of convolve(x, weight, bias) on the same random numbers.

    A layer in bf16 is computed under autocast, but in double precision.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        return (values.contiguous(memory_format=form) if len(shape) == 4 else values).requires_grad_()

    x = draw(batch, layer.inputs, *layer.size)
    weight, bias = draw(layer.outputs, layer.inputs, *layer.kernel), draw(layer.outputs)
    with autocast(CPU, layer.precision if dtype == torch.float32 else "fp32"):
        y = convolve(x, weight, bias)
    slope = torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)
    return (y.detach(), *torch.autograd.grad((y * slope).sum(), (x, weight, bias)))


def directly(layer, *others, **options):
    """`results` of PyTorch's own convolution."""
    return results(functools.partial(F.conv2d, padding=layer.padding), layer, *others, **options)


def by(algorithm, layer, *others, **options):
    """`results` of another algorithm."""
    return results(functools.partial(convolve, algorithm, layer), layer, *others, **options)


def errors(algorithm, layer, **options):
    """[(relative error of the algorithm, of the direct sums in the same precision)] of output and gradients."""
    exact = directly(layer, **options)
    direct, other = directly(layer, torch.float32, **options), by(algorithm, layer, torch.float32, **options)
    return [
        tuple(float((values.double() - truth).norm() / truth.norm().clamp(min=1e-30)) for values in (mine, usual))
        for truth, mine, usual in zip(exact, other, direct, strict=True)
    ]


def stepper(model, size=2, precision="fp32", **options):
    """A training step and () -> its first batch. options: of the network."""
    recipe = tiny(model=model, batch_size=size)
    torch.manual_seed(0)
    net = build_model(model, **options).to(memory_format=torch.channels_last).train()
    step = make_step(recipe, net, make_optimizer(recipe, net, CPU), CPU, precision)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(size, 3, 32, 32, generator=generator), torch.arange(size) % 10
    return step, lambda: (images, labels)
