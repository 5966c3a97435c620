"""`reslib train MODEL`: one network under a preset's recipe, every field of which can be set here."""

from __future__ import annotations

import math
from dataclasses import replace

from .. import data, distributed
from ..baseline_recipes import BASELINE_RECIPES
from ..cli import add_common, add_execution, checking_arguments, execution_of, results_of
from ..models import is_imagenet
from ..names import CIFAR_DEPTHS
from ..networks import check_network
from ..presets import PRESETS, cifar_recipe, imagenet_recipe, preset_of
from ..recipe import CHOICES, KINDS, field_help, field_types, parse_field
from ..stand_ins import dataset_for
from ..train import train

SET_ELSEWHERE = ("model",)


def add_arguments(parser) -> None:
    parser.add_argument("model", help="a name of `reslib list`, or package.module:Factory")
    add_common(parser, preset="paper")
    add_execution(parser)
    parser.add_argument("--no-wait", action="store_true", help="fail if another process trains this run")
    group = parser.add_argument_group(
        "recipe", "fields that determine the result; where the preset gives the default, it depends on the network too"
    )
    meaning, same = field_help(), same_everywhere()
    for name, kind in field_types().items():
        if name not in SET_ELSEWHERE:
            allowed = ", ".join(CHOICES.get(name, ())) or KINDS[kind]
            default = "what is found" if name == "dataset" else same.get(name, "the preset's")
            text = f"{meaning[name]} [{allowed}] (default: {default})"
            group.add_argument("--" + name.replace("_", "-"), dest=f"field_{name}", metavar="VALUE", help=text)


def same_everywhere() -> dict[str, str]:
    """The recipe fields that every preset gives every network of the study the same value, as text."""
    recipes = [cifar_recipe(m, p) for p in PRESETS.values() for m in ("resnet20", "resnet110", *BASELINE_RECIPES)]
    recipes += [imagenet_recipe(m, p) for p in PRESETS.values() for m in ("resnet34", "resnet50")]
    first, *others = (r.to_dict() for r in recipes)
    shared = {name: value for name, value in first.items() if all(o[name] == value for o in others)}
    return {name: str(value).lower() if value != "" else "none" for name, value in shared.items()}


def main(arguments) -> int:
    with checking_arguments():
        recipe = recipe_of(arguments)
        check_network(recipe)
        data.check_recipe(recipe)
    if is_imagenet(recipe.model) and "image" not in recipe.dataset and distributed.first():
        print(
            f"note: {recipe.model} is a network for ImageNet: its first layers (7x7 of stride 2, pooling) leave 8x8 of "
            f"32x32 pixels; the paper's for CIFAR-10 are {', '.join(f'resnet{d}' for d in CIFAR_DEPTHS)}"
        )
    execution = replace(execution_of(arguments), patience=0.0 if arguments.no_wait else math.inf)
    preset = preset_of(arguments.preset).name
    runs_dir = results_of(arguments) / preset / "runs"
    summary = train(recipe, runs_dir, arguments.data_root, preset, execution)
    if summary["status"] == "diverged":
        if distributed.first():
            print(f"{recipe.run_name}: diverged: {summary['message']}")
        return 1
    if distributed.first():
        print(f"{recipe.run_name}: test error {100 * summary['test_error']:.2f} % ({runs_dir / recipe.run_name})")
        if summary["message"]:
            print(f"{recipe.run_name}: {summary['message']}")
    return 0


def recipe_of(arguments):
    """The recipe that the command line asks for: the preset's, with the fields that were given."""
    preset = preset_of(arguments.preset)
    fields = {n: getattr(arguments, f"field_{n}") for n in field_types() if n not in SET_ELSEWHERE}
    changes = {name: parse_field(name, text) for name, text in fields.items() if text is not None}
    imagenet = is_imagenet(arguments.model) if "dataset" not in changes else "image" in changes["dataset"]
    if "dataset" not in changes:
        changes["dataset"] = dataset_for(preset, "imagenet" if imagenet else "cifar", arguments.data_root)
    make = imagenet_recipe if imagenet else cifar_recipe
    return make(arguments.model, preset, **changes)
