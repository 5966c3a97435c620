"""A second opinion by code that shares nothing with reslib, beside reslib's own numbers.

`results/independent/<network>-<iterations>-s<seed>.json`: a run of scripts/plain_training.py, as it wrote it.
`results/independent/evaluations/<run>.json`: the test error of a run's weights by scripts/plain_evaluation.py.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from . import artefacts
from .errors import UserError
from .presets import folders_of_presets
from .runs import read_json
from .stats import summarize, welch

FOLDER = "independent"
ERRORS = {"test": "test_error", "training": "train_error"}  # in the table: column of reslib's runs
SECTION = f"""## {FOLDER}

Networks of section 4.2 trained by [scripts/plain_training.py](../scripts/plain_training.py), a plain loop in fp32 that
imports nothing of reslib, on CIFAR-10's own files, beside reslib's runs of the same iterations. Errors in %; intervals
by Welch.
"""
EVALUATED = """
Test errors (%) of the weights of reslib's runs by [scripts/plain_evaluation.py](../scripts/plain_evaluation.py), plain
functions in fp32, which read CIFAR-10's own files:

| run | by the script | in the record | parameters |
| --- | ---: | ---: | ---: |"""


def paths(results: Path) -> list[Path]:
    """The files of these runs."""
    return sorted((Path(results) / FOLDER).glob("[!.]*.json"))


def read(path: Path) -> dict:
    """A run, its errors as fractions. Raises UserError where it is none, or its ends are not those of its curve."""
    run = read_json(path)
    try:
        last = run["curve"][-1]
        sound = last == [run["iterations"], run["train"], run["test"]] and 0 <= run["test"] <= 1
        network = f"{'resnet' if run['residual'] else 'plain'}{run['depth']}"
        sound &= path.stem == f"{network}-{run['iterations']}-s{run['seed']}"
        device = run.get("device", "processor")  # the first records do not say it
        if device == "processor":
            device = f"{run['threads']} thread{'s' * (run['threads'] != 1)}"
        made = f"torch {run['torch']}, {device}, {run['finished']}"
    except (LookupError, TypeError) as error:
        raise UserError(f"{path} is not a run of plain_training.py: {error!r}") from error
    if not sound:
        raise UserError(f"{path} is damaged: its errors, its name and the last row of its curve do not agree")
    return {"model": network, "train_error": run["train"], "test_error": run["test"], "made": made, **run}


def evaluations(results: Path) -> list[Path]:
    """The files of `plain_evaluation.py`."""
    return sorted((Path(results) / FOLDER / "evaluations").glob("[!.]*.json"))


def read_evaluation(path: Path, results: Path) -> dict:
    """run, error and recorded (fractions), parameters. Raises UserError where the record is not of these weights."""
    found = read_json(path)
    try:
        name, error = found["run"], found["wrong"] / found["images"]
        records = [folder / "runs" / name / "summary.json" for folder in folders_of_presets(results)]
        record = next((read_json(file) for file in records if file.exists()), None)
        if record is None or record["weights_sha256"] != found["weights_sha256"]:
            raise UserError(f"{path}: the weights it tested are not those of a record of {name}")
        own = {"run": name, "error": error, "recorded": record["test_error"], "parameters": found["parameters"]}
    except (LookupError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{path} is not of plain_evaluation.py: {error!r}") from error
    if not (0 <= own["error"] <= 1 and own["parameters"] == record["parameters"] and path.stem == name):
        raise UserError(f"{path} is damaged: its name, error or number of parameters cannot be")
    return own


def _evaluated(results: Path) -> list[str]:
    lines = []
    for path in evaluations(results):
        try:
            found = read_evaluation(path, results)
        except UserError as error:
            lines.append(f"| {path.name} | {error} | | |")
            continue
        link = f"[{found['run']}]({FOLDER}/evaluations/{path.name})"
        errors = " | ".join(f"{100 * found[key]:.2f}" for key in ("error", "recorded"))
        lines.append(f"| {link} | {errors} | {found['parameters']:,} |")
    return [EVALUATED, *lines] if lines else []


def section(results: Path) -> str:
    """Of results/README.md: both kinds of runs side by side, each file with its command, and weights tested again."""
    lines, files, runs = [SECTION], [], []
    for path in paths(results):
        try:
            run = read(path)
        except UserError as error:
            files.append(f"| {path.name} | {error} | | | |")
            continue
        runs.append(run)
        link = f"[{path.stem}]({FOLDER}/{path.name})"
        command = f"python scripts/plain_training.py DATA {path.name} {run['depth']} {run['iterations']} {run['seed']}"
        on = "" if run.get("device", "processor") == "processor" else " cuda"
        errors = " | ".join(f"{100 * run[column]:.2f}" for column in ERRORS.values())
        files.append(f"| {link} | {errors} | {run['made']} | `{command} {int(run['residual'])}{on}` |")
    lines += ["| network | iterations | error | plain loop | reslib | plain loop - reslib (points) | 95% interval |"]
    lines += ["| --- | ---: | --- | ---: | ---: | ---: | --- |"]
    for (model, iterations), group in pd.DataFrame(runs).groupby(["model", "iterations"]) if runs else ():
        ours = _of_reslib(results, model, iterations)
        lines += [_beside(f"{model} | {iterations:,} | {kind}", ours[c], group[c]) for kind, c in ERRORS.items()]
    lines += [
        "",
        f"| run | {' | '.join(ERRORS)} | with | made by |",
        "| --- | ---: | ---: | --- | --- |",
        *files,
        *_evaluated(results),
    ]
    return "\n".join(lines) + "\n"


def _of_reslib(results: Path, model: str, iterations: int) -> pd.DataFrame:
    """reslib's finished runs of the paper's protocol on CIFAR-10, of the same length, of whatever preset."""
    found = [artefacts.study_frames("figure6", folder, curves=False)[0] for folder in folders_of_presets(results)]
    runs = pd.concat([frame for frame in found if len(frame)] or [pd.DataFrame(columns=["model"])])
    if runs.empty:
        return pd.DataFrame(columns=list(ERRORS.values()))
    same = (runs["model"] == model) & (runs["iterations"] == iterations) & (runs["dataset"] == "cifar10")
    return runs[same & (runs["status"] == "finished")]


def _beside(name: str, ours, theirs) -> str:
    cells = [_mean(100 * theirs), _mean(100 * ours)]
    if len(ours):
        found = welch(100 * ours, 100 * theirs)
        cells.append(f"{found.difference:+.2f}")
        cells.append(f"{found.low:+.2f} to {found.high:+.2f}" if found.low == found.low else "single runs")
    return f"| {name} | {' | '.join(cells + [''] * (4 - len(cells)))} |"


def _mean(errors) -> str:
    """mean ± standard deviation (number of seeds)."""
    if not len(errors):
        return "none"
    sample = summarize(errors)
    spread = f" ± {sample.std:.2f}" if sample.n > 1 else ""
    return f"{sample.mean:.2f}{spread} (n = {sample.n})"
