"""`reslib evaluate`: the ImageNet networks that are here by ten crops, at five scales and together (Tables 2 to 5).

`torchrun --nproc-per-node 8 -m reslib evaluate --preset paper` shares the test images out among processes, each image
counted once. What is measured is kept in measurements/imagenet_scores.csv: the notebook imagenet_tables finds it there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import data, distributed, imagenet_tables
from ..cli import add_common, checking_arguments, name_given, results_of
from ..errors import UserError
from ..files import make_folder
from ..frames import frames
from ..given_weights import find_weights
from ..names import is_imagenet
from ..numerics import resolve_device
from ..presets import preset_of
from ..stand_ins import dataset_for
from ..studies import imagenet_rows
from ..tables import save_table

SHOWN = ["model", "source", imagenet_tables.TOP1, imagenet_tables.TOP5, "images", "note"]


def add_arguments(parser) -> None:
    add_common(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    parser.add_argument(
        "--weights", type=name_given, default=None, help="given weights: a folder, a file, or torchvision"
    )
    parser.add_argument(
        "--ensemble",
        type=members,
        default=[],
        metavar="NAME,...",
        help="names of runs or weights files to average, joined by commas",
    )


def main(arguments) -> int:
    with checking_arguments():
        preset = preset_of(arguments.preset)
        device = resolve_device(arguments.device)
        if arguments.weights not in (None, "torchvision"):
            find_weights(arguments.weights)
    folder = results_of(arguments) / preset.name
    make_folder(folder)  # before hours of testing
    group = distributed.group()
    device = group.device(device)
    say = _silent if group.rank else print
    dataset = dataset_for(preset, "imagenet", arguments.data_root, say=say)
    recipes = imagenet_rows(preset, dataset)
    runs = group.broadcast(None if group.rank else frames(folder / "runs", recipes, curves=False)[0])
    if runs.empty and not arguments.weights:
        raise UserError(f"nothing to evaluate: {_none_of(preset.name, folder / 'runs')}, and no --weights")
    tables = imagenet_tables.tables(
        runs,
        folder / "runs",
        data.load(dataset, arguments.data_root),
        arguments.weights or "",
        imagenet_tables.LIMITS.get(preset.base, 0),
        device,
        {f"chosen here ({len(arguments.ensemble)})": arguments.ensemble} if arguments.ensemble else {},
        group,
        say,
    )
    if not group.rank:
        for name, table in tables.items():
            caption = imagenet_tables.caption(name, table, runs)
            save_table(table, folder / "tables" / f"imagenet_{name}", caption)
            own = table[table["source"] != "quoted"]
            print(f"\n{caption}", *([own[SHOWN].to_string(index=False)] if len(own) else []), sep="\n")
        print(f"\nwritten: {folder / 'measurements' / 'imagenet_scores.csv'} and tables/imagenet_table2 to 5")
    return 0


def members(text: str) -> list[str]:
    """The names in a list joined by commas, at least one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing: allowed are names joined by commas")
    return names


def _silent(text) -> None:
    pass


def _none_of(preset: str, runs_dir: Path) -> str:
    """That none of the preset's ImageNet runs has ended, and which runs of ImageNet networks have."""
    ended = sorted(path.parent.name for path in runs_dir.glob("*/summary.json"))
    others = [name for name in ended if is_imagenet(name.partition("-")[0])]
    hint = (
        f" (ended there: {', '.join(others[:3])}; a change of recipe goes into the preset's name, {preset}+field=value)"
    )
    return f"no ended ImageNet run of preset {preset} in {runs_dir}" + hint * bool(others)
