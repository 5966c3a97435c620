"""Errors of a network on whole images, and exact batch-norm statistics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from .numerics import autocast


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch-norm layers that keep moving averages."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [m for m in norms if m.running_mean is not None]


class GivenUp(Exception):
    """A measurement was left before its end, by all processes of a job; nothing has changed."""


@torch.no_grad()
def error_and_loss(
    model: nn.Module, batches, device, precision: str = "fp32", reduce=None, leave: Callable[[], bool] = lambda: False
) -> tuple[float, float]:
    """Fraction of wrong top-1 labels and mean cross-entropy over `batches` of (x, y), single view.

    reduce: sums a tensor over processes in place, so that every image counts exactly once.
    leave: asked before each batch; once it is true in any of the processes, all raise GivenUp.
    """
    training = model.training
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device if device.type != "mps" else "cpu")
    for x, y in batches:
        if leave():
            totals[3] = 1
            break
        with autocast(device, precision):
            logits = model(x).float()
        parts = torch.stack([(logits.argmax(1) != y).sum(), F.cross_entropy(logits, y, reduction="sum")])
        totals[:2] += parts.to(totals)
        totals[2] += len(y)
    if reduce is not None:
        reduce(totals)
    model.train(training)
    wrong, loss, count, left = totals.tolist()
    if left:
        raise GivenUp
    return wrong / count, loss / count


@contextlib.contextmanager
def exact_statistics(model: nn.Module, batches, device, precision: str = "fp32"):
    """Within the block, batch-norm layers hold exact averages over `batches` instead of moving ones.

    Averages over training data, taken after training, as the ImageNet models that the authors released hold them.
    """
    norms, training = batch_norms(model), model.training
    kept = [(m.running_mean.clone(), m.running_var.clone(), m.num_batches_tracked.clone(), m.momentum) for m in norms]
    calls = dict.fromkeys(norms, 0)

    def cumulative(norm, inputs):  # as momentum=None, which reads the count from the device at every call
        calls[norm] += 1
        norm.momentum = 1 / calls[norm]

    hooks = [norm.register_forward_pre_hook(cumulative) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    try:
        model.eval()  # no dropout: only the batch-norm layers look at their batch
        for norm in norms:
            norm.train()
        with torch.no_grad(), autocast(device, precision):
            for x, _ in batches:
                model(x)
        yield model
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (mean, var, count, momentum) in zip(norms, kept, strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
            norm.num_batches_tracked.copy_(count)
            norm.momentum = momentum
        model.train(training)


def whole_images(batches, images: int) -> Iterator[tuple]:
    """Batches of so many training images without augmentation, the classes mixed: averaged are variances within a
    batch, and one of a single class has less than the set."""
    size = min(500, images)
    return batches.sample(images // size * size, size)


def exact_bn_error(model: nn.Module, batches, device, precision: str, images: int) -> float | None:
    """Test error with exact statistics from `images` training images; None for a network without batch norm."""
    if not batch_norms(model):
        return None
    with exact_statistics(model, whole_images(batches, images), device, precision):
        return error_and_loss(model, batches.eval_batches("test"), device, precision)[0]
