"""CONTRIBUTING.md, followed to the letter: its files are written, its commands and its code are run, in order."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.M | re.S)


def follow(section: str, folder: Path) -> str:
    """Do what a section says, in `folder`; returns what its commands print."""
    text = re.split(r"^## ", TEXT, flags=re.M)
    text = next(part for part in text if part.startswith(section))
    environment = {**os.environ, "RESLIB_RESULTS": str(folder / "results"), "RESLIB_PROGRESS": "off"}
    environment |= {"PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    printed = ""
    blocks = BLOCK.findall(text)
    assert blocks, f"no code in section {section!r}"
    for language, file, code in blocks:
        if file:
            (folder / file).write_text(code)
            continue
        if language == "diff":  # made to a copy, which is found before the checkout
            shutil.copytree(ROOT / "reslib", folder / "reslib", ignore=shutil.ignore_patterns("__pycache__"))
            subprocess.run([shutil.which("git"), "apply", "-"], cwd=folder, input=code, text=True, check=True)
            continue
        code = re.sub(r"^reslib ", f"{sys.executable} -m reslib ", code, flags=re.M)
        command = ["sh", "-ec", code] if language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        printed += done.stdout
    return printed


def test_add_a_model(tmp_path):
    printed = follow("Add a model", tmp_path)
    assert "test error" in printed
    (run,) = (tmp_path / "results" / "smoke" / "runs").glob("my_nets.Small-*")
    assert len(pd.read_csv(run / "metrics.csv")) == 2
    assert '"options": "width=8"' in (run / "recipe.json").read_text()


def test_add_a_figure(tmp_path):
    follow("Add a figure", tmp_path)
    folder = tmp_path / "results" / "smoke" / "figures"
    assert (folder / "speed.png").stat().st_size > 5000 and (folder / "speed.pdf").exists()


def test_add_a_data_set(tmp_path):
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    assert "test error" in follow("Add a data set", tmp_path)
    (run,) = (tmp_path / "results" / "smoke" / "runs").glob("resnet8-stripes-*")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["iterations"] == 6 and summary["synthetic"]
    assert summary["train_images"] == summary["test_images"] == 64 and summary["data_origin"] == "generated"
    assert len(pd.read_csv(run / "metrics.csv")) >= 1


@pytest.mark.parametrize("path", re.findall(r"`((?:reslib|notebooks|tests)/[\w/.]+)`", TEXT))
def test_what_it_names_exists(path):
    assert (ROOT / path).exists()
