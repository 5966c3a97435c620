"""What the loops in C++ are made of."""

import fnmatch
import tomllib
from pathlib import Path

import reslib
from reslib import native, provenance

PACKAGE = Path(reslib.__file__).parent


def test_an_installed_package_has_all_sources():
    """pyproject.toml must name them: what is not Python is left out of a wheel otherwise."""
    shipped = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    found = {path for pattern in ("*.cpp", "*.h") for path in PACKAGE.rglob(pattern)}
    assert found == {*native.SOURCES, *native.HEADERS}
    for path in found:
        package = ".".join(["reslib", *path.parent.relative_to(PACKAGE).parts])
        assert any(fnmatch.fnmatch(path.name, pattern) for pattern in shipped[package]), path


def test_the_digest_of_the_code_has_all_sources(monkeypatch):
    """A record names the code that made it by this digest."""
    seen = []
    monkeypatch.setattr(provenance, "digest", lambda files, root: seen.extend(files))
    provenance.source.__wrapped__()
    assert {*native.SOURCES, *native.HEADERS, PACKAGE / "native.py"} <= set(seen)


def test_every_header_that_is_read_counts():
    """A change of any makes the loops anew, for their text is in the name of the file they are kept in."""
    included = {
        (path.parent / line.split('"')[1]).resolve()
        for path in (*native.SOURCES, *native.HEADERS)
        for line in path.read_text().splitlines()
        if line.startswith('#include "')
    }
    assert included == set(native.HEADERS)
