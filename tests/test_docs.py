"""The API page: `make docs` renders it, and everything public has something to say there."""

import ast
import importlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(p for p in (ROOT / "reslib").rglob("*.py") if p.name != "__main__.py")
BY_CONTRACT = ("add_arguments", "main")  # commands/__init__.py explains them once for all


def public(tree, prefix=""):
    """(name, node) of the public classes, functions and methods of a module."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


def module_name(path):
    name = path.relative_to(ROOT).with_suffix("")
    return ".".join((name.parent if name.name == "__init__" else name).parts)


def inherits(module, name):
    """Whether a method has the docstring of the one that it replaces."""
    owner, _, method = name.rpartition(".")
    return bool(owner) and bool(inspect.getdoc(getattr(getattr(importlib.import_module(module), owner), method)))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_everything_public_has_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [n for n, node in public(tree) if n not in BY_CONTRACT and not ast.get_docstring(node)]
    silent = [name for name in silent if not inherits(module_name(path), name)]
    assert ast.get_docstring(tree) and not silent, f"without a docstring: {', '.join(silent)}"


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.targets, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        if tag == "a" and "href" in attributes:
            self.targets.append(attributes["href"])


def test_make_docs_renders_a_page_per_module(tmp_path):
    """The Makefile's own command: no module is left out, no link inside the pages leads nowhere."""
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    commands = subprocess.run(["make", "-n", "docs"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = re.search(r"^\S+/pdoc (--output.+)$", commands, re.M)[1]
    command = shlex.split(command.replace("docs/api", str(tmp_path)))
    done = subprocess.run([sys.executable, "-m", "pdoc", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("*.html")}
    for path in MODULES:
        assert tmp_path / f"{module_name(path).replace('.', '/')}.html" in pages, path
    for page, found in pages.items():
        for target in found.targets:
            address, _, part = unquote(target).partition("#")
            if "://" not in address:
                other = (page.parent / address).resolve() if address else page
                assert other in pages and (not part or part in pages[other].ids), f"{page.name}: {target}"
    recipe = (tmp_path / "reslib" / "recipe.html").read_text(encoding="utf-8")
    assert "What is trained, on what, and how" in recipe
