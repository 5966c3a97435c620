"""One source of dependencies, and a preflight that says what is missing."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())


def test_environment_yml_is_a_thin_layer_over_pyproject():
    assert CONDA["channels"] == ["conda-forge", "nodefaults"]
    python = next(d for d in CONDA["dependencies"] if isinstance(d, str) and d.startswith("python "))
    assert python.removeprefix("python ").replace(" ", "") == PROJECT["requires-python"].replace(" ", "")
    pip = next(d["pip"] for d in CONDA["dependencies"] if isinstance(d, dict))
    extras = re.fullmatch(r"-e \.\[(.+)\]", pip[0])[1].split(",")
    assert len(pip) == 1 and set(extras) <= set(PROJECT["optional-dependencies"])
    assert set(CONDA["dependencies"][:-1]) == {python, "pip"}, "packages belong in pyproject.toml"


def test_every_dependency_has_a_bound():
    listed = PROJECT["dependencies"] + [d for extra in PROJECT["optional-dependencies"].values() for d in extra]
    listed = [d for d in listed if not d.startswith("reslib[")]
    assert not [d for d in listed if not re.search(r"[<>=]=?\s*\d", d)]


def test_mission_packages_are_declared():
    listed = PROJECT["dependencies"] + [d for extra in PROJECT["optional-dependencies"].values() for d in extra]
    names = {re.match(r"[\w.-]+", d)[0].lower() for d in listed}
    assert {"torch", "torchvision", "jupyterlab", "papermill", "seaborn", "pandas", "nbval"} <= names


def test_ci_skips_no_test_for_want_of_a_package():
    """What the short tests import or run is in the extra that CI installs; Ray's clusters are for --long."""
    extras = PROJECT["optional-dependencies"]
    others = re.fullmatch(r"reslib\[(.+)\]", next(d for d in extras["test"] if d.startswith("reslib[")))[1].split(",")
    listed = PROJECT["dependencies"] + [d for extra in ("notebooks", "test", *others) for d in extras[extra]]
    installed = {re.match(r"[\w-]+", d)[0].replace("-", "_") for d in listed}
    skipping = {
        name.partition(".")[0]
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"importorskip\(\s*\"([\w.]+)\"", path.read_text(encoding="utf-8"))
    }
    assert skipping - {"ray"} <= installed | {"IPython", "nbclient", "nbformat"}  # which JupyterLab brings


def test_makefile_installs_the_extras_that_the_readme_names():
    makefile, readme = (ROOT / "Makefile").read_text(), (ROOT / "README.md").read_text()
    assert '".[notebooks,test]"' in makefile and '".[notebooks,test]"' in readme
    for command in ("make reproduce", "make test", "make test-gpu"):
        assert command in readme and re.search(rf"^{command.split()[1]}:", makefile, re.M)


def preflight():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import preflight

        return preflight
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("version, refused", [((3, 10), True), ((3, 11), False), ((3, 13), False), ((3, 14), True)])
def test_preflight_names_an_unsupported_python(tmp_path, version, refused):
    lines = preflight().problems(str(tmp_path / "venv"), version, free=10**12)
    assert bool([x for x in lines if "not supported" in x and "3.11 to 3.13" in x]) == refused


def test_preflight_names_a_full_disk(tmp_path):
    lines = preflight().problems(str(tmp_path / "venv"), (3, 11), free=10**9)
    assert len(lines) == 1 and "1.0 GB free" in lines[0] and str(tmp_path) in lines[0]


def test_preflight_speaks_to_old_interpreters_too():
    source = (ROOT / "scripts" / "preflight.py").read_text()
    assert 'f"' not in source and "f'" not in source, "an f-string is a syntax error where the message is needed most"


def test_import_touches_no_gpu_and_prints_nothing():
    code = "import reslib, sys; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list a process's threads")
def test_imports_start_no_threads():
    """A process forked later would wait for PyTorch's, which it lacks; the tests' fork server forks."""
    code = """
import os, pkgutil, importlib, matplotlib, pandas, torch, torch._inductor
def threads():
    return len(os.listdir("/proc/self/task"))
before = threads()
import reslib
names = [m.name for m in pkgutil.walk_packages(reslib.__path__, "reslib.") if not m.name.endswith("__main__")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as missing:
        assert missing.name.split(".")[0] != "reslib", missing
assert "reslib.models.maxout" in names and threads() == before, (before, threads())
torch.ones(10**6).exp()
assert threads() > before, "no operation of this PyTorch starts threads: nothing was tested"
"""
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
