"""`reslib reproduce`: every notebook of the study through papermill, or only the runs behind them."""

from __future__ import annotations

from ..cli import ArgumentError, add_common, add_execution, execution_of
from ..data import choose_dataset
from ..errors import UserError, choose
from ..executor import EXECUTORS, execute
from ..runs import results_root
from ..studies import STUDIES, plan, preset_of
from .train import synthetic_name


def add_arguments(parser) -> None:
    parser.add_argument("notebooks", nargs="*", help="which notebooks (default: all)")
    add_common(parser)
    add_execution(parser)
    parser.add_argument("--seeds", type=int, default=0, help="seeds per network (default: the preset's)")
    parser.add_argument("--executor", default="auto", help=", ".join(EXECUTORS))
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes of --executor local (default: one per GPU, or up to four that share the CPU cores)",
    )
    parser.add_argument("--address", default="auto", help="Ray cluster of --executor ray")
    parser.add_argument("--gpus-per-run", type=float, default=1.0, help="fraction of a GPU per run on Ray")
    parser.add_argument("--runs-only", action="store_true", help="train the runs, leave the notebooks")
    parser.add_argument("--models", default="", help="with --runs-only: only these networks, joined by commas")


def main(arguments) -> int:
    try:
        preset = preset_of(arguments.preset)
        choose("executor", arguments.executor, EXECUTORS)
    except UserError as error:
        raise ArgumentError(str(error)) from error
    for name in ("seeds", "workers"):
        if getattr(arguments, name) < 0:
            raise ArgumentError(
                f"{name} {getattr(arguments, name)} is out of range: allowed are 0 (the default) and up"
            )
    results = results_root(arguments.results)
    failures = train_runs(arguments, preset, results)  # here, where progress can be seen and a time limit kept
    if not arguments.runs_only:
        from ..notebooks import run_notebooks

        code = run_notebooks(arguments, results)
    for line in failures:
        print(line)
    return 1 if failures or (not arguments.runs_only and code) else 0


def train_runs(arguments, preset, results) -> list[str]:
    """Train what the chosen notebooks need; returns one line per failed run."""
    studies = [n for n in (arguments.notebooks or STUDIES) if n in STUDIES]
    for name in arguments.notebooks:
        if arguments.runs_only:
            choose("study", name, STUDIES)
    recipes = plan(
        preset, datasets_of(preset.name, arguments.data_root, studies, download=True), arguments.seeds, studies
    )
    if arguments.models:
        wanted = arguments.models.split(",")
        for model in wanted:
            choose("model", model, {r.model for r in recipes})
        recipes = sorted((r for r in recipes if r.model in wanted), key=lambda r: (r.seed, wanted.index(r.model)))
    return execute(
        recipes,
        results / preset.name / "runs",
        arguments.data_root,
        preset.name,
        execution_of(arguments),
        arguments.executor,
        arguments.workers,
        arguments.address,
        arguments.gpus_per_run,
    )


def datasets_of(preset: str, data_root, studies=tuple(STUDIES), download: bool = False, say=print) -> dict[str, str]:
    """The data set of each kind that a preset trains on: synthetic for smoke, else what is found."""
    kinds = {STUDIES[name][1] for name in studies}
    if preset_of(preset).base == "smoke":
        return {kind: synthetic_name(kind) for kind in kinds}
    return {kind: choose_dataset(kind, data_root, download=download, say=say) for kind in kinds}
