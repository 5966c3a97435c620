"""What the README shows works as shown."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


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


def headings(text):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_files_folders_and_headings_that_a_page_names_exist(page):
    links = re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", PAGES[page])
    assert links
    for name, heading in links:
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), name
        if heading:
            assert heading in headings(target.read_text(encoding="utf-8")), f"{name}#{heading}"


def test_notebooks_and_environment_of_the_readme_exist():
    for name in ("notebooks/figure1.ipynb", "environment.yml"):
        assert name in README and (ROOT / name).exists()


def test_every_command_that_a_page_names_exists():
    from reslib.cli import COMMANDS

    for text in PAGES.values():
        assert set(re.findall(r"(?:^|`|-m )reslib ([a-z]+)", text, re.M)) <= set(COMMANDS)


def test_terms_of_the_results_table_are_explained():
    from reslib.results_index import END, START

    before, table = README.split(END)[0].split(START)
    columns = table.split("\n| --- |")[0].strip("\n| ").split(" | ")
    legend = before.split("How to read the tables:")[1]
    explained = re.findall(r"\*(\w+)\*", legend)
    assert {"last", "n"} <= {word for column in columns for word in re.findall(r"\w+", column)} & set(explained)
    assert {"study", "claim", "z"} <= set(explained)


def test_who_comes_with_a_baseline_that_is_off_is_told_where_to_look():
    (section,) = [part for part in README.split("\n## ") if part.startswith("My baseline is off")]
    assert "(notebooks/fidelity.ipynb)" in section and "(notebooks/cifar10_table.ipynb)" in section


def test_presets_of_the_readme_are_those_of_the_package():
    from reslib.presets import PRESETS

    assert re.findall(r"^\| `(\w+)` \|", README, re.M) == list(PRESETS)
