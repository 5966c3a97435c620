"""What `reslib verify` checks of each run directory: files, names, hashes, rows, and the summary against the rows."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from . import sources, stats
from .errors import UserError
from .files import sha256
from .provenance import has_commit, within_checkout
from .recipe import Recipe, is_number
from .runs import ENDED, METRICS, check_summary, is_locked, read_json, read_recipe
from .schedule import drop_iterations, learning_rate

NEEDED = (  # keys of a summary without which a number cannot be led back to its origin
    "status", "recipe_hash", "test_error", "iterations", "commit", "device_name", "torch", "data_fingerprint",
    "precision", "metrics_sha256",
)  # fmt: skip


@dataclass
class Findings:
    """Lines for the reader: problems fail the verification, warnings and notes do not."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    records: int = 0
    files: int = 0


def check_records(folder: Path, findings: Findings, name: str = "") -> None:
    """Every run directory of results/<preset>, and the runs against each other; name: of the folder in what is said."""
    summaries, name = [], name or folder.name
    runs = folder / "runs"
    if os.path.lexists(runs) and not runs.is_dir():
        findings.problems.append(f"{name}/runs is no folder")
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            findings.problems.append(f"{name}/runs/{path.name} is no folder of a run")
            continue
        if {p.name for p in path.iterdir()} <= {"lock"}:
            continue  # refused before it began
        findings.records += 1
        before = len(findings.problems)
        try:
            recipe, summary = check_record(path, findings, name)
            if summary and len(findings.problems) == before:
                check_summary(summary, recipe, path / "summary.json")
        except UserError as error:
            findings.problems.append(str(error))
            continue
        if summary.get("status") == "finished" and is_number(summary.get("test_error")):
            summaries.append((recipe, summary))
    check_together(name, summaries, findings)


def check_record(path: Path, findings: Findings, name: str) -> tuple[Recipe, dict]:
    """One run directory; its recipe and summary ({} when it has not ended). Raises UserError for unreadable files."""
    where = f"{name}/runs/{path.name}"

    def problem(text):
        findings.problems.append(f"{where}: {text}")

    if not (path / "recipe.json").exists():
        raise UserError(f"{where}: recipe.json is missing")
    recipe = read_recipe(path / "recipe.json")
    if path.name != recipe.run_name:
        problem(f"recipe.json is that of {recipe.run_name}")
    files = {name: (path / name).exists() for name in ("metrics.csv", "summary.json", "checkpoint.pt", "lock")}
    if not files["summary.json"]:
        if is_locked(path) or files["checkpoint.pt"] or (files["lock"] and not files["metrics.csv"]):
            findings.warnings.append(f"{where}: not finished")
        else:
            problem("summary.json is missing, and no checkpoint is there to continue from")
        return recipe, {}
    summary = read_json(path / "summary.json")
    if missing := [key for key in NEEDED if key not in summary]:
        problem(f"summary.json has no {', '.join(missing)}")
    if summary.get("recipe_hash") != recipe.digest:
        problem(f"summary.json names recipe {summary.get('recipe_hash')}, recipe.json has {recipe.digest}")
    if summary.get("iterations") != recipe.iterations:
        problem(f"summary.json has {summary.get('iterations')} iterations, recipe.json {recipe.iterations}")
    if summary.get("status") not in ENDED:
        problem(f"status {summary.get('status')!r} is unknown: allowed are {', '.join(ENDED)}")
    weights = path / "weights.safetensors"
    if weights.exists() and summary.get("weights_sha256") and sha256(weights) != summary["weights_sha256"]:
        problem("weights.safetensors is not the file that summary.json names (sha256 differs)")
    if not files["metrics.csv"]:
        problem("metrics.csv is missing")
        return recipe, summary
    if sha256(path / "metrics.csv") != summary.get("metrics_sha256"):
        problem("metrics.csv is not the file that summary.json names (sha256 differs)")
    for text in metrics_faults(path / "metrics.csv", recipe, summary):
        problem(text)
    if recipe.schedule == "steps" and summary.get("lr_drops_at", drops := drop_iterations(recipe)) != drops:
        problem(f"lr_drops_at {summary['lr_drops_at']} of summary.json are not the {drops} of recipe.json")
    stated = sources.resolved(summary, sources.known(path.parents[2]))
    if stated.get("dirty"):
        head = str(stated["commit"])[:12] if stated.get("commit") else "an unknown commit"
        findings.warnings.append(f"{where}: trained with uncommitted changes to {head}")
    elif (commit := str(stated.get("commit"))) != "unknown" and within_checkout(path) and not has_commit(commit):
        findings.warnings.append(f"{where}: commit {commit[:12]} is unknown to this checkout")
    if str(summary.get("message", "")).startswith("dead"):
        findings.warnings.append(f"{where}: {summary['message']}")
    return recipe, summary


def metrics_faults(file: Path, recipe: Recipe, summary: dict) -> list[str]:
    """What is wrong with the rows of metrics.csv, alone and against the summary."""
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            header = tuple(reader.fieldnames or ())
            rows = [{k: float(v) if v else None for k, v in row.items()} for row in reader]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        return [f"metrics.csv cannot be read: {error}"]
    if header != METRICS:
        return [f"metrics.csv has columns {', '.join(header)}: expected are {', '.join(METRICS)}"]
    if not rows:
        return ["metrics.csv has no rows"] if summary.get("status") == "finished" else []
    faults = []
    steps = [row["iteration"] for row in rows]
    if any(step is None for step in steps):
        return ["metrics.csv has a row without an iteration"]
    if odd := [f"{name} {value}" for row in rows for name, value in row.items() if not math.isfinite(value or 0)]:
        return [f"metrics.csv has numbers that are not finite: {', '.join(odd[:3])}"]
    if len(set(steps)) < len(steps):
        faults.append("metrics.csv has an iteration twice")
    elif steps != sorted(steps):
        faults.append("the iterations of metrics.csv do not increase")
    for row in rows:
        for column in ("train_error", "test_error", "val_error"):
            value = row[column]
            if value is not None and not 0 <= value <= 1:
                faults.append(f"{column} {value} at iteration {row['iteration']:g} is not a fraction from 0 to 1")
        if recipe.schedule == "steps" and not any(_same(row["lr"], rate) for rate in _rates(recipe, row["iteration"])):
            faults.append(f"lr {row['lr']} at iteration {row['iteration']:g} is not that of recipe.json")
    finished = summary.get("status") == "finished"
    if finished and steps[-1] != recipe.iterations:
        faults.append(f"metrics.csv ends at iteration {steps[-1]:g} of {recipe.iterations}")
    last = {column: rows[-1][column] for column in ("test_error", "train_error", "train_loss")}
    if finished and all(row["test_error"] is not None for row in rows):
        best = min(rows, key=lambda row: row["test_error"])
        last |= {"best_test_error": best["test_error"], "best_iteration": best["iteration"]}
    if finished and all(row["val_error"] is not None for row in rows):
        chosen = min(rows, key=lambda row: row["val_error"])
        last |= {"selected_test_error": chosen["test_error"], "selected_iteration": chosen["iteration"]}
    for column, value in last.items():
        if column in summary and not _same(value, summary[column]):
            faults.append(f"{column} {summary[column]} of summary.json is not the {value} of metrics.csv")
    return faults


def _rates(recipe: Recipe, iteration: float) -> list[float]:
    """The learning rates that the step to an iteration can have had: where there is a warm-up, of during and after."""
    warming = (False, True) if recipe.warmup_lr else (False,)
    return [learning_rate(recipe, int(iteration) - 1, during, []) for during in warming]


def _same(written: float | None, full: float | None) -> bool:
    """metrics.csv holds six significant digits of what summary.json holds in full."""
    if written is None or full is None:
        return written is full
    return is_number(full) and math.isclose(written, full, rel_tol=1e-5, abs_tol=1e-12)


def check_together(preset: str, finished: list[tuple[Recipe, dict]], findings: Findings) -> None:
    """One data set has one fingerprint; seeds differ in their errors."""
    prints: dict[str, set] = {}
    seeds: dict[str, list] = {}
    for recipe, summary in finished:
        prints.setdefault(recipe.dataset, set()).add(str(summary.get("data_fingerprint")))
        seeds.setdefault(recipe.replace(seed=0).digest, []).append((recipe, summary.get("test_error")))
    for dataset, values in sorted(prints.items()):
        if len(values) > 1:
            findings.problems.append(f"{preset}: runs on {dataset} saw different data: {', '.join(sorted(values))}")
    for members in seeds.values():
        errors = [error for _, error in members if error is not None]
        if len(errors) > 1 and stats.summarize(errors).zero_variance:
            model = members[0][0].model
            findings.warnings.append(f"{preset}: all {len(errors)} seeds of {model} have test error {errors[0]:g}")
