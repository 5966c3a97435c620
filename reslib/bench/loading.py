"""ImageNet: the loader alone, the network alone, and both together; the slower of the first two bounds the third."""

from __future__ import annotations

import itertools
import statistics
import time

import torch

from .. import data
from ..engine import make_optimizer, make_step
from ..models import build_model
from ..numerics import resolve_precision
from ..studies import imagenet_recipe, preset_of
from ..tune import accelerate
from .clock import synchronize


def loading(
    model: str, dataset: str, device, rounds: int, steps: int, root=None, preset="medium", say=print, **changes
):
    """Images per second of the three, medians of alternating rounds of `steps` batches."""
    recipe = imagenet_recipe(model, preset_of(preset), dataset, **changes)
    source = data.load(dataset, root)
    batches = data.batches_for(recipe, source, device)
    precision = resolve_precision("auto", device)
    net = build_model(model, len(source.classes), recipe.shortcut)
    net.to(device, memory_format=torch.channels_last).train()
    step = make_step(recipe, net, make_optimizer(recipe, net, device), device, precision)
    accelerate(step, say=say)
    stream = batches.stream(0, 1 << 40)
    x, y = next(stream)
    step(x, y, 0)

    def loader_alone():
        for _ in itertools.islice(stream, steps):
            pass

    def model_alone():
        for i in range(steps):
            step(x, y, i % recipe.iterations)

    def both():
        for i, (images, labels) in enumerate(itertools.islice(stream, steps)):
            step(images, labels, i % recipe.iterations)

    kinds = {"loader_alone": loader_alone, "model_alone": model_alone, "both": both}
    rates = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, work in kinds.items():
            synchronize(device)
            begun = time.perf_counter()
            work()
            synchronize(device)
            rates[name].append(steps * recipe.batch_size / (time.perf_counter() - begun))
    stream.close()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in medians.items():
        say(f"  {name.replace('_', ' ')}: {value:.0f} images/s")
    return {
        "model": model,
        "dataset": dataset,
        "crop_size": recipe.crop_size,
        "batch_size": recipe.batch_size,
        "precision": precision,
        "images_per_second": medians,
        "images_per_second_turns": rates,
    }
