"""`reslib status`: which runs of a preset's plan are done, running, interrupted, missing; how long the rest takes."""

from __future__ import annotations

import gc
import math
from collections import Counter

from .. import schedule_plan, speeds
from ..cli import ArgumentError, add_common, add_seeds, checking_arguments, number, results_of
from ..durations import in_words
from ..errors import UserError
from ..models import build_model
from ..numerics import resolve_device
from ..presets import preset_of, settings_of, usual_recipe
from ..provenance import device_name
from ..recipe import Recipe
from ..runs import Run
from ..stand_ins import absent
from ..studies import plan
from .reproduce import datasets_of

MAKESPANS = (8,)  # devices for which the makespan is printed on the way to --gpus: a node of a cluster
SPEEDS = (0.001, 1_000_000_000)  # images/s that may be given
HEAD = ("network", "data", "iterations", "M mult-adds", "images/s", "speed", "per run", "left", "runs")
STATES = ("done", "running", "interrupted", "missing", "diverged", "damaged")


def add_arguments(parser) -> None:
    add_common(parser)
    add_seeds(parser)
    parser.add_argument(
        "--gpus",
        type=number(int, 0, 100_000),
        default=0,
        metavar="N",
        help="also the makespan on up to N devices side by side",
    )
    parser.add_argument(
        "--speed", default="", metavar="MODEL=IMAGES/S,...", help="speeds to reckon with, before measured ones"
    )


def main(arguments) -> int:
    gc.disable()  # thousands of small objects that live to the end: the collector would walk them again and again
    try:
        return _main(arguments)
    finally:
        gc.enable()


def _main(arguments) -> int:
    with checking_arguments():
        preset = preset_of(arguments.preset)
    given = speeds_given(arguments.speed)
    results = results_of(arguments)
    datasets = datasets_of(preset.name, arguments.data_root)
    recipes = plan(preset, datasets, arguments.seeds)
    print(f"preset {preset.name}: {preset.purpose}; {results / preset.name}")
    print("\n".join(report(recipes, preset, results, given, arguments.gpus, arguments.seeds)))
    if reason := absent(datasets, arguments.data_root):
        count = sum(r.dataset == "imagenet" for r in recipes)
        print(f"`reslib reproduce` leaves out {count} of these runs until ImageNet is found: {reason}")
    return 0


def report(
    recipes: list[Recipe], preset, results, given: dict[str, float] | None = None, gpus: int = 0, seeds: int = 0
) -> list[str]:
    """The lines of the report on a plan's recipes."""
    given = given or {}
    runs_dir = results / preset.name / "runs"
    there = {p.name for p in runs_dir.iterdir() if p.is_dir() and p.name[0] != "."} if runs_dir.is_dir() else set()
    runs = [Run(runs_dir, recipe) for recipe in recipes]
    missing = schedule_plan.State("missing")
    states = [schedule_plan.state_of(run) if run.path.name in there else missing for run in runs]
    found = speeds.measurements(results, preset.name)
    device = speeds.main_device(found, device_name(resolve_device()))
    for run, state in zip(runs, states, strict=True):
        found += schedule_plan.unfinished(run, state, preset.name)
    networks = speeds.measured([m for m in found if m.device in ("", device)], preset.name)
    slow = speeds.disturbed(networks)
    networks = [m for m in networks if m not in slow]

    rows, left, names, sources = [HEAD], [], [], Counter()
    for (model, settings, dataset), members in _groups(recipes, states, preset).items():
        recipe = members[0][0]
        speed = schedule_plan.speed_of(recipe, preset.name, networks, given)
        sources[speed.source.split()[0]] += 1
        hours = [schedule_plan.hours_left(r, state, speed) for r, state in members]
        left += hours
        names += [recipe.model] * len(hours)
        whole = schedule_plan.hours_left(recipe, missing, speed)
        cells = [f"{model} [{settings}]" if settings else model, dataset, f"{recipe.iterations:,}"]
        cells += [f"{schedule_plan.cost(recipe) / 1e6:,.0f}", _number(speed.images_per_second), speed.source]
        cells += [in_words(3600 * whole), in_words(3600 * sum(hours))]
        rows.append((*cells, describe([(r.seed, state) for r, state in members])))
    damaged = [
        f"DAMAGED: {run.path} (`reslib verify` says how)"
        for run, state in zip(runs, states, strict=True)
        if state.status == "damaged"
    ]
    counts = Counter(state.status for state in states)
    total = ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s])
    lines = [*aligned(rows, right=(2, 3, 4, 6, 7)), "", f"{len(recipes)} runs: {total}", *damaged]
    others = len(there - {run.path.name for run in runs})
    if others:
        lines.append(f"{others} further run folders are not in this plan")
    basis = _basis(sources, given, any(m.model not in given for m in networks), device, slow)
    count, hours = schedule_plan.gradients(preset, seeds, networks, given)
    time = "unknown" if math.isnan(hours) else in_words(3600 * hours)
    further = f"beside the runs: the gradients notebook follows {count} networks: {time}"
    return [*lines, *_time(left, names, gpus, basis), further]


def _groups(recipes: list[Recipe], states: list, preset) -> dict[tuple, list]:
    """{(network, settings beside the preset's, data set): [(recipe, state) of each seed]}, as the plan has them."""
    groups: dict[tuple, list] = {}
    usual: dict[tuple, dict] = {}  # the preset's recipe of a network, whatever the seed
    for recipe, state in zip(recipes, states, strict=True):
        network = recipe.model, recipe.dataset
        usual[network] = usual.get(network) or usual_recipe(recipe, preset)
        settings = settings_of(recipe, usual[network])
        groups.setdefault((recipe.model, settings, recipe.dataset), []).append((recipe, state))
    return groups


def _basis(sources: Counter, given: dict[str, float], measured: bool, device: str, slow) -> list[str]:
    """What the speeds rest on, in words.

    measured: whether there are records to scale from, other than those of the given; slow: those left aside.
    """
    lines = []
    if sources["measured"] or (sources["scaled"] and measured):
        but = f", but for what --speed gives ({', '.join(given)})" if given else ""
        lines.append(f"speeds measured on {device or 'the device of the unfinished runs'}, evaluations included{but}")
    elif given:
        lines.append(f"no speed is measured: all rests on what --speed gives ({', '.join(given)})")
    if sources["scaled"]:
        lines.append(
            f"an estimate: {sources['scaled']} of {sum(sources.values())} speeds are scaled by multiply-adds, from the "
            "median of the networks nearest in them"
        )
    lines += [
        f"left aside: {m.model} at {m.preset}, {_number(m.images_per_second)} images/s, less than half the rate of its "
        "like: trained beside other work?"
        for m in slow
    ]
    return lines


def _time(left, names, gpus, basis) -> list[str]:
    todo = [hours for hours in left if not hours == 0]
    unknown = sum(map(math.isnan, todo))
    if not todo:
        return ["nothing is left to train"]
    if unknown == len(todo):
        return [f"left: unknown, as no speed of these {unknown} runs is measured; give --speed MODEL=IMAGES/S"]
    known = [hours for hours in todo if not math.isnan(hours)]
    lines = [f"left: {in_words(3600 * sum(known))} on one device"]
    if unknown:
        lines[0] += f", and unknown for {unknown} runs whose speed is not measured; give --speed MODEL=IMAGES/S"
    of_them = f", of the {len(known)} runs with a known speed" * bool(unknown)
    for count in sorted({n for n in (*MAKESPANS, gpus) if 1 < n <= gpus}):
        hours = schedule_plan.makespan(known, count)
        lines.append(f"on {count} devices: {in_words(3600 * hours)} ({sum(known) / hours:.3g} times as fast){of_them}")
    if gpus > 1:
        longest, name = max((h, n) for h, n in zip(left, names, strict=True) if not math.isnan(h))
        lines.append(
            f"a run stays on one device, the longest first; the longest takes {in_words(3600 * longest)}: {name}"
        )
    return lines + basis


def speeds_given(text: str) -> dict[str, float]:
    """ "resnet20=2500,plain56=900" as a dictionary."""
    given = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        model, _, value = part.partition("=")
        try:
            given[model] = float(value)
        except ValueError:
            given[model] = math.nan
        if math.isnan(given[model]):
            raise ArgumentError(f"speed {part!r} is not of the form model=images/s, such as resnet20=2500")
        slowest, fastest = SPEEDS
        if not slowest <= given[model] <= fastest:
            raise ArgumentError(f"speed {part!r} is out of range: allowed is {slowest} to {fastest:,} images/s")
        try:
            build_model(model)
        except UserError as error:
            raise ArgumentError(f"speed {part!r}: {error}") from error
    return given


def describe(members: list[tuple[int, schedule_plan.State]]) -> str:
    """The seeds in each state: "done 0-2; interrupted 3 at 1,200; missing 4"."""
    parts = []
    for status in STATES:
        seeds = [(seed, state.iteration) for seed, state in members if state.status == status]
        if not seeds:
            continue
        if status in ("running", "interrupted"):
            text = ", ".join(f"{seed} at {iteration:,}" for seed, iteration in seeds)
        else:
            text = ranges([seed for seed, _ in seeds])
        parts.append(f"{status} {text}")
    return "; ".join(parts)


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    spans: list[list[int]] = []
    for n in sorted(numbers):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def aligned(rows: list[tuple], right: tuple[int, ...] = ()) -> list[str]:
    """Rows of text as lines of aligned columns, two blanks apart; the columns numbered in `right` are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def _number(value: float) -> str:
    if math.isnan(value):
        return "?"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.3g}"
