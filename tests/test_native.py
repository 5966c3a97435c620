"""What the loops in C++ are made of, and how they are made."""

import fnmatch
import functools
import shutil
import stat
import time
import tomllib
from pathlib import Path

import pytest

import reslib
from reslib import native, provenance
from reslib.compilation import cannot_compile
from reslib.convolutions import Layer, winograd
from reslib.errors import UserError

PACKAGE = Path(reslib.__file__).parent
LANES = (4, 8, 16)  # floats in a register of SSE and Neon, AVX, AVX-512
needs_compiler = pytest.mark.skipif(bool(cannot_compile()), reason="no C++ compiler")


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


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    for function in (native.unavailable, native.loops):
        monkeypatch.setattr(native, function.__name__, functools.cache(function.__wrapped__))
    return tmp_path / "cache"


def test_without_a_compiler_sums_are_direct(fresh, monkeypatch):
    monkeypatch.setenv("PATH", str(fresh))
    assert native.unavailable() == "no C++ compiler (g++, clang++) is installed"
    assert not winograd.promising(Layer(16, 16, (3, 3), (1, 1), (8, 8)), 2)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"no C\+\+ compiler \(no-such-compiler\)"):
        native.build()


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch):
    fresh.mkdir()
    broken = fresh / "broken"
    broken.write_text("#!/bin/sh\necho 'disk of the compiler is full' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert "disk of the compiler is full" in native.unavailable()


@needs_compiler
def test_they_are_made_once_and_again_when_damaged(fresh, monkeypatch):
    built = native.build()
    (library,) = (fresh / "native").glob("loops-*.so")
    first = library.stat().st_mtime_ns
    assert native.build().lanes() == built.lanes() in LANES and library.stat().st_mtime_ns == first
    damaged = fresh.with_name("other") / "native" / library.name
    damaged.parent.mkdir(mode=0o700, parents=True)
    damaged.write_bytes(b"damaged")
    monkeypatch.setenv("RESLIB_CACHE", str(damaged.parent.parent))
    assert native.build().lanes() == built.lanes() and damaged.stat().st_size > 1000


@needs_compiler
def test_what_others_could_have_written_is_not_loaded(fresh):
    native.build()
    (library,) = (fresh / "native").glob("loops-*.so")
    assert native._safe(library)
    library.parent.chmod(0o777)
    assert not native._safe(library)
    assert native.build().lanes() in LANES  # made in a folder of its own
    library.parent.chmod(0o700)
    library.chmod(stat.S_IRWXU | stat.S_IWOTH)
    assert not native._safe(library)


@needs_compiler
def test_an_assembler_without_tiles_costs_the_tiles_alone(fresh, monkeypatch):
    """As it would answer, on any processor: the compiler names tiles, and what it makes of them is refused."""
    fresh.mkdir()
    older, compiler = fresh / "older", next(filter(shutil.which, native.COMPILERS))
    older.write_text(
        f"""#!/bin/sh
case "$*" in
*-dM*) echo '#define __AMX_TILE__ 1' ;;
*-mno-amx-tile*) exec {compiler} $(echo "$*" | sed s/-mno-amx-tile//) -U__AMX_TILE__ ;;
*) printf 'x.s: Assembler messages:\nx.s:1: Error: no such instruction: tilezero\n' >&2; exit 1 ;;
esac
"""
    )
    older.chmod(0o755)
    monkeypatch.setenv("CXX", str(older))
    assert native.unavailable() == "" and native.loops().lanes() in LANES and not native.loops().tile_units()
    (library,) = (fresh / "native").glob("loops-*.so")
    assert compiler != "g++" or b"GOMP_parallel" in library.read_bytes()  # that stays


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def eventually(done, seconds=20):
    """Whether it is done in time: what was killed takes a moment to be gone."""
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    return done()


def test_a_compiler_that_hangs_is_ended(fresh, monkeypatch):
    fresh.mkdir()
    slow = fresh / "slow"
    slow.write_text(f"#!/bin/sh\nsleep 60 & echo $! > {fresh}/pid\nwait\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(native, "PATIENCE", 0.5)
    assert native.unavailable() == f"{slow} was not done after 0 s"
    assert eventually(lambda: not alive((fresh / "pid").read_text().strip()))


@needs_compiler
def test_a_cache_that_cannot_be_written(fresh, monkeypatch):
    fresh.write_text("a file where the folder should be")
    assert native.build().lanes() in LANES
