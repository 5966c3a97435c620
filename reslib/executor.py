"""Where missing runs execute: in this process, in one process per device, or on a Ray cluster.

Results do not depend on it.
"""

from __future__ import annotations

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
from .files import make_folder
from .job import PLAIN, Execution
from .machine import available_memory, cores
from .numerics import resolve_device
from .recipe import Recipe
from .runs import Run
from .stopping import Interrupted, sigterm_raises
from .train import train
from .tune import DEFAULT_THREADS, choice, measures

EXECUTORS = ("auto", "inline", "local", "together", "ray")
CPU_WORKERS = 4  # at most: beyond, the deepest net on one thread would last longer than all others together
WORKER_MEMORY = 4 << 30  # bytes of main memory that a worker on the processor is given


def missing(recipes: list[Recipe], runs_dir: Path) -> list[Recipe]:
    """The recipes whose runs have not ended, in order; also those whose records cannot be taken, damaged or of other
    code of a network of one's own: `train` then says what to do."""
    return [recipe for recipe in recipes if not _taken(Run(runs_dir, recipe))]


def _taken(run: Run) -> bool:
    try:
        return run.ended and bool(run.summary())
    except UserError:
        return False


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

    executor: "inline"; "local": `workers` processes at once (0: one per GPU, or up to four that share the CPU cores);
    "together": `workers` runs at once in this process (together.py); "auto": local where that means more than one
    process; "ray": an existing cluster at `address`. A time limit counts for the whole call. Raises Interrupted when it
    is reached.
    """
    choose("executor", executor, EXECUTORS)
    todo = missing(recipes, runs_dir)
    if not todo:
        return []
    say(f"{len(todo)} of {len(recipes)} runs to train in {runs_dir}")
    if executor == "ray":
        from .cluster import execute_on_ray

        return execute_on_ray(todo, runs_dir, data_root, preset, execution, address, gpus_per_run, say)
    make_folder(Path(runs_dir))  # of a folder that may only be read one line, not one for every run
    if executor == "together":
        return _together(todo, runs_dir, data_root, preset, execution, workers, say)
    if executor == "local" or (executor == "auto" and local_workers(execution, workers, len(todo)) > 1):
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


def _gpus(execution: Execution) -> int:
    """How many GPUs the runs may be spread over; 0 on a processor."""
    kind = resolve_device(execution.device).type
    if execution.device not in ("auto", "cuda"):  # one device by name
        return int(kind != "cpu")
    return {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, 0)


def local_workers(execution: Execution, asked: int, runs: int) -> int:
    """How many processes train `runs` runs at once on this machine.

    One per GPU. On a processor up to CPU_WORKERS that share the cores, as many as find WORKER_MEMORY: independent runs
    use the cores better than the threads of one run do, which wait for each other at every layer.
    """
    if asked or _gpus(execution):
        return min(asked or _gpus(execution), runs)
    return max(1, min(cores(), CPU_WORKERS, (available_memory() or WORKER_MEMORY) // WORKER_MEMORY, runs))


def _together(todo, runs_dir, data_root, preset, execution, workers, say) -> list[str]:
    from .together import AT_ONCE, train_together

    failures, end, size = [], _deadline(execution), workers or AT_ONCE

    def failed(recipe, error):
        failures.append(failure_line(recipe, error))
        say(failures[-1])

    for first in range(0, len(todo), size):
        group = todo[first : first + size]
        say(f"[{first + len(group)}/{len(todo)}] {', '.join(r.run_name for r in group)}")
        train_together(group, runs_dir, data_root, preset, _remaining(execution, end), say, failed)
    return failures


def _local(todo, runs_dir, data_root, preset, execution, workers, say) -> list[str]:
    gpus = _gpus(execution)
    count = local_workers(execution, workers, len(todo))
    threads = max(1, DEFAULT_THREADS // count)
    say(f"{count} at once, {f'on {gpus} GPUs' if gpus else f'processes of {threads} threads'}")
    if not gpus and any(measures(recipe.iterations, execution.deterministic) for recipe in todo):
        choice()  # measured once, before the workers disturb each other
    context = multiprocessing.get_context("spawn")
    queue, answers = context.Queue(), context.Queue()
    for recipe in todo:
        queue.put(recipe)
    for _ in range(count):
        queue.put(None)
    end = _deadline(execution)
    processes = []
    for number in range(count):
        device = f"cuda:{number % gpus}" if gpus > 1 else execution.device
        mine = dataclasses.replace(_remaining(execution, end), device=device, threads=threads)
        arguments = (queue, answers, str(runs_dir), data_root, preset, mine, threads)
        processes.append(context.Process(target=_work, args=arguments))  # not daemons: loaders have workers
        processes[-1].start()
    failures, interrupted, ended = [], None, 0
    with sigterm_raises(Interrupted, "SIGTERM received; every run has a checkpoint; the same command continues"):
        try:
            while any(p.is_alive() for p in processes) or not answers.empty():
                try:
                    kind, text = answers.get(timeout=0.5)
                except Empty:  # look again whether the processes live
                    continue
                ended += kind in ("ended", "failed")
                say(f"[{ended}/{len(todo)}] {text}" if kind in ("ended", "failed") else text)
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


def _end_with_parent() -> None:
    """Stop at a checkpoint when the process that started this one is gone, however it ended."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _work(queue, answers, runs_dir, data_root, preset, execution, threads):
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between runs: Ctrl-C reaches the parent too, which ends this process
    end = _deadline(execution)
    while (recipe := queue.get()) is not None:
        try:
            mine = _remaining(execution, end)
            summary = train(recipe, Path(runs_dir), data_root, preset, mine, lambda text: answers.put(("said", text)))
            answers.put(("ended", f"{recipe.run_name}: {summary['status']}"))
        except Interrupted as stop:
            answers.put(("interrupted", str(stop)))
            return
        except Exception as error:
            answers.put(("failed", failure_line(recipe, error)))
