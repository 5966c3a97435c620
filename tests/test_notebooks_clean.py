"""The form of the source notebooks, and the hooks that keep it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TYPES = {"preset": "str", "data_root": "str", "results": "str", "seeds": "int", "device": "str"}


def cells(path, kind=None):
    found = json.loads(path.read_text())["cells"]
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell):
    return "".join(cell["source"])


def tagged(path):
    return [c for c in cells(path, "code") if "parameters" in c["metadata"].get("tags", [])]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_stripped(notebook):
    for cell in cells(notebook, "code"):
        assert not cell["outputs"] and cell["execution_count"] is None
        assert set(cell["metadata"]) <= {"tags"}
    assert set(json.loads(notebook.read_text())["metadata"]) <= {"kernelspec", "language_info"}


def test_title_says_what_and_how_long(notebook):
    first = cells(notebook)[0]
    assert first["cell_type"] == "markdown" and source(first).startswith("# ")
    for part in ("**Paper**", "**Command**", "**Time**", f"notebooks/{notebook.stem}.ipynb"):
        assert part in source(first), part


def test_imports_then_parameters(notebook):
    code = cells(notebook, "code")
    (parameters,) = tagged(notebook)
    assert code.index(parameters) == 1, "imports cell, then parameters"
    assert any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source(code[0])).body)


def test_parameters_are_typed_and_explained(notebook):
    """papermill reads one `name: type = literal  # help` per line."""
    (parameters,) = tagged(notebook)
    lines = source(parameters).strip().splitlines()
    found = {}
    for line in lines:
        (node,) = ast.parse(line).body
        assert isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Constant), line
        assert type(node.value.value).__name__ == node.annotation.id, line
        assert re.search(r"  # \S", line), line
        found[node.target.id] = node.annotation.id
    assert found.items() >= TYPES.items()


def test_ends_with_assertions(notebook):
    last = cells(notebook, "code")[-1]
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source(last))))


def test_no_definition_over_five_lines(notebook):
    for cell in cells(notebook, "code"):
        for node in ast.walk(ast.parse(source(cell))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                assert node.end_lineno - node.lineno < 5, node.name


def hooks():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [r["repo"] for r in config["repos"]] == ["local"], "nothing is fetched from elsewhere"
    return {hook["id"]: hook for hook in config["repos"][0]["hooks"]}


def test_hooks_are_of_the_system():
    assert all(hook["language"] == "system" for hook in hooks().values())
    assert {"ruff-check", "ruff-format", "nbstripout"} == set(hooks())


def run_hook(name, path):
    import shlex

    program, *arguments = shlex.split(hooks()[name]["entry"])
    found = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if not found:
        pytest.skip(f"{program} is not installed")
    return subprocess.run([found, *arguments, str(path)], cwd=ROOT, capture_output=True, text=True)


def test_the_hook_accepts_these_notebooks(notebook):
    assert run_hook("nbstripout", notebook).returncode == 0


def test_the_hook_refuses_an_executed_notebook(tmp_path):
    text = json.loads(NOTEBOOKS[0].read_text())
    code = next(c for c in text["cells"] if c["cell_type"] == "code")
    code["outputs"], code["execution_count"] = [{"output_type": "stream", "name": "stdout", "text": ["x"]}], 1
    executed = tmp_path / "executed.ipynb"
    executed.write_text(json.dumps(text))
    assert run_hook("nbstripout", executed).returncode != 0


def test_pre_commit_refuses_an_executed_notebook_and_takes_it_stripped(tmp_path):
    """The hooks as `pre-commit install` has them run, in a repository with this configuration."""
    tools = Path(sys.executable).parent
    pre_commit, git = shutil.which("pre-commit", path=str(tools)) or shutil.which("pre-commit"), shutil.which("git")
    if not pre_commit or not git:
        pytest.skip("pre-commit or git is not installed")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PRE_COMMIT"))}
    environment |= {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PRE_COMMIT_HOME": str(tmp_path / "cache")}

    def run(*command):
        return subprocess.run(command, cwd=tmp_path / "repository", env=environment, capture_output=True, text=True)

    (tmp_path / "repository" / "notebooks").mkdir(parents=True)
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / "repository")
    stripped = (ROOT / "notebooks" / "figure1.ipynb").read_text(encoding="utf-8")
    executed = json.loads(stripped)
    next(c for c in executed["cells"] if c["cell_type"] == "code")["execution_count"] = 1
    there = tmp_path / "repository" / "notebooks" / "figure1.ipynb"
    run(git, "init", "--quiet")
    for text, code in ((stripped, 0), (json.dumps(executed, indent=1), 1)):
        there.write_text(text, encoding="utf-8")
        run(git, "add", "--all")
        done = run(pre_commit, "run", "--all-files")
        assert done.returncode == code, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.endswith("Failed")]
    assert len(failed) == 1 and failed[0].startswith("notebooks hold no outputs")
