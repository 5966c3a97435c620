"""The index of records: the same frames with it and without it, whatever happens to it or to the records."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from report_records import write_run

from reslib import record_index, records
from reslib.recipe import Recipe
from reslib.records import load_runs

ROOT = Path(__file__).resolve().parent.parent
SEEDS = 6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Ended records of two shapes and an interrupted one; an index is written from two records on, however new."""
    monkeypatch.setattr(record_index, "WORTH", 2)
    monkeypatch.setattr(record_index, "SETTLED", -3600.0)
    path = tmp_path / "quick" / "runs"
    for seed in range(SEEDS):
        write_run(path, Recipe("resnet20", seed=seed, lr_drops=(0.25, 0.5)), test_error=0.1 + seed / 100)
    write_run(path, Recipe("plain20"), "diverged", None, something_new={"a": [1, 2.5, None]})
    write_run(path, Recipe("plain56"), "interrupted")
    return path


@pytest.fixture
def reads(monkeypatch):
    """The names of the records that are really read."""
    names, record = [], records._record
    monkeypatch.setattr(records, "_record", lambda file: names.append(file.parent.name) or record(file))
    return names


def without_index(folder) -> pd.DataFrame:
    (folder / record_index.FILE).unlink(missing_ok=True)
    frame = load_runs(folder)
    (folder / record_index.FILE).unlink(missing_ok=True)
    return frame


def test_the_same_frame_from_the_index(folder, reads):
    expected = without_index(folder)
    assert len(expected) == SEEDS + 2
    load_runs(folder)
    assert (folder / record_index.FILE).exists()
    reads.clear()
    found = load_runs(folder)
    assert reads == [Recipe("plain56").run_name]  # what has not ended is looked at every time
    pd.testing.assert_frame_equal(found, expected)
    assert found.lr_drops.map(type).eq(tuple).all() and found.sessions.dropna().map(type).eq(list).all()


def set_error(path, value):
    file = path / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"test_error": value}))


def test_changed_new_and_lost_records_are_seen(folder, reads):
    load_runs(folder)
    names = [Recipe("resnet20", seed=s, lr_drops=(0.25, 0.5)).run_name for s in range(SEEDS)]
    before = os.stat(folder / names[1] / "summary.json")
    set_error(folder / names[1], 0.99)  # as many bytes as 0.11, and the old time
    os.utime(folder / names[1] / "summary.json", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(folder / names[1] / "summary.json").st_size == before.st_size
    shutil.rmtree(folder / names[2])
    write_run(folder, Recipe("resnet56"))
    shutil.rmtree(folder / Recipe("plain56").run_name)
    write_run(folder, Recipe("plain56"), test_error=0.7)
    reads.clear()
    found = load_runs(folder).set_index("run").test_error
    assert sorted(reads) == sorted([names[1], Recipe("resnet56").run_name, Recipe("plain56").run_name])
    assert found[names[1]] == 0.99 and found[Recipe("plain56").run_name] == 0.7 and names[2] not in found
    assert len(found) == SEEDS + 2
    pd.testing.assert_frame_equal(load_runs(folder), without_index(folder))


def truncated(data):
    return data[:-40]


def flipped(data):
    """A test error changed where nobody would notice."""
    assert data.count(b"0.13,") == 1
    return data.replace(b"0.13,", b"0.03,")


def of_other_code(data):
    return data.replace(record_index.reader().encode(), b"0" * 16)


def of_other_form(data):
    return data.replace(b"sha256", b"sha255")


@pytest.mark.parametrize(
    "damage", [truncated, flipped, of_other_code, of_other_form, lambda data: b"", lambda d: b"[]"]
)
def test_a_damaged_or_old_index_is_built_anew(folder, reads, damage):
    expected = without_index(folder)
    load_runs(folder)
    index = folder / record_index.FILE
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    reads.clear()
    pd.testing.assert_frame_equal(load_runs(folder), expected)
    assert len(reads) == SEEDS + 2 and index.read_bytes() == whole


def test_what_changed_just_now_is_not_trusted(folder, reads, monkeypatch):
    """Two writes of one size within a tick of the clock look the same from outside."""
    monkeypatch.setattr(record_index, "SETTLED", 3600.0)
    load_runs(folder)
    assert not (folder / record_index.FILE).exists()
    reads.clear()
    load_runs(folder)
    assert len(reads) == SEEDS + 2


def test_a_folder_that_cannot_be_written_is_read_all_the_same(folder):
    expected = without_index(folder)
    (folder / record_index.FILE).mkdir()  # nothing can take its name
    pd.testing.assert_frame_equal(load_runs(folder), expected)
    assert [p.name for p in folder.glob(".*")] == [record_index.FILE]


def test_moved_records_have_their_new_path(folder, reads):
    load_runs(folder)
    moved = folder.with_name("moved")
    folder.rename(moved)
    reads.clear()
    found = load_runs(moved)
    assert reads == [Recipe("plain56").run_name]
    assert all(Path(row.path) == moved / row.run and Path(row.path).is_dir() for row in found.itertuples())


def test_few_records_need_no_index(folder, monkeypatch):
    monkeypatch.setattr(record_index, "WORTH", 100)
    assert len(load_runs(folder)) == SEEDS + 2
    assert not (folder / record_index.FILE).exists()
    assert load_runs(folder / "nothing").empty


def test_git_ignores_it():
    assert record_index.FILE in (ROOT / ".gitignore").read_text().splitlines()
