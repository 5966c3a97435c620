"""The commit of a run by the digest of its source, where its checkout named another."""

import json
import subprocess
import sys

import pytest
from fake_records import change_summary, write_run
from training import tiny

from reslib import provenance, sources, verify
from reslib.errors import UserError
from reslib.record_checks import Findings, check_records
from reslib.records import load_runs

COMMIT, DIGEST = "d" * 40, "0123456789ab"


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A clone of this checkout, whose package is that of its newest commit."""
    if provenance.is_shallow():
        pytest.skip("this is no checkout with its history")
    here = tmp_path_factory.mktemp("history") / "clone"
    subprocess.run(["git", "clone", "-q", provenance.PACKAGE.parent, here], check=True)
    return here


def test_the_digest_of_a_commit_is_that_of_its_files(history):
    code = "from reslib.provenance import source; print(source())"
    done = subprocess.run([sys.executable, "-c", code], cwd=history, capture_output=True, text=True, check=True)
    digest = done.stdout.strip()
    assert sources.digest_of(provenance.git("rev-parse", "HEAD")) == digest
    found = sources.find({digest, DIGEST})
    assert found.keys() == {digest} and sources.digest_of(found[digest]) == digest


@pytest.fixture
def results(tmp_path):
    """A finished run of a checkout with uncommitted changes, in two sessions."""
    session = {"source": DIGEST, "commit": "c" * 40, "dirty": True}
    other = {"source": "other", "commit": "e" * 40, "dirty": False}
    run = write_run(tmp_path / "quick" / "runs", tiny(), dirty=True, source=DIGEST, sessions=[session, other])
    return tmp_path, run


def test_records_name_the_commit_of_their_source(results):
    folder, _ = results
    (before,) = load_runs(folder / "quick" / "runs").to_dict("records")
    assert before["dirty"] and before["commit"] == "c" * 40
    (folder / sources.FILE).write_text(json.dumps({DIGEST: COMMIT}))
    (after,) = load_runs(folder / "quick" / "runs").to_dict("records")
    assert after["commit"] == COMMIT and not after["dirty"]
    assert [(s["commit"], s["dirty"]) for s in after["sessions"]] == [(COMMIT, False), ("e" * 40, False)]


def test_a_clean_record_keeps_its_commit(results):
    folder, run = results
    (folder / sources.FILE).write_text(json.dumps({DIGEST: COMMIT}))
    change_summary(run, dirty=False)
    assert load_runs(folder / "quick" / "runs")["commit"].item() == "c" * 40


def warnings_of(folder):
    findings = Findings()
    check_records(folder / "quick", findings)
    return " ".join(findings.warnings)


def test_verify_warns_until_the_commit_is_known(results):
    folder, _ = results
    assert "uncommitted changes" in warnings_of(folder)
    (folder / sources.FILE).write_text(json.dumps({DIGEST: COMMIT}))
    assert "uncommitted changes" not in warnings_of(folder)


def test_the_file_is_written_from_history_and_forgets_what_no_run_needs(results, monkeypatch):
    folder, run = results
    monkeypatch.setattr(provenance, "within_checkout", lambda path: True)
    monkeypatch.setattr(sources, "find", lambda digests: dict.fromkeys(digests & {DIGEST}, COMMIT))
    assert sources.write(folder) == folder / sources.FILE and sources.known(folder) == {DIGEST: COMMIT}
    assert sources.write(folder) is None  # nothing new
    (folder / sources.FILE).write_text(json.dumps({DIGEST: COMMIT, "f" * 12: COMMIT}))
    sources.write(folder)
    assert sources.known(folder) == {DIGEST: COMMIT}
    change_summary(run, source="unknown", sessions=[])
    assert sources.write(folder) is None and not (folder / sources.FILE).exists()


def test_an_entry_that_is_not_true_is_a_fault(history, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "within_checkout", lambda path: True)
    head = provenance.git("rev-parse", "HEAD")
    digest = sources.digest_of(head)
    (tmp_path / sources.FILE).write_text(json.dumps({digest: head}))
    assert sources.faults(tmp_path) == ([], [])
    (tmp_path / sources.FILE).write_text(json.dumps({DIGEST: head, digest: "0" * 40}))
    (wrong,), (unknown,) = sources.faults(tmp_path)
    assert f"source {DIGEST} is not that of commit {head[:12]}, which has {digest}" in wrong
    assert "unknown to this checkout" in unknown  # as of a commit that a rebase took away


def test_what_cannot_be_proved_is_said(results, monkeypatch):
    folder, _ = results
    (folder / sources.FILE).write_text(json.dumps({DIGEST: COMMIT}))
    assert sources.faults(folder)[0] == [] and "no history" in sources.faults(folder)[1][0]
    assert verify.verify(folder).warnings[0] == sources.faults(folder)[1][0]


def test_a_file_of_another_shape_is_named(tmp_path):
    for commit in (7, "deadbeef"):
        (tmp_path / sources.FILE).write_text(json.dumps({DIGEST: commit}))
        with pytest.raises(UserError, match="sources.json"):
            sources.known(tmp_path)
        assert "sources.json" in sources.faults(tmp_path)[0][0]
