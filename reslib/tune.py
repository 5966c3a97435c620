"""How this machine trains fastest on its processor: precision, layout, threads. Measured, not guessed from flags.

A processor may advertise bf16 and run it at half the fp32 rate, so the candidates train a small net for a few seconds
and the fastest are kept in a file of the user's cache, keyed by processor, cores and torch version. To choose oneself:
RESLIB_TUNE="precision=fp32,layout=channels-last,threads=2,compile=false" (any of them); RESLIB_TUNE="measure" measures
anew. Compilation (compilation.py), other algorithms of convolution (convolutions/) and fused batch norms
(fused_norm.py) are tried on the network itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from .errors import UserError, choose, shown, tell_once
from .files import alone_where_possible, folder_of, write_json
from .machine import cores, cpuinfo, user_cache
from .models import build_model

VERSION = 5  # of what is measured; a change makes cached choices stale
MARGIN = 1.03  # a candidate must beat the plainer one by this factor: noise must not decide
PRECISIONS = ("fp32", "bf16")
LAYOUTS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
# Beside the cache: what was faster (trials.py). Compilations for a GPU take another time than those for the processor.
COMPILE, COMPILE_GPU, UNITS, UNITS_GPU, CONVOLUTIONS, FUSED = TRIALS = (
    "compile.json",
    "compile-gpu.json",
    "units.json",
    "units-gpu.json",
    "convolutions.json",
    "fused.json",
)
LONG = 500  # iterations from which a run is worth measuring for
EAGER = dict.fromkeys(("compile", "fourier", "winograd", "fused", "units"), False)  # of a Choice: no faster pass
FIELDS = ("precision", "layout", "threads", *EAGER)  # of RESLIB_TUNE
MAX_THREADS = 1024  # far more than help; a request for very many of them ends the process without a word
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
DEFAULT_THREADS = torch.get_num_threads()  # before anything here asks for another number


@dataclass(frozen=True)
class Choice:
    """How to train on this processor. `seconds` is the evidence: candidate -> seconds per step of the probe."""

    precision: str
    threads: int
    layout: str = "channels-last"
    compile: bool | None = None  # None: tried on every network whose run is long enough
    fourier: bool | None = None  # large convolutions by their transforms; None: where a trial finds that faster
    winograd: bool | None = None  # 3x3 convolutions by minimal filtering; None: as above
    fused: bool | None = None  # batch norm, addition and ReLU in one go; None: as above
    units: bool | None = None  # these and the convolution on matrix tiles; None: as above
    seconds: dict = dataclasses.field(default_factory=dict)
    origin: str = "measured"  # "measured", "cached", "given" or "default"
    pinned: bool = False  # the threads were asked for: they stand above those that a run was begun with

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in self.seconds.items())
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.precision}, {self.layout}, {threads} ({self.origin}{': ' if rates else ''}{rates})"


def cache_file() -> Path:
    """$RESLIB_CACHE/tune.json, by default in the user's cache folder. UserError for what cannot be a folder."""
    given = os.environ.get("RESLIB_CACHE")
    return (folder_of("RESLIB_CACHE", given) if given else user_cache()) / "tune.json"


def machine_key() -> str:
    """What the choice depends on: processor, usable cores, threads asked for, torch."""
    found, wanted = cpuinfo(), ("vendor_id", "cpu family", "model", "model name", "stepping")
    name = " ".join(found.get(k, "") for k in wanted).strip() or platform.processor() or platform.machine()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = f"OMP {asked or '-'} | {DEFAULT_THREADS} threads"
    return f"{name} | {cores()} cores | {threads} | torch {torch.__version__} | v{VERSION}"


def choice() -> Choice:
    """The fastest way to train on this processor: given by RESLIB_TUNE, cached, or measured now."""
    given = _given()
    known = None if given.pop("measure", False) else _cached().get(machine_key())
    if {"precision", "threads"} <= set(given):
        return Choice(**given, origin="given")
    if known is None:
        known = dataclasses.asdict(measure())
        _store(known)
    return Choice(**known | given | ({"origin": "given"} if given else {}))


def asked(field: str):
    """What RESLIB_TUNE says of a field; None where it says nothing."""
    return _given().get(field)


def measures(iterations: int, deterministic: bool = False) -> bool:
    """Whether a run is trained as measured: one that is long enough and need not give the same bits again."""
    return iterations >= LONG and not deterministic


def choice_for(iterations: int, deterministic: bool = False, threads: int | None = None) -> Choice:
    """The choice for one run. Where nothing may depend on a measurement, or none would pay, torch's own settings.

    threads: what the caller shares out among processes; like RESLIB_TUNE it stands above what was measured.
    """
    given = _given()
    given.pop("measure", None)
    if not measures(iterations, deterministic):
        chosen = Choice("", torch.get_num_threads(), **EAGER, origin="default")
        given.pop("precision", None)
        chosen = dataclasses.replace(chosen, **given, **({"origin": "given"} if given else {}))
    else:
        chosen = choice()
    pinned = bool(threads) or "threads" in given or "OMP_NUM_THREADS" in os.environ
    return dataclasses.replace(chosen, threads=threads or chosen.threads, pinned=pinned)


def measure(rounds: int = 5) -> Choice:
    """Train the probe under either precision, either layout and several numbers of threads; keep the fastest.

    Precisions and layouts are compared by the processor time of one thread, which neighbours on a shared machine hardly
    disturb (on a busy machine the clock on the wall chose the slower one). Threads can only be compared by the wall
    clock.
    """
    before, state = torch.get_num_threads(), torch.get_rng_state()
    keep_memory()
    try:
        seconds = _compare({p: Probe(p) for p in PRECISIONS}, rounds, threads=1)
        best = "bf16" if seconds["bf16"] * MARGIN < seconds["fp32"] else "fp32"
        named = {f"{p}, 1 thread": s for p, s in seconds.items()}
        layouts = _compare({name: Probe(best, layout=name) for name in LAYOUTS}, rounds, threads=1)
        layout = "contiguous" if layouts["contiguous"] * MARGIN < layouts["channels-last"] else "channels-last"
        named[f"{best} contiguous, 1 thread"] = layouts["contiguous"]
        threads, counts = DEFAULT_THREADS, {DEFAULT_THREADS}
        if "OMP_NUM_THREADS" not in os.environ:
            counts |= {n for n in (cores(), cores() // 2, cores() // 4) if n >= 1}
        if len(counts) > 1:
            probe = Probe(best, layout=layout)
            walls = {n: _compare({n: probe}, rounds, threads=n, clock=time.perf_counter)[n] for n in sorted(counts)}
            fastest = min(walls, key=walls.get)
            threads = fastest if walls[fastest] * MARGIN < walls[threads] else threads
            named |= {f"{best}, {n} threads" if n > 1 else f"{best}, 1 thread, wall clock": s for n, s in walls.items()}
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)
    return Choice(best, threads, layout, seconds=named)


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

    def __init__(self, precision: str, batch: int = 64, layout: str = "channels-last"):
        self.precision, form = precision, LAYOUTS[layout]
        self.net = build_model("resnet8", 10).to(memory_format=form).train()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=0.9, fused=True)
        self.x = torch.randn(batch, 3, 32, 32).to(memory_format=form)
        self.y = torch.arange(batch) % 10

    def step(self) -> None:
        """One training step."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.net(self.x)
        F.cross_entropy(logits.float(), self.y).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


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


def release_memory() -> None:
    """Give the memory that glibc kept back to the system: for whoever measures one network after the other."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc here
        ctypes.CDLL(None).malloc_trim(0)


def _given() -> dict:
    """RESLIB_TUNE as a dictionary. Raises UserError naming it, the value and what is allowed."""
    text = os.environ.get("RESLIB_TUNE", "").strip()
    if text in ("", "measure"):
        return {"measure": True} if text else {}
    from .recipe import parse_options

    try:
        values = parse_options(text)
    except UserError as error:
        reason, allowed = str(error).partition(": ")[2], ", ".join(FIELDS)
        raise UserError(f"RESLIB_TUNE {shown(text)}: {reason}; allowed are measure, or any of {allowed}") from error
    for name, value in values.items():
        choose("RESLIB_TUNE field", name, FIELDS)
        if name in ("precision", "layout"):
            choose(f"RESLIB_TUNE {name}", value, PRECISIONS if name == "precision" else LAYOUTS)
        elif name == "threads" and (type(value) is not int or not 1 <= value <= MAX_THREADS):
            raise UserError(f"RESLIB_TUNE threads {shown(value)} is out of range: allowed is 1 to {MAX_THREADS}")
        elif name in EAGER and type(value) is not bool:
            raise UserError(f"RESLIB_TUNE {name} {shown(value)} is unknown: allowed are true, false")
    return values


def check_environment() -> None:
    """Raise UserError when RESLIB_TUNE or RESLIB_CACHE hold what they cannot."""
    _given()
    cache_file()


def _cached() -> dict:
    """What the cache file holds, entries that make sense only; a damaged file counts as empty."""
    try:
        entries = json.loads(cache_file().read_text())
        return {k: {**v, "origin": "cached"} for k, v in entries.items() if _sound(v)}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


def _sound(entry) -> bool:
    names = {f.name for f in dataclasses.fields(Choice)}
    return (
        isinstance(entry, dict)
        and {"precision", "threads", "layout"} <= set(entry) <= names
        and entry["precision"] in PRECISIONS
        and entry["layout"] in LAYOUTS
        and type(entry["threads"]) is int
        and 0 < entry["threads"] <= MAX_THREADS
    )


def forget() -> None:
    """Remove what was measured on any machine: the next use measures anew."""
    for file in (cache_file(), *map(cache_file().with_name, TRIALS)):
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def _store(entry: dict) -> None:
    try:
        with alone_where_possible(cache_file().with_suffix(".lock")):
            write_json(cache_file(), {**_cached(), machine_key(): entry})
    except UserError as error:  # it costs two seconds per process
        tell_once(f"note: the settings of this processor are measured every time: {error}")
