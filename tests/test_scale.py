"""Many records: `reslib status`, the CIFAR-10 table and the report stay fast; `scripts/scale.py` times the commands."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from reslib import artefacts, record_index
from reslib.cli import main
from reslib.records import load_runs

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 5.0  # seconds of processor time for 10,000 records, a part of them for as many
FIXED = 1.0  # seconds of it that do not depend on the number of records
spec = importlib.util.spec_from_file_location("scale", ROOT / "scripts" / "scale.py")
scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scale)


def folder_of(path, count, monkeypatch):
    """Results with `count` records, whose index may be written at once."""
    monkeypatch.setenv("RESLIB_DOWNLOAD", "off")
    monkeypatch.delenv("RESLIB_DATA", raising=False)
    monkeypatch.setenv("HOME", str(path / "home"))  # no data set there: the plan is that of the synthetic ones
    monkeypatch.setattr(record_index, "SETTLED", -3600.0)
    plan = scale.recipes(count)
    assert len(plan) == count
    for number, recipe in enumerate(plan):
        scale.write_record(path / scale.PRESET / "runs", recipe, number)
    return path


def check(results, count, capsys):
    commands = {
        "report": lambda: main(["report", "--results", str(results)]),
        "table": lambda: artefacts.cifar10(results / scale.PRESET),
        "status": lambda: main(["status", "--preset", scale.PRESET, "--results", str(results)]),
    }
    for command in commands.values():  # imports, the index, multiply-adds of the networks: once per process
        command()
    index = results / scale.PRESET / "runs" / record_index.FILE
    written = index.stat().st_mtime_ns
    for name, command in commands.items():
        begun = time.process_time()
        command()
        taken = time.process_time() - begun
        assert taken < FIXED + (LIMIT - FIXED) * count / 10_000, f"{name}: {taken:.1f} s for {count:,} records"
    assert index.stat().st_mtime_ns == written  # it was used, not written again
    assert f"{count:,} runs of {scale.PRESET}" in capsys.readouterr().out
    text = (results / "report.html").read_text()
    assert text.count("<tr") < 250 and len(text) < 8e6  # the script pages through the others
    assert len(pd.read_csv(results / "results.csv")) == len(load_runs(results / scale.PRESET / "runs")) == count
    table = pd.read_csv(results / scale.PRESET / "tables" / "cifar10.csv", dtype=str).set_index("model")
    assert int(table.loc["ResNet-20", "n"]) > count // 20  # every seed is behind its row


def test_a_thousand_records(tmp_path, monkeypatch, capsys):
    check(folder_of(tmp_path, 1000, monkeypatch), 1000, capsys)


@pytest.mark.long
def test_ten_thousand_records(tmp_path, monkeypatch, capsys):
    check(folder_of(tmp_path, 10_000, monkeypatch), 10_000, capsys)


@pytest.mark.parametrize("seconds, code", [((4.9, 4.8), 0), ((5.3, 5.1), 1), ((60.0, 4.9), 0)])
def test_the_script_fails_when_a_command_is_late(monkeypatch, capsys, seconds, code):
    """By the second, indexed, call of each command; the commands themselves are not run here."""
    calls = []

    def instead(command):
        calls.append(command)
        return (60.0, 60.0) if len(calls) % 2 else seconds if "report" in command else (1.0, 0.9)

    monkeypatch.setattr(scale, "timed", instead)
    monkeypatch.setattr(scale.time, "sleep", lambda seconds: None)
    assert scale.main(["20"]) == code and len(calls) == 8
    out, err = capsys.readouterr()
    assert "20 records" in out and out.count("| 60.0 (60.0) |") == 4
    assert err == ("more than 5 s: report: 5.3 s, of them 5.1 s of a processor\n" if code else "")


def test_records_are_read_without_pytorch():
    """Its import takes longer than reading 10,000 records."""
    code = "import sys, reslib.report, reslib.artefacts; print(sorted({'torch', 'torchvision'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
