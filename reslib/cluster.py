"""Independent runs on an existing Ray cluster: `reslib reproduce --runs-only --executor ray --address auto`.

What a cluster needs: reslib in the same version on every node, and the results folder (and the data root) on storage
that all nodes share. A run whose node is lost starts again on another and continues from its last checkpoint; a driver
that is started again finds what is done. One large run over several GPUs is torchrun's job, not this.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from pathlib import Path

import torch

from .errors import UserError, first_line
from .executor import failure_line
from .job import Execution
from .recipe import Recipe
from .runs import Run
from .stopping import Interrupted, StopSignal
from .train import train

LOST_WORKERS = 5  # times that one run's worker may die before the run counts as failed
CPUS = 2  # per run on nodes without a GPU, where they have so many
CONNECT = 10.0  # seconds for the address to answer
GOODBYE = 120.0  # seconds for all runs to write their checkpoints after Ctrl-C


def execute_on_ray(
    todo: list[Recipe],
    runs_dir: Path,
    data_root,
    preset: str,
    execution: Execution,
    address: str = "auto",
    gpus_per_run: float = 1.0,
    say=print,
) -> list[str]:
    """Train `todo` on the cluster at `address`; returns one line per failed run, the others are trained all the same.

    gpus_per_run: up to 1; 0.25 packs four thin nets on a GPU. Raises UserError when ray is missing, the address
    does not answer or gpus_per_run is not possible, and Interrupted after Ctrl-C, SIGTERM or the time limit.
    """
    if not 0 < gpus_per_run <= 1:
        raise UserError(
            f"gpus_per_run {gpus_per_run} is out of range: above 0, at most 1 (several GPUs for one run: torchrun)"
        )
    ray = _ray()
    connected_before = ray.is_initialized()
    if not connected_before:
        _connect(ray, address)
    try:
        needs, mine = _needs(ray, execution, gpus_per_run, say)
        arguments = (str(Path(runs_dir).resolve()), _absolute(data_root), preset, mine, max(1, int(needs["num_cpus"])))
        task = ray.remote(**needs, max_retries=LOST_WORKERS, retry_exceptions=False)(_train_one)
        tasks = {task.remote(recipe.to_dict(), *arguments): recipe for recipe in todo}
        return _collect(ray, tasks, Path(runs_dir), execution.time_limit, say)
    finally:
        if not connected_before:
            ray.shutdown()


def _train_one(recipe: dict, runs_dir: str, data_root, preset: str, execution: Execution, threads: int):
    """In a worker: (kind, text). Errors come back as text, so that Ray retries only what a lost worker left behind."""
    torch.set_num_threads(threads)
    recipe = Recipe.from_dict(recipe)
    try:
        summary = train(recipe, Path(runs_dir), data_root, preset, execution, lambda text: print(text, flush=True))
        return "ended", f"{recipe.run_name}: {summary['status']}"
    except Interrupted as stop:
        return "interrupted", str(stop)
    except Exception as error:
        return "failed", failure_line(recipe, error)


def _collect(ray, tasks: dict, runs_dir: Path, time_limit: float | None, say) -> list[str]:
    total, failures, stopped = len(tasks), [], ""
    with StopSignal(time_limit) as stop:
        while tasks:
            ready, _ = ray.wait(list(tasks), timeout=0.5)
            for reference in ready:
                recipe = tasks.pop(reference)
                kind, text = _answer(ray, reference, recipe)
                if kind == "ended" and not Run(runs_dir, recipe).ended:
                    kind = "failed"
                    text = f"{recipe.run_name} failed: it ended on its node, but {runs_dir} here does not have it: "
                    text += "the results folder must be on storage that all nodes share"
                say(f"[{total - len(tasks)}/{total}] {text}")
                if kind == "failed":
                    failures.append(text)
                elif kind == "interrupted":
                    stopped = text
            if stop.reason:
                _stop(ray, tasks, say)
                raise Interrupted(f"{stop.reason}; every run has its checkpoint; the same command continues")
    if stopped:
        raise Interrupted(stopped)
    return failures


def _answer(ray, reference, recipe: Recipe) -> tuple[str, str]:
    try:
        return ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        return "interrupted", f"{recipe.run_name}: cancelled; the same command continues it"
    except ray.exceptions.RayTaskError as error:  # reslib is missing there, or another version
        return "failed", f"{recipe.run_name} failed on its node: {_last_line(error)}"
    except ray.exceptions.RayError as error:
        return "failed", (
            f"{recipe.run_name} failed: its worker was lost {LOST_WORKERS + 1} times ({first_line(error)}); the same "
            "command continues it"
        )


def _stop(ray, tasks: dict, say) -> None:
    """Cancel what waits; what runs is interrupted, as by Ctrl-C, and writes its checkpoint."""
    say(f"stopping {len(tasks)} runs at their checkpoints")
    for reference in tasks:
        ray.cancel(reference, force=False)
    ray.wait(list(tasks), num_returns=len(tasks), timeout=GOODBYE)


def _needs(ray, execution: Execution, gpus_per_run: float, say) -> tuple[dict, Execution]:
    """What a run asks of the cluster, and how it executes there: the driver alone keeps the time limit."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if execution.device.startswith("cuda") or (execution.device == "auto" and gpus):
        if not gpus:
            say("the cluster has no GPU yet: the runs wait for one")
        needs, device = {"num_cpus": 1, "num_gpus": gpus_per_run}, "cuda"  # Ray shows a worker its own GPU alone
    else:
        most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1)
        needs, device = {"num_cpus": min(CPUS, most) or 1, "num_gpus": 0}, "cpu"
    return needs, dataclasses.replace(execution, device=device, time_limit=None)


def _ray():
    try:
        import ray
    except ImportError as error:
        raise UserError('ray is not installed: pip install "reslib[cluster]", on every node') from error
    return ray


def _connect(ray, address: str) -> None:
    try:
        if match := re.fullmatch(r"([\w.-]+):(\d+)", address):  # Ray itself would try for minutes
            socket.create_connection((match[1], int(match[2])), timeout=CONNECT).close()
        ray.init(address=address, logging_level="warning", log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"no Ray cluster at address {address!r}: start one with `ray start --head` ({first_line(error)})"
        ) from error


def _absolute(data_root) -> str | None:
    """The data root as every node names it; $RESLIB_DATA of the driver counts for all."""
    given = data_root or os.environ.get("RESLIB_DATA")
    return str(Path(given).expanduser().resolve()) if given else None


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
