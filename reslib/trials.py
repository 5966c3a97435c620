"""What was tried on this machine and how it went: files beside the cache of tune.py, an entry per trial."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from .errors import UserError, tell_once
from .files import CODE, alone_where_possible, write_json
from .provenance import digest
from .tune import Choice, cache_file, machine_key

HERE = Path(__file__).parent
TRIED = (  # code of the passes
    "compilation.py",
    "convolutions",
    "fused_norm.*",
    "gpu_compilation.py",
    "models",
    "norm_loops.h",
    "thin",
    "tiles",
    "unit_trials.py",
)


def code() -> list[Path]:
    """The files of all passes that are tried."""
    found = [path for pattern in TRIED for path in HERE.glob(pattern)]
    files = [file for path in found for file in ([path] if path.is_file() else path.glob("*"))]
    return [file for file in files if file.suffix in CODE]


@functools.cache
def version() -> str:
    """A digest of these files: trials of other versions of them are not valid."""
    return digest(code(), HERE)


def known(name: str) -> dict:
    """Trials of this machine and code in a file of tune.TRIALS: key -> entry. A damaged file counts as empty."""
    return _machines(name).get(here(), {})


def keep(name: str, entries: dict) -> None:
    """Add to the trials of this machine, an entry of None removes one; of two processes neither loses the other's.

    Where the cache cannot be written, every run makes them again.
    """
    try:
        with alone_where_possible(path_of("trials.lock")):
            mine = {key: entry for key, entry in (known(name) | entries).items() if entry is not None}
            write_json(path_of(name), _machines(name) | {here(): mine})
    except UserError as error:
        tell_once(f"note: what is faster here is tried in every run: {error}")


def path_of(name: str) -> Path:
    """Beside the cache of tune.py."""
    return cache_file().with_name(name)


def here() -> str:
    """What all trials are kept under: this machine, and the code of the passes that were tried."""
    return f"{machine_key()} | passes {version()}"


def _machines(name: str) -> dict:
    try:
        machines = json.loads(path_of(name).read_text())
        return {key: entries for key, entries in machines.items() if isinstance(entries, dict)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def remembered(name: str, key: str, ask) -> bool:
    """Yes or no for this machine, from a file of tune.TRIALS or by ask(), once: all seeds take the same way.

    ask: () -> whether it is faster.
    """
    answer = known(name).get(key)
    if type(answer) is not bool:
        answer = bool(ask())
        keep(name, {key: answer})
    return answer


def network_key(step, x, chosen: Choice, algorithms=None) -> str:
    """What a trial of a step's whole network is kept under: network, shape of a batch x, precision, layout, threads.

    algorithms: layer -> algorithm of the convolutions, by default those of the step's loss.
    """
    r, algorithms = step.recipe, getattr(step.loss, "algorithms", {}) if algorithms is None else algorithms
    shape = "x".join(map(str, x.shape))
    other = "".join(f" | {layer} by {name}" for layer, name in algorithms.items())
    key = f"{r.model} {r.options} {r.shortcut} | {shape} | {step.precision} {chosen.layout} {chosen.threads} threads"
    return key + other
