"""results/README.md, made from the records by `reslib verify --write-index`, and the results in the README."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from . import artefacts, claims, equivalence_records, evidence, independent, sources, tables
from .bench.records import THREADS, hardware
from .errors import UserError
from .files import write_text
from .notebooks import cells_of, notebook_names
from .presets import folders_of_presets, preset_of
from .records import load_runs
from .runs import read_json

START, END = "<!-- results:start -->", "<!-- results:end -->"
MADE = "Written by `reslib verify --write-index` from the records"
HEAD = f"""# Results

{MADE}; `reslib verify` checks them. Each folder is a preset:

- `runs/<network>-<data>-s<seed>-<recipe>/`: a run's record: `recipe.json`, `metrics.csv` (a row per evaluation, errors
  as fractions) and `summary.json` (commit, hardware, data fingerprint). `reslib.records.load_runs` reads them into a
  pandas frame.
- `figures/`, `tables/`: drawn from the records (errors in percent); `measurements/`: what the probes measured.
- `notebooks/`: the executed notebooks. Where there is none of a figure or table, it was drawn from the records by
  `reslib verify --redraw`, which gives the same file as the command beside it.

The commit shown is the one whose source has the digest in the record. Where the record itself names another commit,
with uncommitted changes, `sources.json` holds the match.

Beside them `bench/` holds the records of `reslib bench`, `equivalence/` those of `reslib equivalence` with their runs,
`independent/` runs of a training loop that shares no code with reslib.
"""
TABLE6_COLUMNS = {  # column of the README: column of tables/cifar10.csv
    "model": "model",
    "parameters": "parameters",
    "paper (%)": tables.PAPER,
    "here, last (%)": tables.LAST,
    "n": "n",
    tables.INTERVAL: tables.INTERVAL,
    "here, best evaluation on the test set (%)": tables.BEST_ON_TEST,
    tables.PEERS: tables.PEERS,
    "against the paper": "against the paper",
}
DEPTH_COLUMNS = ("model", "parameters", tables.TRAINING, tables.LAST, tables.VALIDATION, tables.INTERVAL, "n")


def write_index(results: Path) -> list[Path]:
    """Write results/README.md and, where README.md beside `results` has the markers, what was trained between them."""
    results = Path(results)
    folders = folders_of_presets(results)
    written = [results / "README.md"]
    if written[0].exists() and MADE not in written[0].read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{written[0]} is not an index of results: move it away, or write the index elsewhere")
    parts = [HEAD, *(section(folder) for folder in folders)]
    if any((results / "bench").glob("[!.]*.json")):
        parts.append(bench_section(results))
    if equivalence_records.paths(results):
        parts.append(equivalence_section(results))
    if independent.paths(results):
        parts.append(independent.section(results))
    write_text(written[0], "\n".join(parts))
    readme = results.parent / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if marked(text) is not None:
        before, rest = text.split(START, 1)
        after = rest.split(END, 1)[1]
        write_text(readme, f"{before}{START}\n{readme_block(results)}{END}{after}")
        written.append(readme)
    return written


def marked(text: str) -> str | None:
    """What is between the markers, or None without them."""
    if START not in text or END not in text.split(START, 1)[1]:
        return None
    return text.split(START, 1)[1].split(END, 1)[0]


def readme_block(results: Path) -> str:
    """What was trained here, per preset from the paper's scale down: errors by depth, Table 6, claims judged on them.

    smoke and quick only where there is no larger preset.
    """
    parts = []
    for name in ("paper", "medium", "quick", "smoke"):
        folder = Path(results) / name
        if not (folder / "runs").is_dir() or (parts and name in ("quick", "smoke")):
            continue
        for study, title in (("figure6", "CIFAR-10 by depth"), ("figure4", "ImageNet by depth")):
            runs, _, _ = artefacts.study_frames(study, folder, curves=False)
            if len(table := tables.depth_table(runs)):
                columns = {column: column for column in DEPTH_COLUMNS if column in table}
                title += " (a subset)" * (study == "figure4" and "imagenet" not in set(runs["dataset"]))
                parts.append(_entry(f"`{name}`: {title}", table, columns, tables.depth_caption(runs)))
        runs, _, dataset = artefacts.study_frames("cifar10_table", folder, curves=False)
        parts += _table6(name, runs)
        boards = {"claims": artefacts.claims_table(folder, dataset)} if len(runs) else {}
        runs, _, dataset = artefacts.study_frames("figure4", folder, curves=False)
        if len(runs):
            boards["figure4_claims"] = artefacts.imagenet_claims_table(folder, dataset)
        parts += _verdicts(name, boards, f"{Path(results).name}/{name}/tables")
    return "\n".join(parts) or "No runs yet.\n"


def _entry(title: str, table: pd.DataFrame, columns: dict[str, str], caption: str) -> str:
    return f"### {title}\n\n{_markdown(table, columns)}\n\n{caption}\n"


def _table6(preset: str, runs: pd.DataFrame) -> list[str]:
    """Table 6 with its caption; below the paper's scale what the table by depth does not have.

    There the paper's errors do not stand beside ours.
    """
    if runs.empty:
        return []
    whole = evidence.at_paper_scale(runs)
    if not whole:
        runs = runs[~runs["family"].isin(("plain", "resnet"))]
    table = tables.cifar10_table(runs)
    table = table[table["n"] != ""]
    if table.empty:
        return []
    columns = {title: column for title, column in TABLE6_COLUMNS.items() if whole or "paper" not in title}
    title = f"`{preset}`: " + ("Table 6" if whole else "the other networks of Table 6")
    return [_entry(title, table, columns, tables.caption(runs))]


def _verdicts(preset: str, boards: dict[str, pd.DataFrame], folder: str) -> list[str]:
    """The claims of these boards that could be judged, a list for each verdict; folder: of their tables."""
    if not boards:
        return []
    links = {"claims": "CIFAR-10", "figure4_claims": "ImageNet"}
    rows = pd.concat([board.assign(of=links[stem]) for stem, board in boards.items()])
    lines = [f"### `{preset}`: the paper's claims", ""]
    for verdict, title in ((claims.HOLDS, "Claims that hold"), (claims.FAILS, "Claims that do not hold")):
        found = rows[rows["verdict"] == verdict]
        if len(found):
            single = found["evidence"].str.contains(claims.ONE_SEED).map({True: " (with single seeds)", False: ""})
            lines += [f"{title} at this scale:", "", *("- " + found["of"] + ": " + found["claim"] + single), ""]
    where = ", ".join(f"[{links[stem]}]({folder}/{stem}.md)" for stem in boards)
    lines.append(f"Every claim with its criterion, its evidence and its verdict, undecided ones too: {where}.")
    return ["\n".join(lines) + "\n"]


def _markdown(table: pd.DataFrame, columns: dict[str, str]) -> str:
    """The columns of a table of text that are not empty, as Markdown."""
    shown = [(title, column) for title, column in columns.items() if (table[column] != "").any()]
    lines = [[title for title, _ in shown], ["---"] * len(shown)]
    lines += table[[column for _, column in shown]].values.tolist()
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


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
    if len(runs):
        lines += ["", *_runs(runs, folder.name)]
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
        untrained = " --no-train" if _drew_records(path) else ""
        made = f"reslib reproduce {name}{untrained} --preset {folder.name}"
        lines.append(f"| {link} | executed notebook | `{made}` |")
    return "\n".join(lines) + "\n"


def _drew_records(notebook: Path) -> bool:
    """Whether an executed notebook was given train = False."""
    given = [c for c in cells_of(notebook) if "injected-parameters" in c["metadata"].get("tags", [])]
    return any("train = False\n" in "".join(c["source"]) + "\n" for c in given)


WHAT = {
    "figure1": "Figure 1: plain nets of 20 and 56 layers on CIFAR-10",
    "depth": "final errors of plain and residual nets against their depth",
    "figure4": "Figure 4: 18 and 34 layers on ImageNet; as a table, their final errors",
    "figure6": "Figure 6: plain and residual nets on CIFAR-10; as a table, their final errors",
    "figure7": "Figure 7: standard deviations of layer responses",
    "gradients": "norms of gradients and activations by layer (section 4.1)",
    "gradients_start": "these norms at the start of training",
    "gradients_training": "these norms during training",
    "gradients_cures": "what batch norm and each initialisation cure",
    "fidelity": "what deviations from the protocol cost",
    "future_work": "pre-activation beside the original unit",
    "speed": "reslib beside the usual loop, and where a step's time goes",
    "speed_scaling": "speed and memory against depth, batch size and width",
    "speed_seeds": "what several seeds at once cost",
    "speed_loading": "the ImageNet loader beside the network",
    "speed_equivalence": "final errors of the fast path beside eager fp32",
    "cifar10": "Table 6: test errors on CIFAR-10",
    "claims": "the paper's claims about CIFAR-10 and whether they hold here",
    "figure4_claims": "the paper's claims about ImageNet and whether they hold here",
}


def _what(stem: str) -> str:
    if (head := stem.rpartition("_")[0]) in WHAT and stem.rpartition("_")[2].isdigit():
        return f"{WHAT[head]}: another device"
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
    facts.append(f"hardware: {', '.join(evidence.devices(runs)) or 'unknown'}")
    for title, column in (("precision", "precision"), ("torch", "torch")):
        facts.append(f"{title}: {', '.join(sorted(map(str, runs[column].dropna().unique()))) or 'unknown'}")
    named = [[s.get("commit") for s in run] for run in runs.get("sessions", ()) if isinstance(run, list)]
    commits = sorted({str(c)[:12] for c in [*runs["commit"].dropna(), *sum(named, [])] if c})
    dirty = " (some with uncommitted changes)" if (runs["dirty"] == True).any() else ""  # noqa: E712 (NaN: unfinished)
    facts.append(f"commits: {', '.join(commits) or 'unknown'}{dirty}")
    hours = runs["seconds"].sum() / 3600
    return [*facts, f"training time, all runs together: {hours:,.2f} hours"]


def _runs(runs: pd.DataFrame, folder: str) -> list[str]:
    """A line per run: where its record is, and what stands behind its error."""
    lines = [
        "| run | error, last (%) | unlike the preset | commit | hardware | step | finished |",
        "| --- | ---: | --- | --- | --- | --- | --- |",
    ]
    unlike = evidence.settings(runs)  # runs of one network and seed differ in these alone
    for run in evidence.with_hardware(runs).assign(unlike=unlike).sort_values("run").to_dict("records"):
        run = {key: value for key, value in run.items() if value == value}  # an unfinished one has little of it
        error = f"{100 * run['test_error']:.2f}" if run["status"] == "finished" else run["status"]
        sessions = run.get("sessions", [])
        commits = dict.fromkeys(str(s["commit"])[:12] for s in sessions or [run] if s.get("commit"))
        commit = f"{', '.join(commits)}{', uncommitted changes' * bool(run.get('dirty'))}"
        step = "; ".join(filter(None, dict.fromkeys([run.get("precision"), *(s.get("step") for s in sessions)])))
        link = f"[{run['run']}]({folder}/runs/{run['run']})"
        day = (run.get("finished") or "")[:10]
        cells = [link, error, run["unlike"], commit, run.get("device_name") or "", step, day]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


BENCH = "## bench\n"


def bench_section(results: Path) -> str:
    """The records of `reslib bench`: on what each was measured, and on how quiet a machine."""
    lines = [BENCH, "Speed, measured by `reslib bench`; drawn by the notebook `speed`.", ""]
    lines += ["| record | hardware | commit | load at the start | measured |", "| --- | --- | --- | ---: | --- |"]
    commits = sources.known(results)
    for path in sorted((Path(results) / "bench").glob("[!.]*.json")):
        link = f"[{path.stem}](bench/{path.with_suffix('.md').name})"
        try:
            record = read_json(path)
            env = sources.resolved(record["environment"], commits)
            commit = f"{env['commit'][:12]}{', uncommitted changes' * bool(env['dirty'])}"
            threads = "".join(THREADS.findall(env["device_name"]))
            cells = [f"{hardware(record)}{threads}", commit, record["load"], record["date"][:10]]
        except (UserError, LookupError, TypeError):
            cells = ["damaged", "", "", ""]
        lines.append(f"| {' | '.join(map(str, [link, *cells]))} |")
    return "\n".join(lines) + "\n"


EQUIVALENCE = "## equivalence\n"


def equivalence_section(results: Path) -> str:
    """The records of `reslib equivalence`: each with its difference, its interval and the command that makes it."""
    lines = [EQUIVALENCE, "The fast path beside eager fp32 steps, the same seeds trained both ways.", ""]
    lines += [
        "| record | fast - fp32 (points) | 95% interval | seeds | verdict | made by |",
        "| --- | ---: | --- | ---: | --- | --- |",
    ]
    for path in equivalence_records.paths(results):
        link = f"[{path.parent.name}: {path.stem}]({path.relative_to(results).with_suffix('.md').as_posix()})"
        try:
            record = equivalence_records.read_record(path)
            seeds = len(record["sides"]["fast"]["errors"])
            shown = [f"{record[key]:+.2f}" if key in record else "" for key in ("difference", "low", "high")]
            cells = [shown[0], " to ".join(filter(None, shown[1:])), seeds, record["verdict"], f"`{record['command']}`"]
        except (UserError, LookupError, TypeError, ValueError):
            cells = ["", "", "", "damaged", ""]
        lines.append(f"| {' | '.join(map(str, [link, *cells]))} |")
    return "\n".join(lines) + "\n"
