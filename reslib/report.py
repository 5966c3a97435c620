"""`reslib report`: one self-contained HTML page, and a table of the records of every preset beside it (.csv).

Figures and tables are the files that the notebooks wrote; the scoreboard and the list of runs come from the records.
The same files give the same page. Time: `python scripts/scale.py` measures it for 10,000 runs.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from . import claims, evidence, frames, report_page
from .cli import add_results, checking_arguments, name_given, results_of
from .errors import UserError
from .files import folder_of, write_text
from .presets import PRESETS, preset_of
from .records import load_curves, load_runs
from .studies import CIFAR_STUDIES, plan

PRESET_ORDER = ("paper", "medium", "quick", "smoke")  # what weighs most comes first
CIFAR_SETS = ("cifar10", "synthetic")  # the real set is preferred where records of both exist
IMAGENET_SETS = ("imagenet", "imagenette", "synthetic-imagenet")
CURVE_MODELS = ("plain18", "resnet18")  # the only claim about curves compares these
LEFT_OUT = ("sessions", "path")  # columns that results.csv does not have: nested, or of this machine alone


@dataclass
class Section:
    """What the page shows of one preset."""

    name: str
    runs: pd.DataFrame
    evidence: str
    synthetic: bool
    board: pd.DataFrame
    figures: list[Path]  # image files
    tables: list[tuple[str, str, pd.DataFrame]]  # stem, caption, cells as text


def add_arguments(parser) -> None:
    add_results(parser)
    parser.add_argument("--preset", default="", help="only this preset (default: all that are there)")
    parser.add_argument(
        "--out",
        type=name_given,
        default=None,
        help="where to write the page, PAGE.html, and PAGE.csv beside it (default: report.html and results.csv in the "
        "results, or in the preset's)",
    )


def main(arguments) -> int:
    root = results_of(arguments)
    preset = arguments.preset
    if preset and not (root / preset).is_dir():  # of results that have other folders, their names
        with checking_arguments():
            preset = preset_of(preset).name
    out = root / preset / "report.html"
    if arguments.out:
        with checking_arguments():
            out = folder_of("out", arguments.out)
            if out.is_dir():
                raise UserError(f"out {arguments.out!r} is a folder: allowed is the name of a file")
            if out.suffix == ".csv":
                raise UserError(f"out {arguments.out!r} would be the name of the records beside the page: name a .html")
    sections, problems = collect(root, preset)
    runs = pd.concat([s.runs for s in sections], ignore_index=True) if sections else pd.DataFrame()
    csv = out.with_suffix(".csv") if arguments.out else out.with_name("results.csv")  # no other file's name
    write_text(csv, runs_csv(runs, out.parent))
    page = report_page.page(sections, run_rows(runs, out.parent), problems, csv.name, lambda p: link(p, out.parent))
    write_text(out, page)
    print(f"{len(runs):,} runs of {', '.join(s.name for s in sections)}: {out} and {csv.name} beside it")
    for problem in problems:
        print(f"reslib: {problem}")
    return 1 if problems else 0


def collect(root: Path, preset: str = "") -> tuple[list[Section], list[str]]:
    """A section per preset folder, or that of one preset, and one line per record that is damaged."""
    there = [p for p in sorted(root.glob("*")) if any((p / part).is_dir() for part in ("runs", "figures", "tables"))]
    folders = [p for p in there if preset in ("", p.name)]
    if not folders:
        of = f" of preset {preset}" if preset else ""
        raise UserError(f"no records{of} under {root}: run `reslib reproduce` first, or name a folder with --results")
    rank = {name: i for i, name in enumerate(PRESET_ORDER)}
    sections, problems = [], []
    for folder in sorted(folders, key=lambda p: (rank.get(p.name, len(rank)), p.name)):
        runs = load_runs(folder / "runs", problems.append)  # the page is made all the same, and the command fails
        runs["preset"] = folder.name
        runs = runs.sort_values(["family", "depth", "seed", "run"], ignore_index=True)
        sections.append(_section(folder, runs, problems))
    return sections, problems


def _measured(folder: Path, stem: str, problems: list[str]) -> pd.DataFrame | None:
    try:
        return frames.find_measurement(folder, stem)
    except UserError as error:  # the page is made all the same, and the command fails
        problems.append(str(error))
        return None


def _section(folder: Path, runs: pd.DataFrame, problems: list[str]) -> Section:
    mine = study_runs(folder.name, runs)
    drawn = mine[mine["model"].isin(CURVE_MODELS)]
    measured = [_measured(folder, stem, problems) for stem in ("figure7", "gradients")]
    board = claims.scoreboard(mine, load_curves(drawn), *measured)
    figures = sorted(p for p in (folder / "figures").glob("*") if p.suffix in (".png", ".svg"))
    return Section(
        folder.name,
        runs,
        evidence.evidence_line(mine) if len(mine) else "",
        bool(len(runs) and evidence.is_synthetic(runs).any()),
        board,
        [p for p in figures if p.suffix == ".png" or p.with_suffix(".png") not in figures],
        [_table(p) for p in sorted((folder / "tables").glob("*.csv")) if p.stem not in ("claims", "figure4_claims")],
    )


def study_runs(preset: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The records that figures and scoreboard are judged on: the recipes of the studies, with every seed on disk."""
    if preset.partition("+")[0] not in PRESETS or runs.empty:
        return runs
    there = set(runs["dataset"])
    datasets = {
        "cifar": next((d for d in CIFAR_SETS if d in there), "synthetic"),
        "imagenet": next((d for d in IMAGENET_SETS if d in there), "synthetic-imagenet"),
    }
    recipes = plan(preset_of(preset), datasets, names=(*CIFAR_STUDIES, "figure4"))
    return frames.of_recipes(runs, recipes)


def _table(path: Path) -> tuple[str, str, pd.DataFrame]:
    """(stem, caption, cells): the caption is the first line of the .md beside it."""
    beside = path.with_suffix(".md")
    lines = beside.read_text(encoding="utf-8").splitlines() if beside.exists() else []
    caption = lines[0] if lines and not lines[0].startswith("|") else path.stem
    return path.stem, caption, frames.read_csv(path, dtype=str, keep_default_na=False)


CELLS = (  # columns of the records behind the page's list
    "run", "preset", "model", "dataset", "seed", "status", "test_error", "train_error", "iterations", "parameters",
    "precision", "device_name", "torch", "commit", "dirty", "data_fingerprint", "finished", "message", "path",
)  # fmt: skip


def run_rows(runs: pd.DataFrame, base: Path) -> list[list]:
    """The cells of the page's list, a row per run in the order of report_page.COLUMNS."""
    rows = []
    folders = relative(runs["path"], base) if len(runs) else []
    cells = evidence.with_hardware(runs).reindex(columns=CELLS)
    for run, folder in zip(cells.to_dict("records"), folders, strict=True):
        files = set(os.listdir(run["path"]))
        commit = str(run["commit"])[:12] if _known(run["commit"]) else ""
        rows.append(
            [
                run["run"],
                run["preset"],
                run["model"],
                run["dataset"],
                int(run["seed"]),
                run["status"],
                _percent(run["test_error"]),
                _percent(run["train_error"]),
                int(run["iterations"]),
                _whole(run["parameters"]),
                _text(run["precision"]),
                _text(run["device_name"]),
                _text(run["torch"]),
                commit + ("*" if run["dirty"] is True else ""),
                _text(run["data_fingerprint"]),
                _text(run["finished"]),
                _text(run["message"]),
                quote(folder),
                "".join(key for key, name in report_page.FILES.items() if name in files),
            ]
        )
    return rows


def runs_csv(runs: pd.DataFrame, base: Path) -> str:
    """All runs as CSV text: the recipe's fields and the summary's; lists as JSON, `folder` relative to the file."""
    if runs.empty:
        return "run,preset,status\n"
    frame = runs.drop(columns=[c for c in LEFT_OUT if c in runs])
    for column in [c for c in frame if frame[c].dtype == object]:
        frame[column] = [json.dumps(v) if isinstance(v, (list, tuple, dict)) else v for v in frame[column].tolist()]
    frame["folder"] = relative(runs["path"], base)
    first = ["run", "preset", "status", "model", "dataset", "seed", "test_error", "train_error"]
    return frame[first + [c for c in frame if c not in first]].to_csv(index=False, lineterminator="\n")


def relative(paths: Iterable[str], base: Path) -> list[str]:
    """Folders of runs as seen from `base`, with forward slashes."""
    parents, found = {}, []
    for path in paths:
        parent, name = os.path.split(path)
        if parent not in parents:
            parents[parent] = Path(os.path.relpath(parent, base)).as_posix()
        found.append(posixpath.join(parents[parent], name))
    return found


def link(path: Path, base: Path) -> str:
    """A relative address, quoted for HTML attributes and for the page's script."""
    return quote(Path(os.path.relpath(path, base)).as_posix())


def _known(value) -> bool:
    return value is not None and value == value


def _text(value) -> str:
    return str(value) if _known(value) else ""


def _percent(value) -> float | None:
    return round(100 * value, 2) if _known(value) else None


def _whole(value) -> int | None:
    return int(value) if _known(value) else None
