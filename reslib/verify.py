"""`reslib verify [RESULTS]`: every record, hash, figure, table and number of a results folder, from the records alone.

Not compared: executed notebooks, which hold pictures of the day they were made.

One line per problem, then a summary; exit code 1 if there is a problem. Warnings (dead nets, seeds without variance,
unfinished runs, drawings by another matplotlib) do not fail.
"""

from __future__ import annotations

import csv
import io
import re
import tempfile
from pathlib import Path

import matplotlib
import numpy as np

from . import artefacts, equivalence_records, independent, results_index, sources
from .cli import checking_arguments, name_given
from .errors import UserError, one_line
from .measured_checks import check_benchmarks, check_equivalence, check_independent, write_pages
from .presets import PRESETS, folders_of_presets, preset_of
from .record_checks import Findings, check_records
from .runs import results_root

REDRAW = "`reslib verify --redraw` draws it from the records"
VERSION_TOLERANCE = 0.05  # share of pixels that may differ between two versions of matplotlib
NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?([MGk]|e[+-]?\d+)?")


def add_arguments(parser) -> None:
    parser.add_argument("folder", nargs="?", type=name_given, default=None, metavar="RESULTS", help="results folder")
    parser.add_argument(
        "--results", type=name_given, default=None, help="the same (default: $RESLIB_RESULTS or results/)"
    )
    parser.add_argument("--preset", default="", help="only this preset (default: all that are there)")
    parser.add_argument("--redraw", action="store_true", help="first draw figures, tables and pages from the records")
    parser.add_argument(
        "--write-index", action="store_true", help="first write README.md there, and the table of the README beside it"
    )


def main(arguments) -> int:
    with checking_arguments():
        if arguments.preset:
            preset_of(arguments.preset)
        results = results_root(arguments.folder or arguments.results)
    folders = preset_folders(results, arguments.preset)
    if arguments.write_index and (written := sources.write(results)):
        print(f"wrote {written}")
    if arguments.redraw:
        for folder in folders:
            print(f"{folder.name}: {len(artefacts.write_all(folder))} files drawn from the records")
        if pages := write_pages(results):
            print(f"{len(pages)} pages of benchmarks and of equivalence written from theirs")
    if arguments.write_index:
        for path in results_index.write_index(results):
            print(f"wrote {path}")
    findings = verify(results, folders)
    for text in findings.problems:
        print(f"PROBLEM {text}")
    for text in findings.warnings:
        print(f"warning {text}")
    for text in findings.notes:
        print(f"note {text}")
    count = len(findings.problems)
    print(
        f"{results}: {findings.records} records and {findings.files} figure and table files checked: "
        f"{count or 'no'} problem{'s' * (count != 1)}, {len(findings.warnings)} warnings"
    )
    return 1 if count else 0


def preset_folders(results: Path, preset: str = "") -> list[Path]:
    """The presets' folders below `results`. Raises UserError when there is none."""
    preset = preset and preset_of(preset).name
    found = [folder for folder in folders_of_presets(results) if preset in ("", folder.name)]
    if not found:
        raise UserError(f"no results in {results}: there is no folder {preset or ', '.join(PRESETS)}")
    return found


def verify(results: Path, folders: list[Path] | None = None) -> Findings:
    """Check everything below `results`; what was found."""
    findings, texts = Findings(), []
    problems, warnings = sources.faults(results)
    findings.problems += problems
    findings.warnings += warnings
    everything = preset_folders(results)
    folders = folders or everything
    for path in sorted(results.iterdir()):
        if path.name.partition("+")[0] in PRESETS and not path.is_dir():
            findings.problems.append(f"{path.name} is no folder of a preset")
    for folder in folders:
        check_records(folder, findings)
        with tempfile.TemporaryDirectory() as temporary:
            check_drawings(folder, Path(temporary), findings)
            texts += table_texts(folder, Path(temporary))
    if folders == everything:
        check_readme(results, texts, findings)
    else:
        findings.notes.append("README.md may show another preset: its numbers are not compared")
    check_index(results, findings)
    check_benchmarks(results, findings)
    check_equivalence(results, findings)
    check_independent(results, findings)
    return findings


def check_drawings(folder: Path, temporary: Path, findings: Findings) -> None:
    """Draw every artefact again and compare with what the folder holds."""
    drawn, complete, absent = {}, True, []
    for name in artefacts.ARTEFACTS:
        try:
            drawn |= {path.relative_to(temporary): path for path in artefacts.write(name, folder, temporary)}
        except Exception as error:  # damaged records fail in many ways; the others are still compared
            findings.problems.append(f"{folder.name}: {name} cannot be drawn from the records: {one_line(error)}")
            complete = False
    for relative, fresh in drawn.items():
        there = folder / relative
        if not there.exists():
            absent.append(str(relative))
            continue
        findings.files += 1
        if fresh.read_bytes() != there.read_bytes():
            compare(f"{folder.name}/{relative}", there, fresh, findings)
    if absent:  # in one line: after a run by hand it is all of them
        names = ", ".join(sorted({str(Path(name).with_suffix("")) for name in absent}))
        findings.warnings.append(f"{folder.name}: drawn from the records but not there: {names}; {REDRAW}")
    known = {Path(kind) / stem for kind, stem in OUTPUTS}
    others = []
    for path in sorted(p for kind in ("figures", "tables") for p in (folder / kind).glob("*.*")):
        relative = path.relative_to(folder)
        if relative in drawn or path.name.startswith("."):
            continue
        if relative.with_suffix("") not in known:
            others.append(path.name)
        elif complete:
            findings.problems.append(f"{folder.name}/{relative} has no records behind it")
    if others:
        findings.notes.append(f"{folder.name}: not drawn from records alone, so not compared: {', '.join(others)}")


OUTPUTS = {  # (folder, stem) of every file that an artefact writes
    *(("figures", stem) for stem in ("figure1", "depth", "figure4", "figure6", "figure7")),
    *(("figures", stem) for stem in ("gradients_start", "gradients_training", "fidelity", "future_work")),
    *(("figures", stem) for stem in artefacts.SPEED_STEMS),
    *(("tables", stem) for stem in ("figure4", "figure4_claims", "figure6", "cifar10", "claims")),
    *(("tables", stem) for stem in ("fidelity", "future_work", "gradients", "gradients_cures")),
}


def compare(name: str, there: Path, fresh: Path, findings: Findings) -> None:
    """Two files whose bytes differ: tables must not; a PNG may in its encoding; another matplotlib may a little."""
    if there.suffix not in (".png", ".pdf"):
        findings.problems.append(f"{name} is not what the records give; {REDRAW}")
        return
    version = drawn_with(there.with_suffix(".pdf"))
    other = version not in ("", matplotlib.__version__)
    by = f" (drawn with matplotlib {version}, here is {matplotlib.__version__})" if other else ""
    if there.suffix == ".pdf":
        if other:
            findings.warnings.append(f"{name} differs in its bytes{by}: its PNG is compared by pixels")
        else:
            findings.problems.append(f"{name} is not what the records give; {REDRAW}")
        return
    share = differing_pixels(there, fresh)
    if share == 0:
        findings.notes.append(f"{name} differs in its bytes, its pixels are those of the records{by}")
    elif other and share <= VERSION_TOLERANCE:
        findings.warnings.append(f"{name}: {share:.2%} of the pixels differ{by}")
    else:
        findings.problems.append(f"{name} is not what the records give: {share:.2%} of the pixels differ{by}; {REDRAW}")


def differing_pixels(first: Path, second: Path) -> float:
    """Share of pixels that differ between two images; 1 when they have different sizes or cannot be read."""
    from PIL import Image

    try:
        with Image.open(first) as a, Image.open(second) as b:
            one, two = np.asarray(a.convert("RGBA")), np.asarray(b.convert("RGBA"))
    except (OSError, SyntaxError, ValueError):
        return 1.0
    return float((one != two).any(axis=2).mean()) if one.shape == two.shape else 1.0


def drawn_with(pdf: Path) -> str:
    """The version of matplotlib that wrote a PDF, or ""."""
    try:
        match = re.search(rb"Matplotlib v([\w.]+)", pdf.read_bytes())
    except OSError:
        return ""
    return match[1].decode() if match else ""


def table_texts(folder: Path, temporary: Path) -> list[str]:
    """The texts of a preset's tables: those drawn from the records, and on disk the ones that are not."""
    fresh = {path.name: path for path in sorted((temporary / "tables").glob("*.*"))}
    known = {stem for kind, stem in OUTPUTS if kind == "tables"}
    others = {p.name: p for p in sorted((folder / "tables").glob("*.*")) if p.stem not in known}
    paths = (others | fresh).values()
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths if path.suffix in (".csv", ".md")]


def check_readme(results: Path, texts: list[str], findings: Findings) -> None:
    """Between the README's markers must stand what the records give.

    A number that is in no table, or in none of that network's rows, is named; so that no row is left out and no two
    numbers or verdicts change places, the whole is compared too.
    """
    readme, before = results.parent / "README.md", len(findings.problems)
    if not readme.exists():
        findings.notes.append(f"no {readme.name} beside the results folder: no numbers to compare there")
        return
    text = readme.read_text(encoding="utf-8", errors="replace")
    block, counts = results_index.marked(text), (text.count(results_index.START), text.count(results_index.END))
    if max(counts) > 1 or (max(counts) == 1 and block is None):
        findings.problems.append(
            f"README.md has {results_index.START} {counts[0]} and {results_index.END} {counts[1]} times: allowed is "
            "one of each, in this order"
        )
        return
    if block is None:
        findings.warnings.append(f"README.md has no {results_index.START} ... {results_index.END}")
        return
    everywhere = {n for text in texts for n in numbers(text)}
    rows = _numbers_by_network(texts)
    for line in block.splitlines():
        name, given = _readme_row(line)
        allowed = rows.get(name, everywhere)
        for number in given:
            if number not in allowed:
                where = f"the row of {name}" if name in rows else "the results table"
                findings.problems.append(f"README.md: {number} in {where} is in no table drawn from the records")
    if len(findings.problems) == before and block.split() != results_index.readme_block(results).split():
        findings.problems.append("README.md: the results are not those of the records; --write-index writes them anew")


def _readme_row(line: str) -> tuple[str, list[str]]:
    """The network of a line of a Markdown table and the numbers beside it; ("", all numbers) for other lines."""
    if not line.lstrip().startswith("|"):
        return "", numbers(line)
    first, *cells = line.strip().strip("|").split("|")
    return first.strip(" *_`"), numbers(" | ".join(cells))


def _numbers_by_network(texts: list[str]) -> dict[str, set[str]]:
    """Per network, the numbers in its rows of all tables that have a column `model`."""
    rows: dict[str, set[str]] = {}
    for text in texts:
        for row in csv.DictReader(io.StringIO(text)):
            if name := row.get("model"):
                cells = " | ".join(str(v) for k, v in row.items() if k != "model")
                rows.setdefault(name, set()).update(numbers(cells))
    return rows


def numbers(text: str) -> list[str]:
    """The numbers of a text as they are written there, without signs of emphasis, percent and brackets."""
    words = (w.strip(".,;:%*_`()[]±≈~<>=\"'") for w in re.split(r"[\s|/]+", text.replace("\u2212", "-")))
    cells = (part for word in words for part in ([word] if NUMBER.fullmatch(word) else word.split(",")))
    return [part.lstrip("+") for part in cells if NUMBER.fullmatch(part)]


def check_index(results: Path, findings: Findings) -> None:
    """The sections of results/README.md must be what the records give."""
    index = results / "README.md"
    if not index.exists():
        return
    text = index.read_text(encoding="utf-8", errors="replace")
    if not text.startswith(results_index.HEAD):
        findings.problems.append("README.md of the results is old in its head; --write-index writes it anew")
    for folder in preset_folders(results):
        if f"## {folder.name}\n" in text and results_index.section(folder) not in text:
            findings.problems.append(f"README.md of the results is old on {folder.name}; --write-index writes it anew")
    for name, there, section in (
        ("the benchmarks", any((results / "bench").glob("[!.]*.json")), results_index.bench_section),
        ("the fast path beside fp32", equivalence_records.paths(results), results_index.equivalence_section),
        ("the plain loop", independent.paths(results), independent.section),
    ):
        if there and section(results) not in text:
            findings.problems.append(f"README.md of the results is old on {name}; --write-index writes it anew")
