"""ImageNet: the loader alone, the network alone, and both together; the slower of the first two bounds the third.

A loader with worker processes works ahead. Every turn with it begins with an empty queue, or batches made while nobody
measured would count; the network's turns come when the workers are gone.
"""

from __future__ import annotations

import collections
import itertools
import statistics
import time

import torch

from .. import data
from ..engine import make_optimizer, make_step
from ..models import build_model
from ..numerics import resolve_precision
from ..presets import imagenet_recipe, preset_of
from ..tune import choice, keep_memory
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
    if device.type == "cpu":
        keep_memory()
        torch.set_num_threads(choice().threads)
    rates = {"loader_alone": [], "model_alone": [], "both": []}

    def turn(name, images):
        """Time a step for each of `steps` batches, or their making alone."""
        synchronize(device)
        begun = time.perf_counter()
        for i, (x, y) in enumerate(itertools.islice(images, steps)):
            if name != "loader_alone":
                step(x, y, i % recipe.iterations)
        synchronize(device)
        rates[name].append(steps * recipe.batch_size / (time.perf_counter() - begun))

    for number in range(rounds):
        stream = batches.stream(number * steps, 1 << 40)
        x, y = next(stream)
        if not number:
            step(x, y, 0)  # set-up and capture are not measured
        for name in ("loader_alone", "both"):
            collections.deque(itertools.islice(stream, batches.reader.ahead), maxlen=0)  # what is ready is not measured
            turn(name, stream)
        stream.close()
        turn("model_alone", itertools.repeat((x, y)))
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
