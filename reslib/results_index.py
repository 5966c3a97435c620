"""results/README.md, made from the records by `reslib verify --write-index`, and the results table of the README."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from . import artefacts, evidence, tables
from .files import write_text
from .notebooks import notebook_names
from .records import load_runs
from .studies import folders_of_presets, preset_of

START, END = "<!-- results:start -->", "<!-- results:end -->"
HEAD = """# Results

Written by `reslib verify --write-index` from the records; `reslib verify` checks them. Each folder is a preset:

- `runs/<network>-<data>-s<seed>-<recipe>/`: a run's record: `recipe.json`, `metrics.csv` (a row per evaluation, errors
  as fractions) and `summary.json` (commit, hardware, data fingerprint). `reslib.records.load_runs` reads them into a
  pandas frame.
- `figures/`, `tables/`: drawn from the records (errors in percent); `measurements/`: what the probes measured.
- `notebooks/`: the executed notebooks.
"""
README_COLUMNS = {  # column of the table in the README: column of tables/cifar10.csv
    "model": "model",
    "parameters": "parameters",
    "paper (%)": "test error (paper, %)",
    "here, last (%)": tables.LAST,
    "n": "n",
    tables.INTERVAL: tables.INTERVAL,
    "against the paper": "against the paper",
}
# Below the paper's scale errors compare with each other alone: the paper's do not stand beside them.
OWN_COLUMNS = {title: column for title, column in README_COLUMNS.items() if "paper" not in title}


def write_index(results: Path) -> list[Path]:
    """Write results/README.md and, where README.md beside `results` has the markers, the table between them."""
    results = Path(results)
    folders = folders_of_presets(results)
    written = [results / "README.md"]
    write_text(written[0], "\n".join([HEAD, *(section(folder) for folder in folders)]))
    readme = results.parent / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if marked(text) is not None:
        before, rest = text.split(START, 1)
        after = rest.split(END, 1)[1]
        write_text(readme, f"{before}{START}\n{results_table_markdown(results)}{END}{after}")
        written.append(readme)
    return written


def marked(text: str) -> str | None:
    """What is between the markers, or None without them."""
    if START not in text or END not in text.split(START, 1)[1]:
        return None
    return text.split(START, 1)[1].split(END, 1)[0]


def results_table_markdown(results: Path) -> str:
    """The networks trained here, at the paper's scale beside its numbers: a table per preset, its evidence below it.

    Presets as they are on disk from the paper's scale down; smoke and quick only where there is no larger one.
    """
    parts = []
    for name in ("paper", "medium", "quick", "smoke"):
        if not (Path(results) / name / "runs").is_dir() or (parts and name in ("quick", "smoke")):
            continue
        runs, _, _ = artefacts.study_frames("cifar10_table", Path(results) / name, curves=False)
        if runs.empty:
            continue
        table = tables.cifar10_table(runs)
        table = table[table["n"] != ""]
        columns = README_COLUMNS if evidence.at_paper_scale(runs) else OWN_COLUMNS
        shown = [(title, column) for title, column in columns.items() if (table[column] != "").any()]
        lines = [[title for title, _ in shown], ["---"] * len(shown)]
        lines += table[[column for _, column in shown]].values.tolist()
        rows = "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
        parts.append(f"{rows}\n\n{tables.caption(runs)}\n")
    return "\n".join(parts) or "No runs yet.\n"


def section(folder: Path) -> str:
    """What one preset's folder holds: its runs, and each file with the command that makes it again."""
    purpose = preset_of(folder.name).purpose
    lines = [
        f"## {folder.name}",
        "",
        f"{purpose[0].upper()}{purpose[1:]}.",
        "",
    ]
    damaged: list[str] = []
    runs = load_runs(folder / "runs", damaged.append)
    lines += [f"- {text.replace(f'{folder.parent}/', '')}" for text in damaged]
    lines += [f"- {text}" for text in _facts(runs)]
    lines += ["", "| files | what | made by |", "| --- | --- | --- |"]
    for kind in ("figures", "tables", "measurements"):
        stems: dict[str, list[str]] = {}
        for path in sorted((folder / kind).glob("[!.]*.*")):
            stems.setdefault(path.stem, []).append(path.suffix[1:])
        for stem, suffixes in stems.items():
            links = ", ".join(f"[{s}]({folder.name}/{kind}/{stem}.{s})" for s in suffixes)
            lines.append(f"| {kind}/{stem}: {links} | {_what(stem)} | `{command(stem, folder.name)}` |")
    for path in sorted((folder / "notebooks").glob("[!.]*.ipynb")):
        name = path.name.split(".")[0]
        link = f"[notebooks/{path.name}]({folder.name}/notebooks/{path.name})"
        lines.append(f"| {link} | executed notebook | `reslib reproduce {name} --preset {folder.name}` |")
    return "\n".join(lines) + "\n"


WHAT = {
    "figure1": "Figure 1: plain nets of 20 and 56 layers on CIFAR-10",
    "depth": "final errors against depth",
    "figure4": "Figure 4: 18 and 34 layers on ImageNet",
    "figure6": "Figure 6: plain and residual nets on CIFAR-10",
    "figure7": "Figure 7: standard deviations of layer responses",
    "figure6_depth": "final errors against depth",
    "gradients": "norms of gradients and activations by layer (section 4.1)",
    "gradients_start": "these norms at the start of training",
    "gradients_training": "these norms during training",
    "fidelity": "what deviations from the protocol cost",
    "future_work": "pre-activation beside the original unit",
    "cifar10": "Table 6: test errors on CIFAR-10",
    "claims": "the paper's claims and whether they hold here",
}


def _what(stem: str) -> str:
    return WHAT.get(stem, stem.replace("_", " "))


def command(stem: str, preset: str) -> str:
    """The command that makes a file of figures/, tables/ or measurements/ again."""
    names = notebook_names()
    near = [name for name in names if stem == name or stem.startswith(f"{name}_")]
    notebook = artefacts.NOTEBOOKS.get(stem) or (max(near, key=len) if near else "")
    return " ".join(filter(None, ["reslib reproduce", notebook, f"--preset {preset}"]))


def _facts(runs: pd.DataFrame) -> list[str]:
    """Runs, networks, seeds, data, hardware, precision, software and commits of the records."""
    if runs.empty:
        return ["no runs"]
    counts = ", ".join(
        f"{n} {status}"
        for status, n in runs["status"]
        .replace({"running": "unfinished", "interrupted": "unfinished"})
        .value_counts()
        .sort_index()
        .items()
    )
    seeds = runs.groupby("model")["seed"].nunique()
    facts = [
        f"runs: {len(runs)} ({counts})",
        f"networks: {', '.join(sorted(runs['model'].unique()))}",
        f"seeds per network: {seeds.min()}" + (f" to {seeds.max()}" if seeds.max() > seeds.min() else ""),
        f"iterations: {', '.join(f'{n:,}' for n in sorted(runs['iterations'].unique()))}",
    ]
    for dataset, group in runs.groupby("dataset"):
        loud = "SYNTHETIC DATA " if str(dataset).startswith("synthetic") else ""
        prints = ", ".join(sorted(group["data_fingerprint"].dropna().astype(str).unique())) or "not read yet"
        facts.append(f"data: {loud}{dataset}, fingerprint {prints}")
    for title, column in (("hardware", "device_name"), ("precision", "precision"), ("torch", "torch")):
        facts.append(f"{title}: {', '.join(sorted(map(str, runs[column].dropna().unique()))) or 'unknown'}")
    commits = sorted({str(c)[:12] for c in runs["commit"].dropna()})
    dirty = " (some with uncommitted changes)" if (runs["dirty"] == True).any() else ""  # noqa: E712 (NaN: unfinished)
    facts.append(f"commits: {', '.join(commits) or 'unknown'}{dirty}")
    hours = runs["seconds"].sum() / 3600
    return [*facts, f"training time, all runs together: {hours:,.2f} hours"]
