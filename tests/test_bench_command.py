"""`reslib bench` as a command, at tiny sizes; of speed only the import of the package is tested, in processor time."""

import json
import subprocess
import sys
import time

import pytest
import torch
from bench_source import CPU, make_source, set_up

from reslib import bench, data
from reslib.bench import compare, report, roofline, seeds, start
from reslib.cli import main


@pytest.fixture(autouse=True)
def untuned(monkeypatch, tmp_path):
    set_up(monkeypatch, tmp_path)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """run(words): the command on synthetic images; its exit code, and a function that gives path and record."""
    source = make_source()
    monkeypatch.setattr(data, "load", lambda name, root: source)
    monkeypatch.setattr(compare, "Roofline", lambda device, size: roofline.Roofline(device, size=64))
    words = f"bench --devices cpu --dataset synthetic --rounds 1 --seconds 0.01 --no-memory --results {tmp_path}"
    return lambda more: main([*words.split(), *more.split()])


def written(folder):
    (path,) = (folder / "bench").glob("*.json")
    return path, json.loads(path.read_text())


def fails(*args, **kwargs):
    raise RuntimeError("the seventh seed")


def test_command_writes_json_and_markdown(run, tmp_path, capsys):
    argv = "--models resnet8 --batch-sizes 8 --workers 0 --contenders fp32,fast"
    assert run(f"{argv} --scaling --depths 8 --batches 4,8 --widths 4") == 0
    path, record = written(tmp_path)
    assert record["environment"]["torch"] == torch.__version__ and record["dataset"] == "synthetic"
    assert [c["contender"] for c in record["comparisons"][0]["contenders"]] == ["fp32", "fast"]
    page = path.with_suffix(".md").read_text()
    assert page == report.markdown(record) and "## resnet8, batch 8" in page
    out = capsys.readouterr().out.splitlines()
    assert [line for line in page.splitlines() if line and line not in out] == [] and out.count(
        page.splitlines()[0]
    ) == 1
    again = report.Report(tmp_path / "bench")
    again.write(record)
    assert again.path != path and path.exists()  # a second one of the day replaces nothing


def test_what_was_measured_before_a_failure_is_kept(run, tmp_path, monkeypatch):
    monkeypatch.setattr(seeds, "seeds_at_once", fails)
    with pytest.raises(RuntimeError, match="the seventh seed"):
        run("--models resnet8 --batch-sizes 8 --workers 0 --contenders fp32 --seeds-at-once 2 --traceback")
    assert len(written(tmp_path)[1]["comparisons"]) == 1


def test_a_part_that_fails_is_named_and_the_rest_goes_on(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds, "seeds_at_once", fails)
    argv = "--models none --batch-sizes 8 --seeds-at-once 2"
    assert run(f"{argv} --scaling --depths 8 --batches 4 --widths 4") == 1
    path, record = written(tmp_path)
    assert len(record["scaling"]) == 3
    assert record["failed"] == {"resnet20, 2 seeds at once": "RuntimeError: the seventh seed"}
    assert "the seventh seed" in path.with_suffix(".md").read_text()


def test_at_the_time_limit_the_less_important_is_left_out(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "compare", lambda *rest: time.sleep(0.3))
    monkeypatch.setattr(report, "_comparison", lambda part: ["compared"])
    assert run("--models resnet8 --batch-sizes 8,4 --time-limit 0.2s --start --tried") == 0
    path, record = written(tmp_path)
    tried = "resnet8, batch 8: what was tried beside the eager step"
    assert len(record["comparisons"]) == 1 and record["left_out"] == ["resnet8, batch 4", "start to first step", tried]
    assert "left out resnet8, batch 4; start to first step" in capsys.readouterr().out
    assert "Left out at the time limit: resnet8, batch 4" in path.with_suffix(".md").read_text()


@pytest.mark.long
def test_start_to_the_first_step():
    found = start.start(data.load("synthetic"), CPU)
    assert 0 < found["import_seconds"] < found["first_step_seconds"] and "first step" in report._start(found)


def test_a_start_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(start, "CODE", "raise SystemExit('no data')")
    found = start.start(data.load("synthetic"), CPU)
    assert found == {"failed": "no data"} and "no data" in report._start(found)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--models resnet21", "resnet21"),
        ("--contenders usual,slow", "slow"),
        ("--batch-sizes 12,x", "12,x"),
        ("--rounds 0", "--rounds: '0': allowed is"),
        ("--seeds-at-once=-1", "--seeds-at-once: '-1': allowed is"),
        ("--seed-models resnet21", "resnet21"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(argument, said, capsys):
    assert main(["bench", "--devices", "cpu", *argument.split()]) == 2
    assert said in capsys.readouterr().err


def test_whole_measures_the_loader_too(monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda arguments, *rest, **more: asked.append(arguments))
    asked = []
    for words in (["bench"], ["bench", "--whole"]):
        assert main(words) == 0
    assert [a.loader for a in asked] == [False, True] and asked[1].scaling and asked[1].seeds_at_once == 5


def test_importing_reslib_costs_little_beyond_torch():
    """Processor time, which neighbours hardly disturb; the notebook's imports are the largest."""
    code = "import time, torch; begun = time.process_time(); import reslib.notebook; print(time.process_time() - begun)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2.0
