"""The commit of a run whose checkout could not name it: `results/sources.json`, digest of the source -> commit.

A run that was trained from a copy of a checkout with another's `.git`, or before its code was committed, notes a commit
"with uncommitted changes". The digest over the package's files, which every run notes too (provenance.source), says
whose code it was: `reslib verify --write-index` looks it up in git's history, and `reslib verify` proves it again.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

from .errors import UserError
from .files import CODE, write_json
from .runs import read_json

FILE = "sources.json"
COMMIT = re.compile("[0-9a-f]{40}")


def known(results: Path) -> dict[str, str]:
    """Digest -> commit, as the file says; empty without one. Raises UserError for one of another shape."""
    file = Path(results) / FILE
    if not file.exists():
        return {}
    found = read_json(file)
    if not all(isinstance(commit, str) and COMMIT.fullmatch(commit) for commit in found.values()):
        raise UserError(f"{file}: expected are digests of sources, each with the 40 digits of a commit")
    return found


def beside(run: Path) -> dict[str, str]:
    """`known` of the results that a run's folder lies in; empty where it was taken out of them."""
    return known(run.parents[2]) if run.parent.name == "runs" and len(run.parents) > 2 else {}


def resolved(record: dict, commits: dict[str, str]) -> dict:
    """A run's summary or session, or the environment of a benchmark, with the commit of its source in place of one
    "with uncommitted changes".
    """
    changed = dict(record)
    if isinstance(record.get("sessions"), list):
        changed["sessions"] = [resolved(session, commits) for session in record["sessions"]]
    if record.get("dirty") and record.get("source") in commits:
        changed |= {"commit": commits[record["source"]], "dirty": False}
    return changed


def write(results: Path) -> Path | None:
    """Look up the sources of the records with uncommitted changes; the file, None where nothing changes."""
    from .provenance import within_checkout  # it imports PyTorch, which readers of records do not wait for

    commits = known(results)
    wanted = set()
    for file in [*Path(results).glob("*/runs/*/summary.json"), *Path(results).glob("bench/[!.]*.json")]:
        try:
            record = read_json(file)
        except UserError:
            continue  # verify names it
        parts = [record, record.get("environment"), *(record.get("sessions") or [])]
        parts = [part for part in parts if isinstance(part, dict)]
        wanted |= {str(part["source"]) for part in parts if part.get("dirty") and part.get("source")}
    found = find(wanted - set(commits)) if wanted - set(commits) and within_checkout(results) else {}
    kept = {digest: commit for digest, commit in sorted((commits | found).items()) if digest in wanted}
    if kept == commits:
        return None
    if not kept:
        (Path(results) / FILE).unlink()
        return None
    write_json(Path(results) / FILE, kept)
    return Path(results) / FILE


def find(digests: set[str]) -> dict[str, str]:
    """The newest commits of this history whose package has these digests, as far as they are found."""
    from .provenance import git

    found, contents = {}, {}
    try:
        for commit in git("rev-list", "HEAD").splitlines():
            if (digest := digest_of(commit, contents)) in digests:
                found.setdefault(digest, commit)
            if found.keys() == digests:
                break
    except (OSError, subprocess.SubprocessError):
        pass
    return found


def digest_of(commit: str, contents: dict[str, bytes] | None = None) -> str:
    """provenance.source of the package as it was at a commit. contents: blobs read so far."""
    from .provenance import git

    contents = {} if contents is None else contents
    listed = [line.split("\t") for line in git("ls-tree", "-r", commit).splitlines()]  # names below the package
    files = {Path(name): head.split()[2] for head, name in listed if name.endswith(CODE)}
    digest = hashlib.sha256()
    for file, blob in sorted(files.items()):
        if blob not in contents:
            contents[blob] = git("cat-file", "blob", blob, strip=False, text=False)
        digest.update(file.as_posix().encode() + b"\0" + contents[blob] + b"\0")
    return digest.hexdigest()[:12]


def faults(results: Path) -> tuple[list[str], list[str]]:
    """(problems, warnings): entries whose commit has other code, and those that cannot be proved here."""
    from .provenance import is_shallow, within_checkout

    try:
        commits = known(results)
    except UserError as error:
        return [str(error)], []
    if not commits:
        return [], []
    if not within_checkout(results) or is_shallow():
        return [], [f"{FILE} is taken as it stands: no history is here that would prove it"]
    problems, warnings = [], []
    for digest, commit in commits.items():
        try:
            theirs = digest_of(commit)
        except (OSError, subprocess.SubprocessError):
            warnings.append(f"{FILE}: commit {commit[:12]} of source {digest} is unknown to this checkout")
            continue
        if theirs != digest:
            problems.append(f"{FILE}: source {digest} is not that of commit {commit[:12]}, which has {theirs}")
    return problems, warnings
