"""`reslib equivalence`: is the fast path as good as fp32? Both train the same seeds; their final errors are compared.

Command: `reslib equivalence --model resnet20 --preset medium --seeds 5`. Time: twice that of the runs.
The runs are ordinary records of the preset, found again if they exist; the fast ones are those of the study itself.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch

from . import data
from .cli import MAX_SEEDS, ArgumentError, add_common, add_execution, execution_of, number, results_of
from .compilation import accelerate, cannot_compile
from .convolutions import Convolutions, fourier
from .engine import Step, make_optimizer, make_step, set_learning_rate
from .errors import UserError
from .files import write_json, write_text
from .networks import check_network, make_model
from .numerics import resolve_device, resolve_precision
from .presets import cifar_recipe, preset_of
from .recipe import Recipe
from .schedule import learning_rate
from .stand_ins import dataset_for
from .stats import summarize, welch
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


def main(arguments) -> int:
    try:
        preset = preset_of(arguments.preset)
        execution = execution_of(arguments)
        dataset = arguments.dataset or dataset_for(preset, "cifar", arguments.data_root)
        recipes = [cifar_recipe(arguments.model, preset, dataset, seed) for seed in range(arguments.seeds)]
        check_network(recipes[0])
    except UserError as error:
        raise ArgumentError(str(error)) from error
    root = results_of(arguments) / preset.name
    device = resolve_device(execution.device)
    may_measure = measures(recipes[0].iterations, execution.deterministic)
    if device.type == "cpu" and resolve_precision(arguments.fast, device, may_measure) == "fp32":
        if reason := _never_other(recipes[0], execution):
            print(f"equivalence: fp32 is the fast path itself here: nothing to compare ({reason}; see --fast bf16)")
            return 0
    pairs = []
    for recipe in recipes:  # seed by seed, so that an interrupted comparison has both sides of what it has
        reference = reference_run(recipe, root, arguments.data_root, preset.name, execution)
        fast = train(
            recipe.replace(precision=arguments.fast), root / "runs", arguments.data_root, preset.name, execution
        )
        pairs.append((reference, fast))
        print(f"seed {recipe.seed}: fp32 {_percent(reference)}, fast path ({fast['precision']}) {_percent(fast)}")
    record = compare(arguments.model, preset.name, dataset, pairs)
    path = root / "equivalence" / f"{arguments.model}-{dataset}.json"
    write_json(path, record)
    write_text(path.with_suffix(".md"), markdown(record))
    print(f"\n{markdown(record)}\nwritten: {path} and {path.with_suffix('.md').name}")
    return 1 if record["verdict"] == "different" else 0


def reference_run(recipe: Recipe, root: Path, data_root, preset: str, execution) -> dict:
    """The summary of a recipe in fp32, every step of it eager, trained where there is none.

    An ordinary fp32 run of the preset may have been captured, compiled or convolved otherwise. It is no reference, and
    another is trained in a folder of its own.
    """
    plain = dataclasses.replace(execution, eager=True)  # no CUDA graph, not compiled
    for folder in (root / "runs", root / "equivalence" / "runs"):
        summary = train(recipe.replace(precision="fp32"), folder, data_root, preset, plain)
        if _steps(summary) == {"eager"}:
            return summary
        print(f"{recipe.run_name} in {folder} is no reference: its steps are {', '.join(sorted(_steps(summary)))}")
    raise UserError(f"remove {folder}: the reference in it was trained by other than eager steps")


def _steps(summary: dict) -> set[str]:
    """How the steps of a run were taken, over all its sessions."""
    return {session.get("step", "unknown") for session in summary.get("sessions", [])} or {"unknown"}


def _never_other(recipe: Recipe, execution) -> str:
    """Why every run of this recipe will take the plain passes; empty if one may not."""
    chosen = choice_for(recipe.iterations, execution.deterministic)
    transformed = chosen.fourier is not False and _large_kernels(recipe)  # they need no compiler
    if chosen.compile is chosen.winograd is False and not transformed:
        return "such runs are neither compiled nor convolved otherwise"
    return "" if transformed else cannot_compile()


def _large_kernels(recipe: Recipe) -> bool:
    """Whether a network has convolutions that may be computed by Fourier transforms."""
    with torch.no_grad(), Convolutions() as mode:
        make_model(recipe, 10, Path()).eval()(torch.zeros(1, 3, 32, 32))
    return any(fourier.promising(layer, recipe.batch_size) for layer in mode.met)


def _percent(summary: dict) -> str:
    error = summary["test_error"]
    return summary["status"] if error is None else f"{100 * error:.2f}%"


def compare(model: str, preset: str, dataset: str, pairs: list[tuple[dict, dict]]) -> dict:
    """Final test errors in percent of (fp32, fast) summaries, their difference with Welch's 95% interval, a verdict.

    Verdict: "different" when the interval leaves out 0 or one side alone diverges, "no difference found" otherwise,
    with the smallest difference that these seeds could have shown; "too few seeds" below two.
    """
    diverged = [sum(s["status"] == "diverged" for s in side) for side in zip(*pairs, strict=True)]
    kept = [p for p in pairs if all(s["status"] == "finished" for s in p)]
    errors = [[100 * s["test_error"] for s in side] for side in zip(*kept, strict=True)] if kept else [[], []]
    record = {
        "model": model,
        "preset": preset,
        "dataset": dataset,
        "precision": sorted({p[1]["precision"] for p in pairs}),
        "steps": {
            name: sorted(set().union(*map(_steps, side)))
            for name, side in zip(("fp32", "fast"), zip(*pairs, strict=True), strict=True)
        },
        "device_name": sorted({s["device_name"] for p in pairs for s in p}),
        "commit": sorted({s["commit"] for p in pairs for s in p}),
        "data_fingerprint": sorted({s["data_fingerprint"] for p in pairs for s in p}),
        "fp32_errors": errors[0],
        "fast_errors": errors[1],
        "diverged": {"fp32": diverged[0], "fast": diverged[1]},
        "images_per_second": {
            name: [s["images_per_second"] for s in side]
            for name, side in zip(("fp32", "fast"), zip(*pairs, strict=True), strict=True)
        },
    }
    if len(kept) < 2:
        return record | {"verdict": "different" if diverged[0] != diverged[1] else "too few seeds"}
    result = welch(*errors)
    different = not result.low <= 0 <= result.high or diverged[0] != diverged[1]
    return record | {
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "degrees": None if math.isnan(result.degrees) else result.degrees,
        "detectable": (result.high - result.low) / 2,
        "verdict": "different" if different else "no difference found",
    }


def markdown(record: dict) -> str:
    """The comparison as a Markdown page."""
    lines = [
        f"# Fast path beside fp32: {record['model']} on {record['dataset']}, preset {record['preset']}",
        "",
        f"{', '.join(record['device_name'])}; steps of fp32: {', '.join(record['steps']['fp32'])}; "
        f"of the fast path: {', '.join(record['precision'] + record['steps']['fast'])}; "
        f"commit {', '.join(c[:10] for c in record['commit'])}; data {', '.join(record['data_fingerprint'])}.",
        "",
        "| | seeds | final test error in % | mean ± std |",
        "| --- | ---: | --- | ---: |",
    ]
    for name in ("fp32", "fast"):
        values = record[f"{name}_errors"]
        summary = summarize(values) if values else None
        shown = "" if summary is None else f"{summary.mean:.2f}" + (f" ± {summary.std:.2f}" if summary.n > 1 else "")
        lines.append(f"| {name} | {len(values)} | {', '.join(f'{v:.2f}' for v in values)} | {shown} |")
    lines.append("")
    if "difference" in record:
        lines.append(
            f"Difference fast - fp32: {record['difference']:+.2f} points, 95% interval {record['low']:+.2f} to "
            f"{record['high']:+.2f} (Welch). Verdict: {record['verdict']}; a difference of {record['detectable']:.2f} "
            "points or more would have shown."
        )
    else:
        lines.append(f"Verdict: {record['verdict']}.")
    if any(record["diverged"].values()):
        lines.append(f"Diverged: {record['diverged']['fp32']} in fp32, {record['diverged']['fast']} on the fast path.")
    return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """What the first steps of a training did: loss of each (steps,), weights before and after, one flat vector each."""

    losses: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor


def first_steps(
    recipe: Recipe, source, device, precision: str, steps: int = 50, eager: bool = False, fast: Choice | None = None
) -> Trajectory:
    """Train `steps` steps of a recipe as the trainer does; eager: without CUDA graph; fast: how, on a processor."""
    batches = data.batches_for(recipe, source, device)
    model = make_model(recipe, len(source.classes), Path()).to(device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(recipe, model, device)
    step = (Step if eager else make_step)(recipe, model, optimizer, device, precision)
    if fast:
        accelerate(step, fast, lambda: batches.batch(0), steps)
    before, losses, previous = _flat(model), [], recipe.lr
    for iteration in range(steps):
        lr = learning_rate(recipe, iteration, False, [])
        set_learning_rate(optimizer, lr, previous)
        previous = lr
        x, y = batches.batch(iteration)
        losses.append(step(x, y, iteration)[0].clone())  # a captured step writes the next loss to the same place
    return Trajectory(torch.stack(losses).cpu(), before, _flat(model))


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
