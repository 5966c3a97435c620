"""`reslib equivalence`: is the fast path as good as fp32? Both train the same seeds; their final errors are compared.

Command: `reslib equivalence --model resnet20 --preset medium --seeds 5`. Time: twice that of the runs.
The fast runs are those of the study itself, found again if they exist, and its tables draw every seed of them. The
references are kept beside the record, in results/equivalence/<preset>, and so are both sides of a changed preset.
With `--apart NAME` fast runs are kept there too, so that other kernels (RESLIB_TUNE) meet the same references.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from pathlib import Path

import torch

from . import data, equivalence_records, gpu_trials, tiles
from .cli import MAX_SEEDS, ArgumentError, add_common, add_execution, execution_of, number, results_of
from .compilation import accelerate, cannot_compile
from .convolutions import Convolutions, fourier
from .engine import Step, make_optimizer, make_step, set_learning_rate
from .equivalence_records import ways
from .errors import UserError, shown
from .files import write_json, write_text
from .networks import check_network, make_model
from .numerics import resolve_device, resolve_precision
from .presets import cifar_recipe, preset_of
from .recipe import Recipe
from .runs import Run
from .schedule import learning_rate
from .stand_ins import dataset_for
from .train import train
from .tune import Choice, choice_for, measures


def add_arguments(parser) -> None:
    add_common(parser)
    add_execution(parser)
    parser.add_argument("--model", default="resnet20", help="a name of `reslib list`")
    parser.add_argument(
        "--seeds", type=number(int, 1, MAX_SEEDS), default=5, help="runs of each kind (at least 2 for an interval)"
    )
    parser.add_argument("--dataset", default=None, help="cifar10 or synthetic (default: what is found)")
    parser.add_argument("--fast", default="auto", choices=("auto", "bf16"), help="precision of the fast path")
    parser.add_argument(
        "--apart", type=_part_of_names, default=None, metavar="NAME",
        help="a record and fast runs of this name, not the study's: for kernels named by RESLIB_TUNE",
    )  # fmt: skip


def _part_of_names(text: str) -> str:
    """A name for files; `runs` is taken by the references."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", text) or text == "runs":
        words = "up to 40 small letters, digits and hyphens, a letter first, but not 'runs'"
        raise argparse.ArgumentTypeError(f"{shown(text)}: allowed are {words}")
    return text


def main(arguments) -> int:
    try:
        preset = preset_of(arguments.preset)
        execution = execution_of(arguments)
        dataset = arguments.dataset or dataset_for(preset, "cifar", arguments.data_root)
        recipes = [cifar_recipe(arguments.model, preset, dataset, seed) for seed in range(arguments.seeds)]
        check_network(recipes[0])
    except UserError as error:
        raise ArgumentError(str(error)) from error
    results = results_of(arguments)
    root = results / equivalence_records.FOLDER / preset.name
    name = f"{arguments.model}-{dataset}" + f"-{arguments.fast}" * (arguments.fast != "auto")
    path = root / f"{name}{f'+{arguments.apart}' * bool(arguments.apart)}.json"
    tuned = os.environ.get("RESLIB_TUNE", "")
    if arguments.apart:
        _check_apart(arguments.apart, path, tuned)
    # a preset's own runs are those of the study; changed ones serve this comparison alone
    folder = (root if preset.changes else results / preset.name) / "runs"
    references = (folder, root / "runs")
    if arguments.apart:
        folder = root / arguments.apart / "runs"
    while _both_there(next_one := recipes[-1].replace(seed=len(recipes)), arguments.fast, folder, references):
        recipes.append(next_one)
    if more := range(arguments.seeds, len(recipes)):
        print(f"seeds trained both ways before count as well: {', '.join(map(str, more))}")
    device = resolve_device(execution.device)
    may_measure = measures(recipes[0].iterations, execution.deterministic)
    if device.type == "cpu" and resolve_precision(arguments.fast, device, may_measure) == "fp32":
        if reason := _never_other(recipes[0], execution):
            print(f"equivalence: fp32 is the fast path itself here: nothing to compare ({reason}; see --fast bf16)")
            return 0
    pairs, runs = [], {side: [] for side in equivalence_records.SIDES}
    for recipe in recipes:  # seed by seed, so that an interrupted comparison has both sides of what it has
        reference, where = reference_run(recipe, references, arguments.data_root, preset.name, execution)
        chosen = recipe.replace(precision=arguments.fast)
        fast = train(chosen, folder, arguments.data_root, preset.name, execution)
        pairs.append((reference, fast))
        for side, run in zip(runs, (where, folder / chosen.run_name), strict=True):
            runs[side].append(run.relative_to(results).as_posix())
        print(f"seed {recipe.seed}: fp32 {_percent(reference)}, fast path ({fast['precision']}) {_percent(fast)}")
    record = equivalence_records.compare(arguments.model, preset.name, dataset, pairs)
    record |= {"runs": runs, "command": _command(arguments, dataset, len(pairs), tuned)}
    if arguments.apart:
        record["apart"] = arguments.apart
    text = equivalence_records.markdown(record)
    write_json(path, record)
    write_text(path.with_suffix(".md"), text)
    print(f"\n{text}\nwritten: {path} and {path.with_suffix('.md').name}")
    return 1 if record["verdict"] == "different" else 0


def _command(arguments, dataset: str, seeds: int, tuned: str) -> str:
    """The command that makes this record again."""
    words = f"reslib equivalence --model {arguments.model} --preset {preset_of(arguments.preset).name}"
    words += f" --dataset {dataset} --seeds {seeds}" + f" --fast {arguments.fast}" * (arguments.fast != "auto")
    words += f" --apart {arguments.apart}" * bool(arguments.apart)
    return f'RESLIB_TUNE="{tuned}" {words}' if tuned else words


def _check_apart(name: str, path: Path, tuned: str) -> None:
    """Raise ArgumentError unless RESLIB_TUNE says by which kernels, and the same as in a record of this name."""
    if not tuned:
        raise ArgumentError(
            f"--apart {name} is for kernels that RESLIB_TUNE names, which is not set: allowed is such as winograd=true"
        )
    if path.exists() and f'RESLIB_TUNE="{tuned}" ' not in (before := equivalence_records.read_record(path)["command"]):
        raise ArgumentError(
            f"{path} was made by `{before}`, now RESLIB_TUNE is {tuned!r}: allowed is the same, or another --apart NAME"
        )


def reference_run(recipe: Recipe, folders: tuple[Path, Path], data_root, preset: str, execution) -> tuple[dict, Path]:
    """The summary of a recipe in fp32, every step of it eager, and its run directory.

    One of the study, in the first folder, will do if it is there. It may have been captured, compiled or convolved
    otherwise: then it is no reference, and one is trained in the second folder.
    """
    plain = dataclasses.replace(execution, eager=True)  # no CUDA graph, not compiled
    exact = recipe.replace(precision="fp32")
    study, own = folders
    for folder in dict.fromkeys([study, own] if (study / exact.run_name).exists() else [own]):
        summary = train(exact, folder, data_root, preset, plain)
        if ways(summary) == {"eager"}:
            return summary, folder / exact.run_name
        print(f"{exact.run_name} in {folder} is no reference: its steps are {', '.join(sorted(ways(summary)))}")
    raise UserError(f"remove {folder / exact.run_name}: the reference in it was trained by other than eager steps")


def _both_there(recipe: Recipe, fast: str, folder: Path, references: tuple[Path, Path]) -> bool:
    """Whether a seed was trained both ways before: a record of fewer seeds must not take the place of one with it."""
    reference = recipe.replace(precision="fp32")
    there = [Run(where, reference) for where in dict.fromkeys(references)]
    return Run(folder, recipe.replace(precision=fast)).ended and any(
        run.ended and ways(run.summary()) == {"eager"} for run in there
    )


def _never_other(recipe: Recipe, execution) -> str:
    """Why every run of this recipe will take the plain passes; empty if one may not."""
    chosen = choice_for(recipe.iterations, execution.deterministic)
    transformed = chosen.fourier is not False and _large_kernels(recipe)  # they need no compiler
    precision = resolve_precision(recipe.precision, torch.device("cpu"))
    on_tiles = chosen.units is not False and not tiles.unavailable(precision)
    if chosen.compile is chosen.winograd is chosen.fused is False and not transformed and not on_tiles:
        return "such runs are neither compiled nor convolved otherwise, and nothing in them is fused"
    return "" if transformed else cannot_compile()


def _large_kernels(recipe: Recipe) -> bool:
    """Whether a network has convolutions that may be computed by Fourier transforms."""
    with torch.no_grad(), Convolutions() as mode:
        make_model(recipe, 10, Path()).eval()(torch.zeros(1, 3, 32, 32))
    return any(fourier.promising(layer, recipe.batch_size) for layer in mode.met)


def _percent(summary: dict) -> str:
    error = summary["test_error"]
    return summary["status"] if error is None else f"{100 * error:.2f}%"


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What the first steps of a training did: loss of each (steps,), weights before and after, one flat vector each.

    speed: how they were taken on a processor, as in a run's record; empty for eager ones. way: as the step says.
    """

    losses: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    speed: dict = dataclasses.field(default_factory=dict)
    way: str = ""


def first_steps(
    recipe: Recipe, source, device, precision: str, steps: int = 50, eager: bool = False, fast: Choice | None = None
) -> Trajectory:
    """Train `steps` steps of a recipe as the trainer does; eager: without CUDA graph; fast: how, on a processor.

    On a GPU the passes of a captured step are compiled where RESLIB_TUNE says so.
    """
    batches = data.batches_for(recipe, source, device)
    model = make_model(recipe, len(source.classes), Path()).to(device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(recipe, model, device)
    step = (Step if eager else make_step)(recipe, model, optimizer, device, precision)
    if device.type == "cuda" and not eager:
        gpu_trials.accelerate(step, steps)
    speed = accelerate(step, fast, lambda: batches.batch(0), steps) if fast else {}
    before, losses, previous = _flat(model), [], recipe.lr
    for iteration in range(steps):
        lr = learning_rate(recipe, iteration, False, [])
        set_learning_rate(optimizer, lr, previous)
        previous = lr
        x, y = batches.batch(iteration)
        losses.append(step(x, y, iteration)[0].clone())  # a captured step writes the next loss to the same place
    return Trajectory(torch.stack(losses).cpu(), before, _flat(model), speed, step.way)


def _flat(model) -> torch.Tensor:
    return torch.cat([p.detach().float().cpu().reshape(-1) for p in model.parameters()])


def departure(reference: Trajectory, other: Trajectory) -> dict[str, float]:
    """How far two trainings from the same weights have come apart, as fractions.

    loss: mean distance of the losses over the mean loss; weights: distance of the ends over the way that was gone.
    """
    way = (reference.after - reference.before).norm()
    return {
        "loss": float((reference.losses - other.losses).abs().mean() / reference.losses.mean()),
        "weights": float((reference.after - other.after).norm() / way),
    }
