"""A clock that goes backwards, of the machine and of its file system: nothing depends on it but dates in records."""

import csv
import datetime
import io
import itertools
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_records import change_summary
from imagenet_sets import encoded, picture, write_parquet
from training import QUIET, rows_of, silent, stop_after, tiny, weights_of

from reslib import files, provenance, record_index
from reslib.cli import main
from reslib.data.array_cache import cached
from reslib.records import load_runs
from reslib.runs import Run
from reslib.train import Interrupted, train

PACKAGE = Path(files.__file__).parent
CLOCKS = {  # what tells the time of day, and who looks at it: each has a part of the tests here, or is named beside
    r"time\.time(_ns)?\b|localtime|gmtime|strftime": {"record_index.py"},
    r"datetime\.now|datetime\.utcnow|datetime\.today": {"provenance.py"},
    r"st_mtime|st_ctime|getmtime|getctime": {
        "files.py", "record_index.py", "data/array_cache.py", "data/parquet.py",
        "notebooks.py",  # test_notebook_runner.py: what a killed batch has done
    },
}  # fmt: skip


def test_nothing_else_looks_at_a_clock_that_can_be_set():
    found = {pattern: set() for pattern in CLOCKS}
    for path, pattern in itertools.product(PACKAGE.rglob("*.py"), CLOCKS):
        if re.search(pattern, path.read_text()):
            found[pattern].add(path.relative_to(PACKAGE).as_posix())
    assert found == CLOCKS


@pytest.fixture
def backwards(monkeypatch):
    """Every look at the clock is 1000 seconds before the last one, and so is every file that is written."""
    ticks = itertools.count(int(time.time()), -1000)

    class Date(datetime.datetime):
        @classmethod
        def now(cls, zone=None):
            return cls.fromtimestamp(next(ticks), zone)

    replace = os.replace

    def replaced(source, destination):
        os.utime(source, (tick := next(ticks), tick))
        replace(source, destination)

    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    monkeypatch.setattr(provenance, "datetime", SimpleNamespace(datetime=Date, UTC=datetime.UTC))
    monkeypatch.setattr(os, "replace", replaced)
    return lambda path: os.utime(path, (tick := next(ticks), tick))


def test_a_run_that_is_interrupted_and_goes_on(tmp_path, backwards, monkeypatch, capsys):
    folder, whole, recipe = tmp_path / "smoke" / "runs", tmp_path / "whole", tiny()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 5)
        train(recipe, folder, execution=QUIET, say=silent)
    summary = train(recipe, folder, execution=QUIET, say=silent)
    train(recipe, whole, execution=QUIET, say=silent)
    assert summary["started"] > summary["finished"] and len(summary["sessions"]) == 2
    assert summary["seconds"] > 0 and summary["images_per_second"] > 0
    assert rows_of(folder, recipe) == rows_of(whole, recipe) and weights_of(folder, recipe) == weights_of(whole, recipe)
    seconds = [
        float(row["seconds"]) for row in csv.DictReader(io.StringIO(Run(folder, recipe).metrics_file.read_text()))
    ]
    assert seconds == sorted(seconds) and min(seconds) > 0
    for command in (["verify", str(tmp_path)], ["report", "--results", str(tmp_path)]):
        assert main(command) == 0, capsys.readouterr()


def test_the_index_of_records_is_never_older_than_they_are(tmp_path, backwards, monkeypatch):
    monkeypatch.setattr(record_index, "WORTH", 1)
    run = Run(tmp_path, tiny(iterations=3))
    train(run.recipe, tmp_path, execution=QUIET, say=silent)
    for error in (0.25, 0.5, 0.75):  # as long as each other in the file, and older and older
        change_summary(run, test_error=error)
        assert load_runs(tmp_path)["test_error"].tolist() == [error]
        assert load_runs(tmp_path)["test_error"].tolist() == [error]


def test_the_cache_of_decoded_images(tmp_path, backwards):
    image = tmp_path / "image.png"
    for value in b"abc":
        image.write_bytes(bytes([value]))
        backwards(image)
        for _ in range(2):
            (array,) = cached(tmp_path, "kind", [image], lambda: {"x": np.array([*image.read_bytes()])}).values()
            assert array.tolist() == [value]


def test_the_unpacked_parquet(tmp_path, backwards):
    pytest.importorskip("pyarrow")
    from reslib.data.parquet import index_parquet

    for number in range(2):
        image = encoded(picture(number), "BMP")  # all of them as long as each other
        for split in ("train", "validation"):
            path = tmp_path / f"{split}-0.parquet"
            write_parquet(path, [(image, 0), (image, 1)])
            backwards(path)
        assert index_parquet(tmp_path)[0].read(1) == image


def test_what_other_processes_are_writing_is_left_to_them(tmp_path, backwards):
    """Files from the future are those of a process that lives; what a killed one left long before is removed."""
    for name, age in (("future", -5000), ("now", 0), ("abandoned", files.ABANDONED + 10_000)):
        path = tmp_path / f".file.{name}.tmp"
        path.write_text("half")
        times = time.time() - age
        os.utime(path, (times, times))
    files.write_text(tmp_path / "file", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".file.future.tmp", ".file.now.tmp", "file"]
