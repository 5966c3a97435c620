"""Where missing runs execute: in this process, in one process per device, or on a Ray cluster.

Results do not depend on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import traceback
from multiprocessing.connection import wait
from pathlib import Path
from queue import Empty

import torch

from .errors import UserError, choose
from .job import PLAIN, Execution
from .recipe import Recipe
from .runs import Run
from .stopping import Interrupted
from .train import train

EXECUTORS = ("inline", "local", "ray")


def missing(recipes: list[Recipe], runs_dir: Path) -> list[Recipe]:
    """The recipes whose runs have not ended, in order."""
    return [r for r in recipes if not Run(runs_dir, r).ended]


def execute(
    recipes: list[Recipe],
    runs_dir: Path,
    data_root=None,
    preset: str = "",
    execution: Execution = PLAIN,
    executor: str = "inline",
    workers: int = 0,
    address: str = "auto",
    gpus_per_run: float = 1.0,
    say=print,
    on_row=None,
    on_begin=None,
) -> list[str]:
    """Train what is missing; returns one line per failed run, the others are trained all the same.

    executor: "inline"; "local": `workers` processes at once (0: one per GPU, or one per two CPU cores); "ray": an
    existing cluster at `address`. A time limit counts for the whole call. Raises Interrupted when it is reached.
    """
    choose("executor", executor, EXECUTORS)
    todo = missing(recipes, runs_dir)
    if not todo:
        return []
    say(f"{len(todo)} of {len(recipes)} runs to train in {runs_dir}")
    if executor == "ray":
        from .cluster import execute_on_ray

        return execute_on_ray(todo, runs_dir, data_root, preset, execution, address, gpus_per_run, say)
    if executor == "local":
        return _local(todo, runs_dir, data_root, preset, execution, workers, say)
    failures, end = [], _deadline(execution)
    for number, recipe in enumerate(todo, start=1):
        say(f"[{number}/{len(todo)}] {recipe.run_name}")
        if on_begin:
            on_begin(recipe)
        try:
            train(recipe, runs_dir, data_root, preset, _remaining(execution, end), say, on_row)
        except Interrupted:
            raise
        except Exception as error:
            failures.append(failure_line(recipe, error))
            say(failures[-1])
    return failures


def failure_line(recipe: Recipe, error: Exception) -> str:
    """One line that names the run and the error; unexpected errors say where they came from."""
    where = ""
    if not isinstance(error, UserError):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({type(error).__name__} at {Path(frame.filename).name}:{frame.lineno})"
    return f"{recipe.run_name} failed: {str(error).splitlines()[0] if str(error) else ''}{where}"


def _deadline(execution: Execution) -> float | None:
    return None if execution.time_limit is None else time.monotonic() + execution.time_limit


def _remaining(execution: Execution, end: float | None) -> Execution:
    return execution if end is None else dataclasses.replace(execution, time_limit=max(0.0, end - time.monotonic()))


def _local(todo, runs_dir, data_root, preset, execution, workers, say) -> list[str]:
    gpus = torch.cuda.device_count() if execution.device in ("auto", "cuda") else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = min(workers or gpus or max(1, cores // 2), len(todo))
    threads = max(1, cores // count)
    context = multiprocessing.get_context("spawn")
    queue, answers = context.Queue(), context.Queue()
    for recipe in todo:
        queue.put(recipe)
    for _ in range(count):
        queue.put(None)
    end = _deadline(execution)
    processes = []
    for number in range(count):
        device = f"cuda:{number % gpus}" if gpus else execution.device
        mine = dataclasses.replace(_remaining(execution, end), device=device)
        arguments = (queue, answers, str(runs_dir), data_root, preset, mine, threads)
        processes.append(context.Process(target=_work, args=arguments, daemon=True))
        processes[-1].start()
    failures, interrupted = [], None
    with _sigterm_as_interrupted():
        try:
            while any(p.is_alive() for p in processes) or not answers.empty():
                try:
                    kind, text = answers.get(timeout=0.5)
                except Empty:  # look again whether the processes live
                    continue
                say(text)
                if kind == "failed":
                    failures.append(text)
                interrupted = text if kind == "interrupted" else interrupted
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()  # SIGTERM: a checkpoint is written first
            for process in processes:
                process.join()
    if interrupted:
        raise Interrupted(interrupted)
    for recipe in missing(todo, runs_dir):
        if not any(line.startswith(recipe.run_name) for line in failures):
            failures.append(f"{recipe.run_name} failed: its process died; the same command continues it")
            say(failures[-1])
    return failures


@contextlib.contextmanager
def _sigterm_as_interrupted():
    """SIGTERM raises Interrupted here, so that the worker processes are stopped too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise Interrupted("SIGTERM received; every run has a checkpoint; the same command continues")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent() -> None:
    """Stop at a checkpoint when the process that started this one is gone, however it ended."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _work(queue, answers, runs_dir, data_root, preset, execution, threads):
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    end = _deadline(execution)
    while (recipe := queue.get()) is not None:
        try:
            mine = _remaining(execution, end)
            summary = train(recipe, Path(runs_dir), data_root, preset, mine, lambda text: answers.put(("said", text)))
            answers.put(("said", f"{recipe.run_name}: {summary['status']}"))
        except Interrupted as stop:
            answers.put(("interrupted", str(stop)))
            return
        except Exception as error:
            answers.put(("failed", failure_line(recipe, error)))
