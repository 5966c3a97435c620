"""Runs the notebooks with papermill: all of them, to the end, and names what failed.

papermill writes its output from the start and marks cells completed that never ran, so a notebook is executed under a
temporary name and takes its own name only when papermill returned without an error. Which ones a batch has finished
stands in a file of its own until all of them are: the same command, started again, leaves those alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from pathlib import Path

from .durations import in_words
from .errors import UserError, choose, tell_once
from .files import alone, folder_of, holder, make_folder, write_json
from .presets import preset_of
from .provenance import source
from .runs import is_locked, results_root
from .stopping import sigterm_raises

TEMPORARY = ".running.ipynb"
# Silences the kernel's log, which reports its own messaging only. A kernel that has died is noticed and named here.
QUIET = "--log-level=CRITICAL"
BATCH = ".batch.json"  # of a batch that has not been finished


def notebook_folder() -> Path:
    """Where the source notebooks are: $RESLIB_NOTEBOOKS, or `notebooks/` of the checkout or of this folder."""
    if os.environ.get("RESLIB_NOTEBOOKS"):
        return Path(os.environ["RESLIB_NOTEBOOKS"])
    beside = Path(__file__).resolve().parent.parent / "notebooks"
    return beside if beside.is_dir() else Path.cwd() / "notebooks"


def notebook_names() -> list[str]:
    """All notebooks, the CIFAR-10 table last: its scoreboard judges what the others leave."""
    names = sorted(p.stem for p in notebook_folder().glob("*.ipynb"))
    return sorted(names, key=lambda name: name == "cifar10_table")


def run_notebooks(arguments, results: Path, train: bool = True) -> int:
    """Execute the chosen notebooks into results/<preset>/notebooks/; returns the exit code.

    train: False has those that draw what is on record train and measure nothing.
    """
    names = list(dict.fromkeys(arguments.notebooks or notebook_names()))
    if not names:
        raise UserError(f"no notebooks in {notebook_folder()}: run this from a checkout")
    for name in names:
        choose("notebook", name, notebook_names())
    preset = preset_of(arguments.preset).name
    out = results / preset / "notebooks"
    make_folder(out)
    values = {
        "preset": preset,
        "data_root": str(folder_of("data root", arguments.data_root)) if arguments.data_root else "",
        "results": "" if results == results_root() else str(results),  # a copy executed again finds its own
        "seeds": arguments.seeds,
        "device": arguments.device,
        "train": train,
    }
    os.environ["RESLIB_DOWNLOAD"] = "off"  # the runs before this have tried; twelve kernels need not try again
    if is_locked(out.parent):
        print(f"{holder(out.parent / 'lock')} executes notebooks into {out}: waiting for it", flush=True)
    with sigterm_raises(_interrupted), alone(out.parent / "lock"):
        failures = run_batch(names, out, values, arguments.traceback)
    written = sorted(p for kind in ("figures", "tables") for p in (out.parent / kind).glob("[!.]*.*"))
    print(f"{len(names) - len(failures)} of {len(names)} notebooks done; figures and tables in {out.parent}:")
    for path in written:
        print(f"  {path.relative_to(out.parent)}")
    for name, text in failures.items():
        failed = out / f"{name}.failed.ipynb"
        print(f"FAILED {name}: {text}{f' (see {failed})' * failed.exists()}", file=sys.stderr)
    return 1 if failures else 0


def run_batch(names: list[str], out: Path, values: dict, traceback: bool = False) -> dict[str, str]:
    """Execute the notebooks that this batch has not finished yet; what failed, and how, in one line each.

    traceback: also print the whole traceback of what failed, and what the kernels log.
    """
    for stale in out.glob(f"*{TEMPORARY}"):
        stale.unlink()  # a kernel or this command was killed in the middle of it
    batch, failures = Batch(out, names, values), {}
    for name in names:
        if batch.has(name):
            print(f"notebook {name} was done before this batch was interrupted", flush=True)
            continue
        started = time.monotonic()
        print(f"notebook {name} ...", flush=True)
        try:
            run_notebook(name, out, values, [] if traceback else [QUIET])
            batch.add(name)
            print(f"notebook {name} done in {in_words(time.monotonic() - started)}", flush=True)
        except Exception as error:
            failures[name] = describe(error, out / f"{name}.failed.ipynb")
            if traceback:
                print(error, file=sys.stderr, flush=True)
            print(f"notebook {name} FAILED: {failures[name]}", flush=True)
    if not failures:
        batch.end()
    return failures


class Batch:
    """Which notebooks of this very batch are done: same notebooks, parameters and code, and the records they read."""

    def __init__(self, out: Path, names: list[str], values: dict):
        self.out, self.file = out, out / BATCH
        digest = hashlib.sha256(json.dumps([names, values, source(), os.environ.get("RESLIB_DATA")]).encode())
        for name in names:
            digest.update((notebook_folder() / f"{name}.ipynb").read_bytes())
        self.key, self.done = digest.hexdigest(), {}
        try:
            there = json.loads(self.file.read_bytes())
            if there["batch"] == self.key:
                self.done = dict(there["done"])
        except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: everything is done again
            pass

    def has(self, name: str) -> bool:
        """Whether the notebook was executed in this batch, when the ended records were those of now."""
        return self.done.get(name) == self.records() and (self.out / f"{name}.ipynb").exists()

    def records(self) -> str:
        """A hash over the ended records: their names, sizes and times, compared with no clock."""
        digest = hashlib.sha256()
        for summary in sorted(self.out.parent.glob("runs/*/summary.json")):
            stat = summary.stat()
            digest.update(f"{summary.parent.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def add(self, name: str) -> None:
        """Note that a notebook is done."""
        self.done[name] = self.records()
        try:
            write_json(self.file, {"batch": self.key, "done": self.done})
        except UserError as error:  # the notebook itself is there
            tell_once(f"note: if this batch is interrupted, what it has done will be done again: {error}")

    def end(self) -> None:
        """Forget the batch: all of it is done."""
        self.file.unlink(missing_ok=True)


def run_notebook(name: str, out: Path, values: dict, kernel_options: list[str]) -> Path:
    """Execute one notebook; raises papermill's or nbclient's error, keeping the output as <name>.failed.ipynb.

    UserError when the output cannot be written; then none is kept, but what an earlier time finished stays.
    """
    try:
        import papermill
    except ImportError as error:
        raise UserError('papermill is not installed: pip install "reslib[notebooks]"') from error
    source = notebook_folder() / f"{name}.ipynb"
    known = papermill.inspect_notebook(_format(source))
    temporary, failed, done = out / f"{name}{TEMPORARY}", out / f"{name}.failed.ipynb", out / f"{name}.ipynb"
    failed.unlink(missing_ok=True)
    given = {key: value for key, value in values.items() if key in known}
    try:
        papermill.execute_notebook(
            _format(source),
            _format(temporary),
            given,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(Path.cwd()),
            extra_arguments=kernel_options,
        )
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
    except BaseException as error:
        if cells_of(temporary):
            os.replace(temporary, failed)
        temporary.unlink(missing_ok=True)  # papermill cuts it off before it finds that the disk is full
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise UserError(f"cannot write {temporary}: {error.strerror or error}") from error
        raise
    os.replace(temporary, done)
    return done


def _interrupted() -> KeyboardInterrupt:
    """The interruption; what nbclient and asyncio log from here on is about the kernel that is being ended."""
    logging.disable(logging.CRITICAL)
    return KeyboardInterrupt()


def _format(path: Path) -> str:
    """papermill takes paths as formats."""
    return str(path).replace("{", "{{").replace("}", "}}")


def describe(error: Exception, executed: Path | None = None) -> str:
    """The cell and the error in one line; `executed`: the notebook as papermill left it."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    if name == "DeadKernelError" or str(value).startswith("Kernel died"):  # the latter while it starts
        name, value = "DeadKernelError", "the kernel died: killed, or out of memory"
    cell = last_started(executed)
    where = f"cell {cell}: " if cell else ""
    kind = "" if name == UserError.__name__ else f"{name}: "  # which says all there is to say
    return f"{where}{kind}{' '.join(str(value).split())}"


def last_started(executed: Path | None) -> int:
    """The number of the last code cell that was begun, counted as Jupyter does from 1; 0 when there is none.

    Neither papermill's status nor its error tell after a kernel has died.
    """
    code = [c for c in cells_of(executed) if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    begun = [i for i, c in enumerate(code, start=1) if c["metadata"].get("papermill", {}).get("start_time")]
    return max(begun, default=0)


def cells_of(notebook: Path | None) -> list[dict]:
    """The cells of a notebook's file; none when it is missing or was cut off."""
    try:
        return json.loads(notebook.read_bytes())["cells"]
    except (AttributeError, OSError, ValueError, KeyError):
        return []
