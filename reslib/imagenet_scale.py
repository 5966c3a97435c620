"""The ImageNet protocol of section 3.4 divided by one factor, and the sentence of it in captions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from .recipe import IMAGENET_CROP, Recipe

if TYPE_CHECKING:
    import pandas as pd  # half a second, and every command reads the presets

BATCH, LR, SCALES = 256, 0.1, (256, 480)  # "mini-batch size of 256 ... 0.1"; "sampled in [256, 480]" (section 3.4)
ITERATIONS, IMAGES = 600_000, 1_281_167  # "up to 60 x 10^4 iterations"; training images of ILSVRC 2012
IMAGES_OF = {"imagenet": IMAGES, "imagenette": 9469, "synthetic-imagenet": 2000}  # where no run has counted them yet
AUGMENTATION = "scale-crop-flip-color"  # of section 3.4
FIELDS = ("crop_size", "scale_range", "batch_size", "lr", "iterations", "schedule", "lr_drops", "lr_gamma")
OTHERS = ("augmentation", "preprocessing", "momentum", "nesterov", "weight_decay", "warmup_lr", "options")


def divided(factor: int, images: int = IMAGES, **other) -> dict:
    """Recipe fields of the ImageNet protocol over `factor`: lengths in pixels, batch, rate, iterations per image.

    The rate follows the batch, so that an image moves the weights as far as in the paper. The iterations are the
    paper's over `factor`, for as many training images as the set has (`images`): with its batch each image is seen
    1 / factor**2 as often, as it has 1 / factor**2 of the pixels. other: further fields.
    """
    return {
        "iterations": iterations(factor, images),
        "batch_size": BATCH // factor,
        "lr": LR / factor,
        "crop_size": IMAGENET_CROP // factor,
        "scale_range": tuple(side // factor for side in SCALES),
        "augmentation": AUGMENTATION,
        **other,
    }


def is_papers(row: dict) -> bool:
    """Whether a run (a row with the fields of a recipe) has the paper's sizes and length on all of ImageNet.

    Its accumulation, its schedule's kind and what else its settings name may differ.
    """
    if row["dataset"] != "imagenet" or any(row.get(size) for size in ("train_size", "val_size", "test_size")):
        return False
    return all(name not in row or _plain(row[name]) == _plain(value) for name, value in divided(1).items())


def _plain(value):
    return tuple(value) if isinstance(value, list) else value


def iterations(factor: Fraction | int, images: int) -> int:
    """The paper's iterations over `factor` for a training set of so many images."""
    return round(ITERATIONS * images / IMAGES / factor)


def in_words(runs: pd.DataFrame) -> str:
    """At which scale of the paper's protocol ImageNet runs were trained, one phrase per protocol; "" for no such runs.

    runs: rows with the fields of a recipe, and `train_images` where known. Other data sets are left out.
    """
    if runs.empty or not {"dataset", *FIELDS} <= set(runs):
        return ""
    images: dict[Recipe, int] = {}
    for row in runs[runs["dataset"].str.contains("image")].to_dict("records"):
        there = [name for name in (*FIELDS, *OTHERS, "train_size") if name in row]
        recipe = Recipe(dataset=row["dataset"], **{"augmentation": AUGMENTATION, **{name: row[name] for name in there}})
        known = row.get("train_images") or math.nan
        images[recipe] = max(images.get(recipe, 0), recipe.train_size if math.isnan(known) else int(known))
    words = [_protocol(recipe, count or IMAGES_OF[recipe.dataset]) for recipe, count in images.items()]
    return "; ".join(dict.fromkeys(words))


def _protocol(recipe: Recipe, images: int) -> str:
    """At which scale of the paper's protocol an ImageNet recipe is on so many images, and in what else it departs."""
    factor, low, high = recipe.factor, *recipe.scale_range
    small, large = SCALES
    usual = Recipe(augmentation=AUGMENTATION)
    others = [f"{n} {getattr(recipe, n)}" for n in OTHERS if getattr(recipe, n) != getattr(usual, n)]
    own = (low, high, recipe.batch_size, recipe.lr)
    one = own == (small // factor, large // factor, BATCH // factor, LR / float(factor))
    if one and factor == 1:
        name = "the paper's protocol" if not others else "the paper's sizes"
        sizes = f"{name} (crop {IMAGENET_CROP}, shorter side {small} to {large}, batch {BATCH}, lr {LR})"
    else:
        name = f"protocol scaled by {1 / factor}" if one else "protocol of other sizes"
        sizes = (
            f"{name} (crop {recipe.crop_size} of {IMAGENET_CROP}, shorter side {low} to {high} of {small} to {large}, "
            f"batch {recipe.batch_size} of {BATCH}, lr {recipe.lr:g} of {LR})"
        )
    departing = [f"not the paper's: {', '.join(others)}"] if others else []
    return ", ".join([sizes, _length(recipe, images), _drops(recipe), *departing])


def _length(recipe: Recipe, images: int) -> str:
    """How long it trains, and what part of the paper's iterations per training image that is."""
    if (recipe.iterations, images) == (ITERATIONS, IMAGES):
        return f"{ITERATIONS:,} iterations"
    exact = recipe.iterations == iterations(recipe.factor, images)  # but for the rounding
    over = float(recipe.factor) if exact else ITERATIONS / recipe.iterations * images / IMAGES
    share = f"1/{over:{',.0f' if over > 100 else '.3g'}}"
    passes, usual = recipe.iterations * recipe.batch_size / images, ITERATIONS * BATCH / IMAGES
    return (
        f"{recipe.iterations:,} iterations on {images:,} images (per image {share} of the paper's {ITERATIONS:,} on "
        f"{IMAGES:,}; {passes:.3g} epochs of {usual:.3g})"
    )


def _drops(recipe: Recipe) -> str:
    over = f"lr divided by {1 / recipe.lr_gamma:g}"
    if recipe.schedule == "plateau":
        return f"{over} on a plateau"
    *others, last = [str(Fraction(share).limit_denominator(100)) for share in recipe.lr_drops] or ["none"]
    places = f"{', '.join(others)} and {last}" if others else last
    return f"{over} at {places} of them instead of on a plateau"
