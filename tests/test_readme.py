"""What the README shows works as shown."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_own_network_trains_and_enters_the_table(tmp_path):
    source = re.search(r"```python\n(.+?)```", README, re.S)[1]
    assert len(source.splitlines()) <= 15
    (tmp_path / "mynet.py").write_text(source)
    command = re.search(r"^PYTHONPATH=\. reslib (train mynet:MyNet .+)$", README, re.M)[1]
    arguments = command.replace("--preset quick", "--preset smoke").split()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "reslib", *arguments, "--results", str(tmp_path)],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from reslib import tables
    from reslib.records import load_runs

    table = tables.cifar10_table(load_runs(tmp_path / "smoke" / "runs"))
    row = table[table.source == "added"].iloc[0]
    assert "MyNet" in row.model and row.n == "1" and row.parameters == "20,234"
    assert row["multiply-adds"] == "2,065,024"  # 32 x 32 x 27 x 32 + 8 x 8 x 288 x 64 + 64 x 10


def test_files_and_folders_that_the_readme_names_exist():
    named = set(re.findall(r"\]\((?!http)([^)#]+)\)", README)) | {"notebooks/figure1.ipynb", "environment.yml"}
    assert not [name for name in named if not (ROOT / name).exists()]


def test_every_command_that_the_readme_names_exists():
    from reslib.cli import COMMANDS

    assert set(re.findall(r"^reslib (\w+)", README, re.M)) <= set(COMMANDS)


def test_terms_of_the_results_table_are_explained():
    from reslib.results_index import END, START

    before, table = README.split(END)[0].split(START)
    columns = table.split("\n| --- |")[0].strip("\n| ").split(" | ")
    legend = before.split("How to read the tables:")[1]
    explained = re.findall(r"\*(\w+)\*", legend)
    assert {"last", "n"} <= {word for column in columns for word in re.findall(r"\w+", column)} & set(explained)
    assert {"study", "claim", "z"} <= set(explained)


def test_who_comes_with_a_baseline_that_is_off_is_told_where_to_look():
    (paragraph,) = [part for part in README.split("\n\n") if "baseline is off" in part]
    assert "(notebooks/fidelity.ipynb)" in paragraph and "(notebooks/cifar10_table.ipynb)" in paragraph


def test_presets_of_the_readme_are_those_of_the_package():
    from reslib.presets import PRESETS

    assert re.findall(r"^\| `(\w+)` \|", README, re.M) == list(PRESETS)
