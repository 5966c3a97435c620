"""What `reslib verify` asks of measurements beside the presets: benchmarks, equivalence, runs of the plain loop."""

from __future__ import annotations

import contextlib
from pathlib import Path

from . import equivalence_records, independent
from .bench.report import markdown
from .errors import UserError, one_line
from .files import write_text
from .record_checks import Findings, check_records
from .runs import read_json


def write_pages(results: Path) -> list[Path]:
    """Write the page of each benchmark and each equivalence record; what was written. Damaged ones `verify` names."""
    written = []
    kinds = (
        (sorted((results / "bench").glob("[!.]*.json")), read_json, markdown),
        (equivalence_records.paths(results), equivalence_records.read_record, equivalence_records.markdown),
    )
    for found, read, page in kinds:
        for path in found:
            with contextlib.suppress(UserError, LookupError, TypeError, ValueError, AttributeError):
                write_text(path.with_suffix(".md"), page(read(path)))
                written.append(path.with_suffix(".md"))
    return written


def check_benchmarks(results: Path, findings: Findings) -> None:
    """The page of each record of `reslib bench` must be what the record gives."""
    for record in sorted((results / "bench").glob("[!.]*.json")):
        page = record.with_suffix(".md")
        if not page.exists():
            findings.warnings.append(f"bench/{page.name} is not there")
            continue
        findings.files += 1
        try:
            fresh = markdown(read_json(record))
        except (UserError, LookupError, TypeError, ValueError) as error:
            findings.problems.append(f"bench/{record.name} cannot be read: {one_line(error)}")
            continue
        if page.read_text(encoding="utf-8", errors="replace") != fresh:
            findings.problems.append(f"bench/{page.name} is not what bench/{record.name} gives")


def check_equivalence(results: Path, findings: Findings) -> None:
    """Each record of `reslib equivalence` must be what its runs give, and its page what the record gives."""
    presets = sorted((results / equivalence_records.FOLDER).glob("[!.]*/"))
    apart = [folder.parent for preset in presets for folder in sorted(preset.glob("[!.]*/runs"))]
    for folder in (*presets, *apart):
        check_records(folder, findings, folder.relative_to(results).as_posix())
    for path in equivalence_records.paths(results):
        where, page = path.relative_to(results).as_posix(), path.with_suffix(".md")
        findings.files += 1
        try:
            record = equivalence_records.read_record(path)
            if not equivalence_records.alike(equivalence_records.rebuilt(record, results), record):
                findings.problems.append(f"{where} is not what the runs it names give")
            elif not page.exists() or page.read_text(encoding="utf-8") != equivalence_records.markdown(record):
                findings.problems.append(f"{where}: {page.name} is not what the record gives")
        except (UserError, LookupError, TypeError, ValueError, AttributeError) as error:
            findings.problems.append(f"{where} cannot be believed: {one_line(error)}")


def check_independent(results: Path, findings: Findings) -> None:
    """Each run of scripts/plain_training.py must agree with its curve, each evaluation be of a record's weights."""
    checks = [(path, independent.read) for path in independent.paths(results)]
    checks += [
        (path, lambda path: independent.read_evaluation(path, results)) for path in independent.evaluations(results)
    ]
    for path, read in checks:
        findings.files += 1
        try:
            read(path)
        except UserError as error:
            findings.problems.append(one_line(error))
