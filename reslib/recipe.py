"""Recipe: every field that determines a training result, with the paper's CIFAR-10 values as defaults (section 4.2).

A recipe's hash covers the model, the data set, the seed and every field that differs from its default, so that a field
added later leaves the names of existing runs alone. Nothing outside the recipe may influence a result.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from typing import Any

from .errors import UserError, choose, shown

CHOICES = {  # field: what is allowed
    "dataset": ("cifar10", "synthetic", "imagenet", "imagenette", "synthetic-imagenet"),
    "schedule": ("steps", "plateau"),
    "preprocessing": ("pixel-mean", "channel-mean", "channel-std"),
    "padding": ("mean", "black"),
    "crops": ("sample", "batch"),
    "augmentation": ("crop-flip", "scale-crop-flip-color", "none"),
    "shortcut": ("A", "B", "C"),
    "precision": ("auto", "fp32", "bf16"),
}
RANGES = {  # field: (smallest, largest) allowed, both included
    "seed": (0, 2**31 - 1),
    "iterations": (1, 10_000_000),
    "batch_size": (1, 65_536),
    "lr": (1e-8, 100.0),
    "momentum": (0.0, 0.9999),
    "weight_decay": (0.0, 1.0),
    "lr_gamma": (1e-6, 1.0),
    "plateau_patience": (1, 10_000),
    "warmup_lr": (0.0, 100.0),
    "warmup_error": (0.0, 1.0),
    "warmup_window": (1, 1_000_000),
    "train_size": (0, 100_000_000),
    "val_size": (0, 100_000_000),
    "test_size": (0, 100_000_000),
    "crop_size": (8, 1024),
    "accumulation": (1, 4096),
    "eval_every": (1, 10_000_000),
}
SYNONYMS = {  # names that other tools give a field, for "did you mean"
    "learning_rate": "lr", "base_lr": "lr", "initial_lr": "lr", "wd": "weight_decay", "decay": "weight_decay",
    "l2": "weight_decay", "bs": "batch_size", "batch": "batch_size", "batchsize": "batch_size", "b": "batch_size",
    "train_batch_size": "batch_size", "epochs": "iterations", "epoch": "iterations", "num_epochs": "iterations",
    "max_epochs": "iterations", "iters": "iterations", "num_iters": "iterations", "max_iter": "iterations",
    "max_iters": "iterations", "max_iterations": "iterations", "steps": "iterations", "num_steps": "iterations",
    "max_steps": "iterations", "train_steps": "iterations", "milestones": "lr_drops", "lr_milestones": "lr_drops",
    "lr_steps": "lr_drops", "lr_decay_epochs": "lr_drops", "gamma": "lr_gamma", "lr_decay": "lr_gamma",
    "patience": "plateau_patience", "warmup": "warmup_lr", "lr_scheduler": "schedule", "scheduler": "schedule",
    "lr_schedule": "schedule", "amp": "precision", "fp16": "precision", "fp32": "precision", "bf16": "precision",
    "dtype": "precision", "mixed_precision": "precision", "grad_accum": "accumulation", "eval_freq": "eval_every",
    "gradient_accumulation_steps": "accumulation", "accum_steps": "accumulation", "eval_interval": "eval_every",
    "val_split": "val_size", "seeds": "seed", "random_seed": "seed", "manual_seed": "seed", "crop": "crop_size",
    "image_size": "crop_size", "aug": "augmentation", "transforms": "augmentation", "normalization": "preprocessing",
}  # fmt: skip
NOTES = dict.fromkeys(  # what a hint from one of these names adds
    (name for name in SYNONYMS if "epoch" in name), "a run is counted in iterations, of one batch each, not in epochs"
)
NOTES["lr_decay_epochs"] = "fractions of the iterations, not epochs"
KINDS = {  # type: what is allowed, in words
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "numbers joined by commas",
    str: "text",
}
OWN_OPTIONS = ("name", "num_classes", "shortcut", "residual", "teacher")  # arguments that the recipe's fields decide
MAX_TEXT = 200  # characters of a text field
IMAGENET_CROP = 224  # pixels on a side (section 3.4)


def described(default, text: str):
    """A field with its default and what it means, for the reader here and for `reslib train --help`."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how. Raises UserError naming the field, the value and what is allowed."""

    model: str = described("resnet20", "plain20, resnet20 ... resnet1202, maxout, nin, ... or package.module:Factory")
    dataset: str = described("cifar10", "what is trained on")
    seed: int = described(0, "of the initial weights, the order of the data, the crops and flips")
    # Optimisation: "mini-batch size of 128 ... learning rate of 0.1, divide it by 10 at 32k and 48k iterations, and
    # terminate training at 64k iterations", "weight decay of 0.0001 and momentum of 0.9" (section 4.2)
    iterations: int = described(64_000, "steps of the optimiser, of one batch each")
    batch_size: int = described(128, "images per step in total, whatever the number of devices")
    lr: float = described(0.1, "learning rate at the start (after the warm-up, if any)")
    momentum: float = described(0.9, "of SGD")
    nesterov: bool = described(False, "Nesterov's momentum")
    weight_decay: float = described(1e-4, "on every parameter")
    schedule: str = described("steps", "steps: the rate drops at lr_drops; plateau: the ImageNet rule of section 3.4")
    lr_drops: tuple[float, ...] = described((0.5, 0.75), "as fractions of the iterations: 32k and 48k of 64k")
    lr_gamma: float = described(0.1, "what the rate is multiplied by at a drop")
    plateau_patience: int = described(5, "evaluations without a better validation error that make a plateau")
    # Warm-up of ResNet-110: "we use 0.01 to warm up the training until the training error is below 80%" (section 4.2)
    warmup_lr: float = described(0.0, "learning rate of the warm-up; 0: no warm-up")
    warmup_error: float = described(0.8, "training error, a fraction, below which the warm-up ends")
    warmup_window: int = described(100, "iterations over which that error is measured")
    # Data: "a 45k/5k train/val split"; "4 pixels are padded on each side, and a 32x32 crop is randomly sampled from
    # the padded image or its horizontal flip"; "per-pixel mean subtracted" (sections 4.2 and 3.4)
    train_size: int = described(0, "training images used; 0: all that remain beside the validation images")
    val_size: int = described(0, "training images set aside for validation; 5000 is the paper's split")
    test_size: int = described(0, "test images used; 0: all")
    preprocessing: str = described("pixel-mean", "what is subtracted from the images; channel-std also divides")
    padding: str = described("mean", "mean: the pad is added after its subtraction; black: before")
    crops: str = described("sample", "a crop and flip for every sample, or one for a whole batch, a common mistake")
    augmentation: str = described("crop-flip", "how training images are varied")
    crop_size: int = described(32, "pixels on a side of what the network sees")
    scale_range: tuple[int, ...] = described((256, 480), "shorter side in pixels, for scale-crop-flip-color (3.4)")
    # Network: "identity shortcuts in all cases (i.e., option A)" (section 4.2)
    shortcut: str = described("A", "where dimensions grow A pads with zeros and B projects; C projects everywhere")
    options: str = described("", "further arguments of the model, as name=value,name=value")
    teacher: str = described("", "name of a finished run whose network gives hints (FitNets)")
    # Numerics
    precision: str = described("auto", "of the steps; auto: the faster one, resolved when a run starts and kept by it")
    accumulation: int = described(1, "micro-batches per step; batch-norm statistics are per micro-batch")
    # Record
    eval_every: int = described(500, "iterations between evaluations, a row of the record each")

    def __post_init__(self):
        for field in _fields():
            value, default = getattr(self, field.name), field.default
            if (
                type(value) is not type(default) or value != default or type(value) is tuple
            ):  # a default needs no check: a report reads thousands of recipes
                object.__setattr__(self, field.name, _checked(field, value))
        if self.warmup_lr > self.lr:
            raise UserError(f"warmup_lr {self.warmup_lr} is above lr {self.lr}: allowed is 0 to lr")
        if self.nesterov and not self.momentum:
            raise UserError(f"nesterov True is allowed with a momentum above 0, but momentum is {self.momentum}")
        if list(self.lr_drops) != sorted(set(self.lr_drops)) or not all(0 < f < 1 for f in self.lr_drops):
            raise UserError(f"lr_drops {shown(self.lr_drops)} must be increasing fractions between 0 and 1")
        if len(self.scale_range) != 2 or not self.crop_size <= self.scale_range[0] <= self.scale_range[1]:
            raise UserError(
                f"scale_range {shown(self.scale_range)} must be two sizes, increasing, not below crop_size "
                f"{self.crop_size}"
            )
        if self.batch_size % self.accumulation:
            raise UserError(
                f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}: allowed is what does"
            )
        given = parse_options(self.options)
        for name in OWN_OPTIONS:
            if name in given:
                raise UserError(
                    f"options {self.options!r}: {name} is a field of the recipe: allowed are the model's own"
                )

    @cached_property
    def digest(self) -> str:
        """Eight hexadecimal digits that identify the recipe."""
        text = json.dumps(self.essentials(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def run_name(self) -> str:
        """Directory name of this recipe's run, readable and ending in the hash."""
        model = "".join(c if c.isascii() and c.isalnum() or c in "_-" else "." for c in self.model[:80])
        return f"{model}-{self.dataset}-s{self.seed}-{self.digest}"

    @property
    def factor(self) -> Fraction:
        """By what an ImageNet recipe divides the paper's protocol, by its crops: 4 where they have 56 pixels."""
        return Fraction(IMAGENET_CROP, self.crop_size)

    def essentials(self) -> dict[str, Any]:
        """Model, data set, seed and whatever differs from the defaults."""
        always = ("model", "dataset", "seed")
        return {
            f.name: getattr(self, f.name) for f in _fields() if f.name in always or getattr(self, f.name) != f.default
        }

    def replace(self, **changes) -> Recipe:
        """A copy with some fields changed."""
        unknown = set(changes) - {f.name for f in dataclasses.fields(self)}
        for name in sorted(unknown):
            choose("recipe field", name, [f.name for f in dataclasses.fields(self)])
        return dataclasses.replace(self, **changes)

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe with another seed; of the fields only that one is checked: plans have thousands."""
        other = copy.copy(self)
        other.__dict__.pop("digest", None)  # that of this recipe
        object.__setattr__(other, "seed", _checked(Recipe.__dataclass_fields__["seed"], seed))
        return other

    def to_dict(self) -> dict[str, Any]:
        """Every field, as recipe.json has it."""
        return {f.name: getattr(self, f.name) for f in _fields()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Read a recipe written by this or an older version; a field this version does not know is an error."""
        if not isinstance(values, dict):
            raise UserError(f"recipe {shown(values)} is a {type(values).__name__}: allowed is a mapping of field names")
        names = {f.name for f in _fields()}
        for name in values.keys() - names:
            choose("recipe field", name, names)
        return cls(**values)


@cache
def _fields() -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(Recipe)  # which looks through them anew on every call


def field_types() -> dict[str, type]:
    """Each recipe field with the Python type of its values (tuple fields hold numbers)."""
    return {f.name: type(f.default) for f in dataclasses.fields(Recipe)}


def field_help() -> dict[str, str]:
    """Each recipe field with what it means, in one line."""
    return {f.name: f.metadata["help"] for f in dataclasses.fields(Recipe)}


def parse_field(name: str, text: str):
    """Turn command-line text into the value of a recipe field; tuples are comma-separated."""
    kinds = field_types()
    choose("recipe field", name, kinds)
    kind = kinds[name]
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind is tuple:
            item = int if name == "scale_range" else float
            return tuple(item(part) for part in text.split(",") if part.strip())
        return kind(text)
    except (ValueError, KeyError):
        raise UserError(f"{name} {shown(text)} is not {KINDS[kind]}: allowed is {allowed(name)}") from None


def allowed(name: str) -> str:
    """What a recipe field may be, in words."""
    kind = field_types()[name]
    if name in RANGES:
        return f"{KINDS[kind]} from {RANGES[name][0]} to {RANGES[name][1]}"
    if kind is tuple:
        return f"{KINDS[kind]}, such as {','.join(map(str, getattr(Recipe, name)))}"
    return KINDS[kind]


def parse_options(text: str) -> dict[str, Any]:
    """`"preactivation=true,init=xavier"` as a dictionary; values become bool, int, float or stay text."""
    options = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier() or not value:
            raise UserError(f"options {text!r}: {part!r} is not of the form name=value")
        if name in options:
            raise UserError(f"options {text!r}: {name} is given twice: allowed is once")
        for convert in ({"true": True, "false": False}.__getitem__, int, float, str):
            try:
                options[name] = convert(value)
                break
            except (KeyError, ValueError):
                continue
    return options


def _checked(field: dataclasses.Field, value):
    """The value with harmless conversions done (list to tuple, 1 to 1.0), or UserError."""
    name, kind = field.name, type(field.default)
    if kind is tuple:
        if not isinstance(value, (list, tuple)) or not all(is_number(v) for v in value):
            raise UserError(f"{name} {shown(value)} must be a list of numbers such as {list(field.default)}")
        item = type(field.default[0])
        if any(item(v) != v for v in value):
            raise UserError(f"{name} {shown(value)} must be a list of whole numbers such as {list(field.default)}")
        return tuple(map(item, value))  # one spelling, so that 256 and 256.0 give the same hash
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and is_number(value):
        value = float(value)
    if type(value) is not kind:
        hint = " (YAML reads 1e-1 as text: write 1.0e-1)" if isinstance(value, str) and kind is float else ""
        raise UserError(f"{name} {shown(value)} is of type {type(value).__name__}: allowed is {kind.__name__}{hint}")
    if name in CHOICES:
        choose(name, value, CHOICES[name])
    if name in RANGES:
        low, high = RANGES[name]
        if not low <= value <= high:  # also refuses NaN
            raise UserError(f"{name} {shown(value)} is out of range: allowed is {low} to {high}")
    if kind is str and (len(value) > MAX_TEXT or not value.isprintable()):
        raise UserError(f"{name} {shown(value)} is refused: allowed are at most {MAX_TEXT} printable characters")
    if name == "teacher" and (value.startswith(".") or "/" in value or "\\" in value):
        raise UserError(f"teacher {value!r} must be the name of a run in the same folder, not a path")
    if name == "model" and not value:
        raise UserError("model '' is empty: allowed are the names of `reslib list`")
    return value


def is_number(value) -> bool:
    """Whether this is a finite int or float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False
