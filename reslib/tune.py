"""How this machine trains fastest on its processor: precision, threads, compilation. Measured, not guessed from flags.

A processor may advertise bf16 and run it at half the fp32 rate, so the candidates train a small net for about two
seconds and the fastest is kept in a file of the user's cache, keyed by processor, cores and torch version. To choose
oneself: RESLIB_TUNE="precision=fp32,threads=2,compile=false" (any of the three); RESLIB_TUNE="measure" measures anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import platform
import shutil
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from .errors import UserError, choose
from .files import write_json
from .models import build_model

VERSION = 2  # of what is measured; a change makes cached choices stale
MARGIN = 1.03  # a candidate must beat the plainer one by this factor: noise must not decide
PRECISIONS = ("fp32", "bf16")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
COMPILE_PAYS_AFTER = 20.0  # compile when the run is longer than this many compilations


@dataclass(frozen=True)
class Choice:
    """How to train on this processor. `seconds` is the evidence: candidate -> seconds per step of the probe."""

    precision: str
    threads: int
    compile: bool | None = None  # None: not measured yet (it takes a minute), which means no
    compile_seconds: float = 0.0
    seconds: dict = dataclasses.field(default_factory=dict)
    origin: str = "measured"  # "measured", "cached" or "given"

    def __str__(self) -> str:
        compiled = {True: "compiled", False: "not compiled", None: "not compiled (not measured)"}[self.compile]
        rates = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in self.seconds.items())
        return f"{self.precision}, {self.threads} threads, {compiled} ({self.origin}{': ' if rates else ''}{rates})"


def cache_file() -> Path:
    """$RESLIB_CACHE/tune.json, by default in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("RESLIB_CACHE") or f"{base}/reslib").expanduser() / "tune.json"


def machine_key() -> str:
    """What the choice depends on: processor, usable cores, threads asked for, torch."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("vendor_id", "cpu family", "model", "model name", "stepping")
        found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines) if k.strip() in wanted}
        name = " ".join(found.get(k, "") for k in wanted)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return f"{name} | {cores()} cores | OMP {asked or '-'} | torch {torch.__version__} | v{VERSION}"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choice(compilation: bool = False) -> Choice:
    """The fastest way to train on this processor: given by RESLIB_TUNE, cached, or measured now.

    compilation: measure `torch.compile` as well, which takes a minute the first time.
    """
    given = _given()
    known = None if given.pop("measure", False) else _cached().get(machine_key())
    if {"precision", "threads"} <= set(given) and not compilation:
        return Choice(**{"compile": False, **given, "origin": "given"})
    if known is None:
        known = dataclasses.asdict(measure())
        _store(known)
    if compilation and known["compile"] is None and "compile" not in given:
        known |= _measure_compilation(known)
        _store(known)
    return Choice(**known | given | ({"origin": "given"} if given else {}))


def measure(rounds: int = 5) -> Choice:
    """Train the probe under either precision, in turn, then under several numbers of threads; keep the fastest.

    Precisions are compared by the processor time of one thread, which neighbours on a shared machine hardly disturb
    (on a busy machine the clock on the wall chose the slower one). Threads can only be compared by the wall clock.
    """
    before, state = torch.get_num_threads(), torch.get_rng_state()
    keep_memory()
    try:
        seconds = _compare({p: Probe(p) for p in PRECISIONS}, rounds, threads=1)
        best = "bf16" if seconds["bf16"] * MARGIN < seconds["fp32"] else "fp32"
        named = {f"{p}, 1 thread": s for p, s in seconds.items()}
        threads, counts = before, {before}
        if "OMP_NUM_THREADS" not in os.environ and cores() > 2:
            counts |= {cores(), cores() // 2}
        if len(counts) > 1:
            probe = Probe(best)
            walls = {n: _compare({n: probe}, rounds, threads=n, clock=time.perf_counter)[n] for n in sorted(counts)}
            fastest = min(walls, key=walls.get)
            threads = fastest if walls[fastest] * MARGIN < walls[before] else before
            named |= {f"{best}, {n} threads": s for n, s in walls.items()}
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)
    return Choice(best, threads, seconds=named)


def _compare(probes: dict, rounds: int, threads: int, clock=time.thread_time) -> dict:
    """Seconds per step of each probe, taking turns: the best of `rounds`, after one turn to warm up."""
    torch.set_num_threads(threads)
    taken = {name: [] for name in probes}
    for turn in range(rounds + 1):
        for name, probe in probes.items():
            start = clock()
            probe.step()
            if turn:
                taken[name].append(clock() - start)
    return {name: min(times) for name, times in taken.items()}


class Probe:
    """ResNet-8 at batch 64: one block of every stage, so all convolution shapes of the paper's CIFAR nets."""

    def __init__(self, precision: str, batch: int = 64, compiled: bool = False):
        self.precision = precision
        self.net = build_model("resnet8", 10).to(memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9, fused=True)
        self.x = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
        self.y = torch.arange(batch) % 10
        self.forward = torch.compile(self.net, dynamic=False) if compiled else self.net

    def step(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.forward(self.x)
        F.cross_entropy(logits.float(), self.y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _measure_compilation(known: dict, rounds: int = 5) -> dict:
    """Compile the probe and compare: the fields of Choice that say whether it pays."""
    if cannot_compile():
        return {"compile": False}
    before, state = torch.get_num_threads(), torch.get_rng_state()
    try:
        torch.set_num_threads(known["threads"])
        eager, compiled = Probe(known["precision"]), Probe(known["precision"], compiled=True)
        start = time.perf_counter()
        compiled.step()
        taken = time.perf_counter() - start
        seconds = _compare({"eager": eager, "compiled": compiled}, rounds, known["threads"], time.perf_counter)
    except Exception:  # a broken compiler raises many kinds; eager always works
        return {"compile": False}
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)
    pays = seconds["compiled"] * MARGIN < seconds["eager"]
    return {"compile": pays, "compile_seconds": taken, "seconds": known["seconds"] | seconds}


@cache
def cannot_compile() -> str:
    """Why torch.compile will not work here for the processor; empty if nothing speaks against it."""
    compiler = os.environ.get("CXX")
    names = [compiler] if compiler else ["g++", "clang++", "cl"]
    if not any(shutil.which(name) for name in names):
        return f"no C++ compiler ({', '.join(names)}) is installed"
    return ""


class CompiledLoss:
    """`loss(x, y, progress)` through torch.compile; eager for good, said once, when compiling fails."""

    def __init__(self, loss, say=print):
        self.eager, self.say = loss, say
        self.reason = cannot_compile()
        self.call = loss if self.reason else torch.compile(loss, dynamic=False)
        self.proved = bool(self.reason)
        if self.reason:
            say(f"not compiled: {self.reason}")

    def __call__(self, x, y, progress):
        if self.proved:
            return self.call(x, y, progress)
        try:
            result = self.call(x, y, progress)
        except Exception as error:  # compilers fail in many ways; a real error shows again in eager mode
            self.reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self.say(f"not compiled: {self.reason}")
            self.call = self.eager
            result = self.eager(x, y, progress)
        self.proved = True
        return result


def keep_memory(keep: bool = True) -> bool:
    """Let glibc keep freed memory instead of giving it back to the system; whether that could be set.

    The activations of an fp32 step are larger than the allocator keeps, so that every step asks for them anew and takes
    28,000 page faults (ResNet-20, batch 128): an eighth of its time. False restores what glibc settles on by itself.
    """
    if any(os.environ.get(n) for n in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")):
        return False  # the user has decided
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  other C libraries number these options differently
        mapped, trimmed = (1 << 30, 1 << 30) if keep else (32 << 20, 64 << 20)
        return bool(library.mallopt(M_MMAP_THRESHOLD, mapped) and library.mallopt(M_TRIM_THRESHOLD, trimmed))
    except (OSError, AttributeError, TypeError):  # no glibc here
        return False


def accelerate(step, chosen: Choice | None = None, run_seconds: float | None = None, say=print):
    """Give an engine Step on the processor the measured threads, kept memory and, where it pays, compiled passes.

    run_seconds: how long the run will take; a run too short to win the compilation back is not compiled.
    """
    if step.device.type != "cpu":
        return step
    chosen = chosen or choice()
    keep_memory()
    if chosen.threads != torch.get_num_threads():
        torch.set_num_threads(chosen.threads)
    worth = run_seconds is None or run_seconds > COMPILE_PAYS_AFTER * chosen.compile_seconds
    if chosen.compile and worth and not isinstance(step.loss, CompiledLoss):
        step.loss = CompiledLoss(step.loss, say)
    return step


def _given() -> dict:
    """RESLIB_TUNE as a dictionary, checked."""
    text = os.environ.get("RESLIB_TUNE", "").strip()
    if text in ("", "measure"):
        return {"measure": True} if text else {}
    from .recipe import parse_options

    values = parse_options(text)
    for name, value in values.items():
        choose("RESLIB_TUNE field", name, ("precision", "threads", "compile"))
        if name == "precision":
            choose("RESLIB_TUNE precision", value, PRECISIONS)
        elif name == "threads" and (type(value) is not int or value < 1):
            raise UserError(f"RESLIB_TUNE threads {value!r} must be a whole number above 0")
        elif name == "compile" and type(value) is not bool:
            raise UserError(f"RESLIB_TUNE compile {value!r} must be true or false")
    return values


def _cached() -> dict:
    """What the cache file holds, entries that make sense only; a damaged file counts as empty."""
    try:
        entries = json.loads(cache_file().read_text())
        return {k: {**v, "origin": "cached"} for k, v in entries.items() if _sound(v)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _sound(entry) -> bool:
    names = {f.name for f in dataclasses.fields(Choice)}
    return (
        isinstance(entry, dict)
        and {"precision", "threads", "compile"} <= set(entry) <= names
        and entry["precision"] in PRECISIONS
        and isinstance(entry["threads"], int)
        and entry["threads"] > 0
    )


def _store(entry: dict) -> None:
    with contextlib.suppress(UserError):  # a cache that cannot be written costs two seconds per process
        write_json(cache_file(), {**_cached(), machine_key(): entry})
