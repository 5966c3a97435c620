"""Which mean and variance batch norm tests with: the moving averages of training, or exact ones, taken after it.

Exact ones of what is a second question. In training a net sees crops of padded images, which vary less than the images
as they are. So both are measured on each trained network: of crops, as it was trained, and of whole images.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import torch
from torch import nn

from .exact_rows import KINDS, MEASURED, TRAINING_IMAGES
from .measure import batch_norms, exact_statistics, whole_images
from .probes import images_of, of_runs
from .recipe import Recipe

CROPS, WHOLE = KINDS


def measure(model: nn.Module, batches, after: int, device: torch.device) -> pd.DataFrame:
    """Test images that a network gets wrong with moving and with exact statistics: a row for each of KINDS.

    after: iterations of the training; the crops are those that would have come next. Columns kind, images (tested),
    moving_wrong, exact_wrong, and of the latter's difference what exact statistics mended and spoiled.
    """
    wanted = min(TRAINING_IMAGES, len(batches))
    training = {
        CROPS: map(batches.batch, range(after, after + -(-wanted // batches.recipe.batch_size))),
        WHOLE: whole_images(batches, wanted),
    }
    rows, moving = [], _wrong(model, batches.eval_batches("test"))
    for kind, images in training.items():
        with exact_statistics(model, images, device):
            exact = _wrong(model, batches.eval_batches("test"))
        counts = len(moving), moving.sum(), exact.sum(), (moving & ~exact).sum(), (exact & ~moving).sum()
        rows.append((kind, *map(int, counts)))
    return pd.DataFrame(rows, columns=MEASURED[3:-1])


@torch.no_grad()
def _wrong(model: nn.Module, batches: Iterable) -> torch.Tensor:
    """Whether the answer to each image is wrong, single view."""
    model.eval()
    return torch.cat([(model(x).argmax(1) != y).cpu() for x, y in batches])


def measure_runs(
    runs: pd.DataFrame, data_root=None, device="cpu", known: pd.DataFrame | None = None, may_measure: bool = True
):
    """`measure` of the finished runs: (frame of MEASURED, names of runs that could not be), as probes.of_runs."""
    prepared = {}

    def measured(model: nn.Module, recipe: Recipe) -> pd.DataFrame:
        if not batch_norms(model):
            return pd.DataFrame(columns=MEASURED[3:-1])
        batches = images_of(recipe, data_root, device, prepared)
        return measure(model, batches, recipe.iterations, torch.device(device))

    return of_runs(runs, measured, MEASURED, device, known, may_measure)
