"""Badges say what pyproject.toml says; buttons for Colab and Binder exist exactly where there is an address."""

import importlib.util
import json
import re
import shutil
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "https://github.com/someone/their-fork"
spec = importlib.util.spec_from_file_location("links", ROOT / "scripts" / "links.py")
links = importlib.util.module_from_spec(spec)
spec.loader.exec_module(links)


@pytest.fixture
def copy(tmp_path):
    """What the script reads and writes, elsewhere, without an address."""
    for folder in ("notebooks", "docs/badges"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns(".*"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    set_address(tmp_path, "")
    links.main([], tmp_path)
    return tmp_path


def set_address(folder, address):
    text = (ROOT / "pyproject.toml").read_text()
    text, count = re.subn(r'^repository = ".*"$', f'repository = "{address}"', text, flags=re.M)
    assert count == 1
    (folder / "pyproject.toml").write_text(text)


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.*") if p.name != "pyproject.toml"}


def sources(path, kind):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def test_what_is_committed_is_what_the_script_writes(capsys):
    assert links.main(["--check"], ROOT) == 0, capsys.readouterr().out


def test_badges_tell_what_the_package_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    said = {p.stem: ElementTree.parse(p).getroot().get("aria-label") for p in (ROOT / "docs/badges").glob("*.svg")}
    low, high = re.findall(r"3\.\d+", said["python"])
    assert project["requires-python"] == f">={low},<3.{int(high[2:]) + 1}"
    assert f"torch>={re.search(r'[0-9.]+', said['torch'])[0]}" in project["dependencies"]
    assert said["licence"] == f"licence: {project['license']}"
    readme = (ROOT / "README.md").read_text()
    for stem in said:
        assert f"(docs/badges/{stem}.svg)" in readme


def test_without_an_address_there_is_no_button(copy):
    assert not re.search("colab|binder", (copy / "README.md").read_text().split(links.END)[0], re.I)
    assert not (copy / "docs/badges/colab.svg").exists()
    for path in (copy / "notebooks").glob("*.ipynb"):
        assert "Open in Colab" not in path.read_text() and "get_ipython" not in path.read_text()


def test_an_address_gives_every_notebook_its_buttons(copy):
    before = everything(copy)
    set_address(copy, ADDRESS)
    assert links.main(["--check"], copy) == 1
    assert links.main([], copy) == 0 and links.main(["--check"], copy) == 0
    readme = (copy / "README.md").read_text()
    assert "docs/badges/colab.svg" in readme and (copy / "docs/badges/binder.svg").exists()
    notebooks = sorted((copy / "notebooks").glob("*.ipynb"))
    assert len(notebooks) > 8
    for path in notebooks:
        colab, binder = re.findall(r"\[Open in \w+\]\((\S+?)\)", sources(path, "markdown")[0])
        place = urlsplit(colab).path.split("/blob/main/")
        assert place[0] == "/github/someone/their-fork" and (copy / place[1]).samefile(path)
        parts = urlsplit(binder)
        assert parts.path == "/v2/gh/someone/their-fork/main"
        assert (copy / unquote(parts.query).removeprefix("urlpath=lab/tree/")).samefile(path)
    set_address(copy, "")
    links.main([], copy)
    assert everything(copy) == before


@pytest.mark.parametrize("here", [True, False])
def test_the_first_cell_installs_reslib_where_it_is_missing(copy, monkeypatch, here):
    set_address(copy, ADDRESS)
    links.main([], copy)
    first = sources(copy / "notebooks" / "figure1.ipynb", "code")[0]
    asked = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if here else None)

    class Shell:
        def run_line_magic(self, name, line):
            asked.append((name, line))

    exec(first.split("\n\nfrom")[0], {"get_ipython": Shell})
    wanted = [("pip", f"install --quiet 'reslib[notebooks] @ git+{ADDRESS}@main'")]
    assert asked == ([] if here else wanted)
    assert "from reslib" in first


def test_an_address_that_colab_cannot_open_is_refused(copy):
    set_address(copy, "https://example.org/x")
    with pytest.raises(SystemExit, match="https://example.org/x"):
        links.main([], copy)
