"""`reslib reproduce`: every notebook of the study through papermill, or only the runs behind them."""

from __future__ import annotations

import contextlib
import os

from ..cli import (
    ArgumentError,
    add_common,
    add_execution,
    add_seeds,
    checking_arguments,
    execution_of,
    number,
    results_of,
)
from ..errors import UserError, choose
from ..executor import EXECUTORS, execute
from ..presets import preset_of
from ..runs import Run, read_json
from ..stand_ins import absent, dataset_for
from ..studies import STUDIES, plan


def add_arguments(parser) -> None:
    parser.add_argument("notebooks", nargs="*", help="which notebooks (default: all)")
    add_common(parser)
    add_execution(parser)
    add_seeds(parser)
    parser.add_argument("--executor", default="auto", help=", ".join(EXECUTORS))
    parser.add_argument(
        "--workers",
        type=number(int, 0, 1024),
        default=0,
        help="processes of --executor local (default: one per GPU, or up to four that share the CPU cores); runs at a "
        "time of --executor together (default: 5)",
    )
    parser.add_argument("--address", default="auto", help="Ray cluster of --executor ray")
    parser.add_argument(
        "--gpus-per-run", type=number(float, 0.001, 1), default=1.0, help="fraction of a GPU per run on Ray"
    )
    parser.add_argument("--runs-only", action="store_true", help="train the runs, leave the notebooks")
    parser.add_argument(
        "--no-train",
        action="store_true",
        help="execute the notebooks named, or all that have records, with train=False: they draw what is on record",
    )
    parser.add_argument("--models", default="", help="with --runs-only: only these networks, joined by commas")


def main(arguments) -> int:
    there = names_there(arguments.runs_only)
    arguments.notebooks = [name_of(text) for text in arguments.notebooks]
    if arguments.runs_only and arguments.no_train:
        raise ArgumentError("--runs-only trains and --no-train does not: one of them")
    if arguments.models and not arguments.runs_only:
        raise ArgumentError(
            f"--models {arguments.models} goes with --runs-only: a notebook draws all its networks. For one of your "
            "own in the table: papermill notebooks/cifar10_table.ipynb OUT.ipynb -p models package.module:Factory"
        )
    with checking_arguments():
        preset = preset_of(arguments.preset)
        choose("executor", arguments.executor, EXECUTORS)
        for name in arguments.notebooks:
            choose("study" if arguments.runs_only else "notebook", name, there)
    results = results_of(arguments)
    if arguments.no_train:
        return draw(arguments, preset, results, there)
    execution = execution_of(arguments)
    studies = [n for n in (arguments.notebooks or STUDIES) if n in STUDIES]
    datasets = datasets_of(preset.name, arguments.data_root, studies, download=True)
    reason = absent(datasets, arguments.data_root)
    without = [n for n in studies if STUDIES[n][1] == "imagenet"] if reason else []
    studies = [n for n in studies if n not in without]
    names = [n for n in (arguments.notebooks or there) if n not in without]
    if without:
        needs = f"preset {preset.name} draws {', '.join(without)} from ImageNet itself: {reason}"
        if arguments.notebooks or not names:
            raise UserError(needs)
        print(f"left out: {needs}", flush=True)
    recipes = plan(preset, datasets, arguments.seeds, studies)
    # not left to the notebooks: here progress can be seen and a time limit is kept
    recipes = wanted(arguments.models, recipes)
    failures = train_runs(arguments, preset, recipes, results, execution)
    if not arguments.runs_only:
        from ..notebooks import run_notebooks

        arguments.notebooks = names
        code = run_notebooks(arguments, results)
    for line in [*failures, *diverged(recipes, results / preset.name / "runs")]:
        print(line)
    if without:
        print(f"left out: {needs}")
    return 1 if failures or (not arguments.runs_only and code) else 0


def draw(arguments, preset, results, there: list[str]) -> int:
    """Execute the notebooks that have records to draw, or those asked for, and train nothing."""
    from ..artefacts import drawable
    from ..notebooks import run_notebooks

    draws = [name for name in there if name in (*STUDIES, "gradients") and name != "imagenet_tables"]  # it evaluates
    for name in arguments.notebooks:
        if name not in draws:
            allowed = ", ".join(draws)
            raise ArgumentError(f"--no-train draws what is on record, and {name} does not: allowed are {allowed}")
    folder = results / preset.name
    arguments.notebooks = arguments.notebooks or [name for name in draws if drawable(name, folder)]
    if not arguments.notebooks:
        raise UserError(f"nothing on record in {folder}: without --no-train it is trained")
    return run_notebooks(arguments, results, train=False)


def name_of(text: str) -> str:
    """The notebook's name also where its file in the notebooks' folder is given; any other text as it is."""
    from ..notebooks import notebook_folder

    folder = os.path.abspath(notebook_folder())
    name, ending = os.path.splitext(text)
    there = [os.path.abspath(os.path.join(base, os.path.dirname(text))) for base in ("", os.path.dirname(folder))]
    return os.path.basename(name) if ending == ".ipynb" and folder in there else text


def names_there(runs_only: bool) -> list[str]:
    """What can be asked for: the studies, or the notebooks. Raises UserError where no notebooks are."""
    if runs_only:
        return list(STUDIES)
    from ..notebooks import notebook_folder, notebook_names

    if not (names := notebook_names()):
        raise UserError(f"no notebooks in {notebook_folder()}: run this from a checkout, or set RESLIB_NOTEBOOKS")
    return names


def diverged(recipes, runs_dir) -> list[str]:
    """A line per run of the plan that diverged, now or before: it has ended, and is not in the figures."""
    lines = []
    for run in (Run(runs_dir, recipe) for recipe in recipes):
        with contextlib.suppress(UserError):  # a damaged record is told of where it is needed
            if run.ended and (summary := read_json(run.summary_file)).get("status") == "diverged":
                lines.append(f"{run.recipe.run_name} diverged: {summary.get('message')}; it is not trained again")
    return lines


def wanted(models: str, recipes: list) -> list:
    """The recipes of these networks, joined by commas, in their order; all where none is named."""
    if not models:
        return recipes
    names = [name.strip() for name in models.split(",")]
    with checking_arguments():
        for model in names:
            choose("model", model, dict.fromkeys(r.model for r in recipes))
    return sorted((r for r in recipes if r.model in names), key=lambda r: (r.seed, names.index(r.model)))


def train_runs(arguments, preset, recipes, results, execution) -> list[str]:
    """Train these runs; returns one line per failed run."""
    return execute(
        recipes,
        results / preset.name / "runs",
        arguments.data_root,
        preset.name,
        execution,
        arguments.executor,
        arguments.workers,
        arguments.address,
        arguments.gpus_per_run,
    )


def datasets_of(preset: str, root, studies=tuple(STUDIES), download: bool = False, say=print) -> dict[str, str]:
    """The data set of each kind that a preset's studies compute on."""
    kinds = sorted({STUDIES[name][1] for name in studies})
    return {kind: dataset_for(preset_of(preset), kind, root, download, say) for kind in kinds}
