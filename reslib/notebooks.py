"""Runs the notebooks with papermill: all of them, to the end, and names what failed.

papermill writes its output from the start and marks cells completed that never ran, so a notebook is executed under a
temporary name and takes its own name only when papermill returned without an error.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from .errors import UserError, choose

TEMPORARY = ".running.ipynb"


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


def run_notebooks(arguments, results: Path) -> int:
    """Execute the chosen notebooks into results/<preset>/notebooks/; returns the exit code."""
    names = arguments.notebooks or notebook_names()
    if not names:
        raise UserError(f"no notebooks in {notebook_folder()}: run this from a checkout")
    for name in names:
        choose("notebook", name, notebook_names())
    out = results / arguments.preset / "notebooks"
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob(f"*{TEMPORARY}"):
        stale.unlink()  # a kernel or this command was killed in the middle of it
    values = {
        "preset": arguments.preset,
        "data_root": str(Path(arguments.data_root).resolve()) if arguments.data_root else "",
        "results": str(results),
        "seeds": arguments.seeds,
        "device": arguments.device,
    }
    os.environ["RESLIB_DOWNLOAD"] = "off"  # the runs before this have tried; twelve kernels need not try again
    failures = {}
    for name in names:
        started = time.monotonic()
        print(f"notebook {name} ...", flush=True)
        try:
            run_notebook(name, out, values)
            print(f"notebook {name} done in {time.monotonic() - started:.0f} s", flush=True)
        except KeyboardInterrupt:
            raise
        except Exception as error:
            failures[name] = describe(error)
            print(f"notebook {name} FAILED: {failures[name]}", flush=True)
    written = sorted(p for kind in ("figures", "tables") for p in (out.parent / kind).glob("*.*"))
    print(f"{len(names) - len(failures)} of {len(names)} notebooks done; figures and tables in {out.parent}:")
    for path in written:
        print(f"  {path.relative_to(out.parent)}")
    for name, text in failures.items():
        print(f"FAILED {name}: {text} (see {out / name}.failed.ipynb)", file=sys.stderr)
    return 1 if failures else 0


def run_notebook(name: str, out: Path, values: dict) -> Path:
    """Execute one notebook; raises papermill's or nbclient's error, keeping the output as <name>.failed.ipynb."""
    try:
        import papermill
    except ImportError as error:
        raise UserError('papermill is not installed: pip install "reslib[notebooks]"') from error
    source = notebook_folder() / f"{name}.ipynb"
    known = papermill.inspect_notebook(str(source))
    temporary, failed, done = out / f"{name}{TEMPORARY}", out / f"{name}.failed.ipynb", out / f"{name}.ipynb"
    given = {key: value for key, value in values.items() if key in known}
    try:
        papermill.execute_notebook(
            str(source), str(temporary), given, kernel_name="python3", progress_bar=False, cwd=str(Path.cwd())
        )
    except BaseException:
        if temporary.exists():
            os.replace(temporary, failed)
        raise
    os.replace(temporary, done)
    failed.unlink(missing_ok=True)
    return done


def describe(error: Exception) -> str:
    """The cell and the error in one line."""
    name, value = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    cell = getattr(error, "exec_count", None) or getattr(error, "cell_index", None)
    where = f"cell {cell}: " if cell is not None else ""
    return f"{where}{name}: {' '.join(str(value).split())}"
