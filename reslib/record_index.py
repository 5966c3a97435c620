"""An index of ended records, so that a folder of 10,000 runs is read in a second instead of ten.

`.records.json` in a folder of runs holds what its recipe.json and summary.json files said when they were last read. It
is never the truth: an entry counts only while the sizes and times of both files are those it was read with, the whole
only while its checksum and the code that wrote it are these. Whatever does not count is read from the records again.
Git ignores it; it may be deleted at any time. Runs that have not ended are never in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from .errors import UserError
from .files import whole_file

FILE = ".records.json"
WORTH = 100  # ended records read anew from which the index is written: below that it saves nothing that one would feel
SETTLED = 2.0  # seconds: what changed later may change again within one tick of the file system's clock
ENDED = ("finished", "diverged")
# An index written by other versions of these is built anew.
READERS = ("record_index.py", "records.py", "runs.py", "recipe.py", "names.py")


def rows(runs_dir: Path, read: Callable[[Path], dict]) -> list[dict]:
    """`read(recipe_file)` of every run folder in order of names, taken from the index where that is up to date.

    Rows have an item "path", the run's folder; the others are values of JSON, or tuples of them.
    """
    runs_dir, begun = Path(runs_dir), time.time()
    there = stamps(runs_dir)
    known = _load(runs_dir) if len(there) >= WORTH else {}
    found, entries, anew = [], {}, 0
    for name in sorted(there):
        stamp = there[name]
        entry = known.get(name)
        if entry and stamp and entry[0] == stamp:
            row = entry[1]
            row["path"] = f"{runs_dir}{os.sep}{name}"
        else:
            row = read(runs_dir / name / "recipe.json")
            anew += row.get("status") in ENDED
        if stamp and row.get("status") in ENDED and max(*stamp[:2], *stamp[3:5]) < (begun - SETTLED) * 1e9:
            entries[name] = (stamp, row)
        found.append(row)
    if anew >= WORTH and entries:
        with contextlib.suppress(UserError):  # a folder that one may only read, a full disk: it goes without
            _save(runs_dir, entries)
    return found


def stamps(runs_dir: Path) -> dict[str, list[int] | None]:
    """Per folder with a recipe.json: [modified, changed, size] of it and of summary.json (times in ns); None without
    a summary."""
    found = {}
    try:
        names = os.listdir(runs_dir)
    except OSError:
        return found
    for name in names:
        path = os.path.join(runs_dir, name)
        try:
            recipe = os.stat(os.path.join(path, "recipe.json"))
        except OSError:
            continue
        try:
            summary = os.stat(os.path.join(path, "summary.json"))
        except OSError:
            found[name] = None
            continue
        found[name] = [n for s in (recipe, summary) for n in (s.st_mtime_ns, s.st_ctime_ns, s.st_size)]
    return found


def _save(runs_dir: Path, entries: dict[str, tuple[list[int], dict]]) -> None:
    """Rows with the same keys are written as one table: its header has the keys, and which values are tuples."""
    tables: dict[tuple, list] = {}
    for name, (stamp, row) in entries.items():
        header = tuple((key, isinstance(value, tuple)) for key, value in row.items())
        values = [None if key == "path" else value for key, value in row.items()]
        tables.setdefault(header, []).append([name, stamp, values])
    body = json.dumps(list(tables.items()), separators=(",", ":")).encode()
    head = json.dumps({"reader": reader(), "sha256": hashlib.sha256(body).hexdigest()}).encode()
    with whole_file(runs_dir / FILE, "wb") as file:
        file.write(head + b"\n" + body)


def _load(runs_dir: Path) -> dict[str, tuple[list[int], dict]]:
    """{name: (stamp, row)}; nothing when the file is missing, damaged or was written by other code."""
    try:
        head, _, body = (runs_dir / FILE).read_bytes().partition(b"\n")
        facts = json.loads(head)
        if facts["reader"] != reader() or facts["sha256"] != hashlib.sha256(body).hexdigest():
            return {}
        found = {}
        for header, members in json.loads(body):
            keys, tuples = [key for key, _ in header], [i for i, (_, is_tuple) in enumerate(header) if is_tuple]
            for name, stamp, values in members:
                for i in tuples:
                    values[i] = tuple(values[i])
                found[name] = (stamp, dict(zip(keys, values, strict=True)))
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return {}


@cache
def reader() -> str:
    """A hash of the code that reads records."""
    digest = hashlib.sha256()
    for name in READERS:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:16]
