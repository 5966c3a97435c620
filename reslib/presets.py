"""The scales of the study, and the recipe of one network at a scale. A preset changes the scale, never the protocol."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from . import imagenet_scale
from .baseline_recipes import BASELINE_RECIPES
from .errors import UserError, choose, shown
from .names import family_and_depth, is_imagenet
from .recipe import Recipe, field_types, parse_field

BOTTLENECKS = 50  # layers from which the ImageNet nets are built of bottlenecks (Table 1)
WARMED_UP = 110  # layers from which the paper warms up (section 4.2)
# "0.1 is slightly too large to start converging" (section 4.2). The training error that ends it is measured over an
# epoch: the paper does not say, but its "about 400 iterations" is one of 50,000 images in batches of 128.
WARMUP = {"warmup_lr": 0.01, "warmup_window": 391}


@dataclass(frozen=True)
class Preset:
    """A scale: how long, on how much, which depths and how many seeds."""

    name: str
    purpose: str
    scale: dict  # Recipe fields of the CIFAR runs
    depths: tuple[int, ...]  # plain and residual nets of Figures 1 and 6
    deep: tuple[int, ...]  # residual nets beyond them
    plain_deep: tuple[int, ...] = ()
    seeds: int = 1
    more_seeds: dict = field(default_factory=dict)  # model: number of seeds, where it differs
    baselines: dict = field(default_factory=dict)  # Recipe fields of the other networks of Table 6
    imagenet: dict = field(default_factory=dict)  # Recipe fields of the ImageNet nets
    imagenet_rows: tuple[str, ...] = ()  # networks of PAPER_SIX trained for Tables 3 to 5, beside those of Figure 4
    split: tuple[str, ...] = ("resnet20",)  # networks of the table trained with the 45k/5k split as well
    ablation_model: str = "resnet20"
    ablation: dict = field(default_factory=dict)  # Recipe fields of the fidelity study, where they differ
    future_depth: int = 110
    gradient_depths: tuple[int, ...] = (8, 20, 56)
    changes: dict = field(default_factory=dict)  # Recipe fields that the user changed, for every run

    @property
    def base(self) -> str:
        """The name without the user's changes."""
        return self.name.partition("+")[0]

    def seeds_of(self, model: str, asked: int = 0) -> range:
        """The seeds of a network: `asked` of them, or the preset's number."""
        return range(asked or self.more_seeds.get(model, self.seeds))


PRESETS = {
    "smoke": Preset(
        "smoke",
        "tests: synthetic data, seconds",
        {"iterations": 6, "batch_size": 16, "eval_every": 3, "train_size": 256, "test_size": 64, "warmup_window": 2},
        depths=(20, 32),
        deep=(),
        imagenet=imagenet_scale.divided(16, 128, eval_every=2, train_size=128, test_size=32),
        future_depth=20,
        gradient_depths=(8, 20),
    ),
    "quick": Preset(
        "quick",
        "first look: minutes on two CPU cores",
        {"iterations": 150, "eval_every": 25, "test_size": 1000, "warmup_window": 10},
        depths=(20, 56),
        deep=(),
        baselines={"iterations": 20, "batch_size": 64, "eval_every": 10, "test_size": 500},
        imagenet=imagenet_scale.divided(8, 2000, eval_every=30, train_size=2000, test_size=1000),
        ablation={"iterations": 40, "eval_every": 20},
        future_depth=20,
    ),
    "medium": Preset(
        "medium",
        "real curves: a tenth of the paper's iterations; on ImageNet its protocol divided by 4, on a subset",
        {"iterations": 6400, "eval_every": 320},
        depths=(20, 32, 44, 56),
        deep=(110,),
        more_seeds={"plain20": 3, "resnet20": 3},
        imagenet=imagenet_scale.divided(4, imagenet_scale.IMAGES_OF["imagenette"], eval_every=56),
        imagenet_rows=("resnet34", "resnet50"),
    ),
    "paper": Preset(
        "paper",
        "the reproduction: the paper's iterations, up to five seeds",
        {},
        depths=(20, 32, 44, 56),
        deep=(110, 1202),
        plain_deep=(110,),
        seeds=5,
        more_seeds={"resnet1202": 1, "plain110": 1},
        split=("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
        # 60e4 iterations at most, batch 256 on several devices of 32 images each (section 3.4)
        imagenet=imagenet_scale.divided(
            1,
            accumulation=8,
            eval_every=5000,
            schedule="plateau",  # short runs never reach one: elsewhere steps
            lr_drops=(0.25, 0.5, 0.75),  # with --schedule steps: 30, 60 and 90 of 120 epochs
        ),
        imagenet_rows=("resnet34", "resnet50", "resnet101", "resnet152"),
    ),
}


FIXED = ("model", "dataset", "seed", "options", "teacher")  # say which run it is: no change for all runs alike


def preset_of(name: str) -> Preset:
    """The preset of this name, or one with recipe fields changed for all its runs: "quick+iterations=500,lr=0.05".

    Raises UserError naming the presets that exist, or the field, its value and what is allowed.
    """
    base, plus, text = name.partition("+")
    choose("preset", base, PRESETS)
    return _changed(PRESETS[base], text) if plus else PRESETS[base]


def _changed(preset: Preset, text: str) -> Preset:
    """A preset named after its changes in one spelling, so that its results have a folder of their own."""
    fields = [n for n in field_types() if n not in FIXED]
    changes, spelled = {}, {}
    for part in re.split(r",(?=[^,=]*=)", text):
        field, equals, value = (piece.strip() for piece in part.partition("="))
        field = field.replace("-", "_")  # as options are written
        if not equals or not value:
            raise UserError(f"preset {preset.name}+{shown(text)}: {shown(part)} is not of the form field=value")
        if field in FIXED:
            asked = f"preset {preset.name}+{shown(text)}"
            raise UserError(
                f"{asked}: recipe field {field!r} cannot be changed for all runs; allowed are {', '.join(fields)}"
            )
        choose("recipe field", field, fields)
        if field in changes:
            raise UserError(f"preset {preset.name}+{shown(text)}: {field} is given twice: allowed is once")
        changes[field] = parse_field(field, value)
        items = changes[field] if isinstance(changes[field], tuple) else (changes[field],)
        spelled[field] = ",".join(str(item).lower() if item in (True, False) else str(item) for item in items)
    changed = replace(
        preset,
        name=f"{preset.name}+{','.join(f'{field}={spelled[field]}' for field in sorted(spelled))}",
        purpose=f"{preset.purpose}; changed: {', '.join(f'{f} {spelled[f]}' for f in sorted(spelled))}",
        changes=changes,
    )
    try:
        cifar_recipe("resnet20", changed)
    except UserError:
        imagenet_recipe("resnet18", changed)  # a crop or scale that suits ImageNet alone is no mistake
    return changed


def folders_of_presets(results: Path) -> list[Path]:
    """The folders of presets below `results`, changed ones after their own."""
    there = [path for path in results.iterdir() if path.is_dir()] if results.is_dir() else []
    names = list(PRESETS)
    mine = [path for path in there if path.name.partition("+")[0] in names and _is_preset(path.name)]
    return sorted(mine, key=lambda path: (names.index(path.name.partition("+")[0]), path.name))


def _is_preset(name: str) -> bool:
    """Whether this is how a preset is spelled: medium+backup is none."""
    try:
        return preset_of(name).name == name
    except UserError:
        return False


def cifar_recipe(model: str, preset: Preset, dataset: str = "cifar10", seed: int = 0, **changes) -> Recipe:
    """The recipe of one network on CIFAR-10 (or the synthetic stand-in): the paper's, or the network's own."""
    warmup = WARMUP if family_and_depth(model)[1] >= WARMED_UP else {}
    values = {"model": model, "dataset": dataset, "seed": seed, **warmup, **preset.scale}
    if model in BASELINE_RECIPES:
        values |= {**BASELINE_RECIPES[model], **preset.baselines}
    return _recipe({**values, **preset.changes, **changes}, preset)


def _recipe(values: dict, preset: Preset) -> Recipe:
    """The recipe. What it does not allow together is said with its network: a changed preset goes for many."""
    try:
        return Recipe(**values)
    except UserError as error:
        if not preset.changes:
            raise
        raise UserError(f"preset {shown(preset.name)}, {values['model']}: {error}") from error


def split_of(preset: Preset) -> dict:
    """Recipe fields of the paper's "45k/5k train/val split" (section 4.2); of a preset's fewer images a tenth."""
    if not (images := {**preset.scale, **preset.changes}.get("train_size")):
        return {"val_size": 5000}
    return {"val_size": images // 10, "train_size": images - images // 10}


def imagenet_recipe(model: str, preset: Preset, dataset: str = "imagenet", seed: int = 0, **changes) -> Recipe:
    """The recipe of one ImageNet network: shortcuts of option A as in Figure 4, bottlenecks with B (section 4.1)."""
    family, depth = family_and_depth(model)
    shortcut = "B" if family == "resnet" and depth >= BOTTLENECKS else "A"
    values = {"model": model, "dataset": dataset, "seed": seed, "shortcut": shortcut, **preset.imagenet}
    return _recipe({**values, **preset.changes, **changes}, preset)


def usual_recipe(recipe: Recipe, preset: Preset) -> dict:
    """The fields of the preset's recipe of the same network on the same data, seed 0."""
    of_its_kind = imagenet_recipe if is_imagenet(recipe.model) else cifar_recipe
    return of_its_kind(recipe.model, preset, recipe.dataset).to_dict()


def settings_of(recipe: Recipe, usual: dict) -> str:
    """Where a recipe differs from such fields, but for its seed: "val_size=5000"; "" where nowhere."""
    changed = {k: v for k, v in recipe.to_dict().items() if v != usual[k] and k != "seed"}
    return ", ".join(
        v if k == "options" else f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in changed.items()
    )
