"""What is random about ImageNet-style training, as pure functions of (seed, position).

Hashes of counters instead of a generator's state: the same on every device and with every version of numpy and torch,
and a resumed run or one of many workers computes its part without what came before.
"""

from __future__ import annotations

import numpy as np
import torch

from ..errors import UserError
from .synthetic import mix64

COLOUR_STD = 0.1  # of the multiples of the principal components (Krizhevsky et al. 2012, section 4.1)
_ORDER, _VIEWS, _SUBSET = 1, 2, 3  # separate streams of random numbers


def _keys(seed: int, stream: int, counters: np.ndarray) -> np.ndarray:
    """uint64 hashes of (seed, stream, counter)."""
    start = mix64(np.array([4 * seed + stream], np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return mix64(start + counters.astype(np.uint64) * np.uint64(0xD1342543DE82EF95))


def permutation(seed: int, epoch: int, count: int, stream: int = _ORDER) -> np.ndarray:
    """The order of the images in one epoch: int64 (count,), the same with every version of numpy and torch."""
    start = _keys(seed, stream, np.array([epoch]))
    return mix64(start + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).argsort(kind="stable")


def draw(recipe, positions) -> dict[str, torch.Tensor]:
    """The random view of each position (n,) of the training stream, by recipe.augmentation, crops, seed and sizes.

    scale (n,) int64: shorter side in pixels, uniform over scale_range, both ends included;
    top, left (n,) in 0..1: the crop starts at pixel floor(top * (height - crop + 1)); flip (n,) bool;
    alpha (n, 3): multiples of the three principal components of RGB, normal with standard deviation 0.1.
    "crop-flip" keeps the scale at scale_range[0] and the colours; "none" gives the centre view of testing.
    """
    positions = np.asarray(positions, np.int64)
    if recipe.crops == "batch":
        positions = positions // recipe.batch_size * recipe.batch_size
    keys = _keys(recipe.seed, _VIEWS, positions)
    counters = np.arange(1, 9, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    uniform = (mix64(keys[:, None] + counters) >> np.uint64(11)).astype(np.float64) / 2.0**53  # (n, 8)
    low, high = recipe.scale_range
    scale = low + np.floor(uniform[:, 0] * (high - low + 1)).astype(np.int64)
    top, left, flip = uniform[:, 1], uniform[:, 2], uniform[:, 3] < 0.5
    radius = np.sqrt(-2 * np.log(1 - uniform[:, 4:6]))  # Box-Muller
    angle = 2 * np.pi * uniform[:, 6:8]
    alpha = np.stack([radius[:, 0] * np.cos(angle[:, 0]), radius[:, 0] * np.sin(angle[:, 0])], 1)
    alpha = COLOUR_STD * np.concatenate([alpha, (radius[:, 1] * np.cos(angle[:, 1]))[:, None]], 1)
    if recipe.augmentation != "scale-crop-flip-color":
        scale, alpha = np.full_like(scale, low), np.zeros_like(alpha)
    if recipe.augmentation == "none":
        scale, flip = np.full_like(scale, centre_scale(recipe.crop_size)), np.zeros_like(flip)
        top, left = np.full_like(top, 0.5), np.full_like(left, 0.5)
    views = {"scale": scale, "top": top, "left": left, "flip": flip, "alpha": alpha.astype(np.float32)}
    return {name: torch.from_numpy(value) for name, value in views.items()}


def centre_scale(crop: int) -> int:
    """Shorter side in pixels of the single-crop test: 256 for crops of 224."""
    return round(256 * crop / 224)


def split_indices(count: int, val_size: int, train_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for validation of a training set sorted by class; the same for every seed."""
    if val_size + max(train_size, 1) > count:
        hint = "; train_size=0 takes all of them" if train_size and val_size < count else ""
        asked = f"val_size {val_size} and train_size {train_size}"
        raise UserError(f"{asked} need more than the {count} training images{hint}")
    shuffled = permutation(0, 0, count, _SUBSET)
    stop = val_size + train_size if train_size else count
    return np.sort(shuffled[val_size:stop]), np.sort(shuffled[:val_size])


def mixed(count: int, size: int) -> np.ndarray:
    """Indices of `size` of `count` images in an order that mixes a sorted set; the same for every seed and machine."""
    return permutation(0, 0, count, _SUBSET)[:size]


def few_of(labels: torch.Tensor, size: int) -> torch.Tensor:
    """Indices of `size` of these images: the first ones, or where they are sorted by class some of every class."""
    if len(labels) < 2 or bool((labels.diff() < 0).any()):
        return torch.arange(min(size, len(labels)))
    return torch.from_numpy(mixed(len(labels), size))


def first_images(count: int, size: int) -> np.ndarray:
    """Indices of `size` of `count` images (all for 0), not only of the first classes; the same for every seed."""
    return np.arange(count) if not 0 < size < count else np.sort(mixed(count, size))
