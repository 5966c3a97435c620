"""The loops in C++ as machine code: made by the compiler that is there, kept in the user's cache.

It is made for the very processor and loaded into the process. So its name in the cache has all that it depends on, and
only a file that nobody but the user could write is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from .errors import UserError
from .files import whole_file
from .tune import cache_file

HERE = Path(__file__).parent
NAMES = "convolutions/winograd.cpp", "convolutions/winograd_bf16.cpp", "fused_norm.cpp", "tiles/units.cpp"
SOURCES = tuple(HERE / name for name in NAMES)
HEADERS = tuple(sorted(HERE.rglob("*.h")))
COMPILERS = ("g++", "clang++")
OTHERS = stat.S_IWGRP | stat.S_IWOTH
PATIENCE = 120.0  # seconds for a compiler
# A second OpenMP beside the one that PyTorch brings would end the process on macOS; without it one thread computes.
PARALLEL = [[]] if sys.platform == "darwin" else [["-fopenmp"], []]
WITHOUT_TILES = "-mno-amx-tile"  # where the assembler is older than the compiler and does not know them


@functools.cache
def unavailable() -> str:
    """Why the loops cannot run on this machine; empty if they can."""
    try:
        loops()
    except (UserError, OSError) as error:
        return str(error)
    return ""


@functools.cache
def loops() -> ctypes.CDLL:
    """The loops for this machine. Raises UserError where none can be made, OSError where they cannot be loaded."""
    return build()


def build(*options: str) -> ctypes.CDLL:
    """The loops: from the user's cache, else made now (about 6 s). options: more of them for the compiler."""
    asked = os.environ.get("CXX")
    compiler = next((path for name in ([asked] if asked else COMPILERS) if (path := shutil.which(name))), None)
    if compiler is None:
        raise UserError(f"no C++ compiler ({asked or ', '.join(COMPILERS)}) is installed")
    native = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
    target = _run([compiler, native, "-dM", "-E", "-x", "c++", os.devnull])  # what processor and compiler have
    command = [compiler, "-std=c++17", "-O3", native, "-Wno-psabi", "-shared", "-fPIC"]
    if "__AMX_TILE__" in target and not _assembles(compiler, native, "tilezero %tmm0"):
        command.append(WITHOUT_TILES)
    reason = None
    for parallel in PARALLEL:
        words = [*command, *parallel, *options]
        text = [*(source.read_text() for source in (*SOURCES, *HEADERS)), target, *words]
        digest = hashlib.sha256("\n".join(text).encode()).hexdigest()
        path = cache_file().with_name("native") / f"loops-{digest[:16]}.so"
        if _safe(path):
            with contextlib.suppress(OSError):  # damaged
                return ctypes.CDLL(str(path))
        try:
            return _make(words, path)
        except UserError as error:
            reason = error
    raise reason


def _assembles(compiler: str, native: str, instruction: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "probe.cpp"
        file.write_text(f'void probe() {{ asm("{instruction}"); }}\n')
        try:
            _run([compiler, native, "-c", str(file), "-o", os.devnull])
        except UserError:
            return False
    return True


def _make(words: list[str], path: Path) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        _run([*words, *map(str, SOURCES), "-o", str(made)])
        with contextlib.suppress(UserError, OSError):  # else made anew by every process
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # whatever the umask lets a group do
            with whole_file(path, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(made.read_bytes())
        return ctypes.CDLL(str(path if _safe(path) else made))


def _safe(path: Path) -> bool:
    """Whether file and folder are there, the user's, and nobody else's to write."""
    try:
        found = [entry.stat() for entry in (path, path.parent)]
    except OSError:
        return False
    return all(entry.st_uid == os.getuid() and not entry.st_mode & OTHERS for entry in found)


def _run(command: list[str]) -> str:
    """What a command prints. Raises UserError with its first error line, and when it takes too long."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, start_new_session=True)
    try:
        printed, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} was not done after {PATIENCE:.0f} s") from None
    finally:
        if process.poll() is None:  # it and what it started
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        raise UserError(f"{command[0]}: {(errors.strip().splitlines() or ['failed'])[0]}")
    return printed
