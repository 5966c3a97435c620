"""Checkpoints: all of a run in one file, written whole, read without executing anything in it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from .engine import set_learning_rate
from .errors import UserError
from .files import whole_file
from .runs import Run

if TYPE_CHECKING:
    from .job import Job


@dataclass
class State:
    """All that a resumed run needs beside weights and momenta; data order and crops follow from the iteration."""

    iteration: int = 0
    warming_up: bool = False
    warmup_ended_at: int | None = None
    lr: float = 0.0
    precision: str = ""
    fingerprint: str = ""
    network_source: str = ""  # of a network of one's own
    seconds: float = 0.0
    unreadable: dict = field(default_factory=dict)  # images on disk that could not be decoded: name -> reason


def save(job: Job) -> None:
    """Write the checkpoint; of several processes every one must call this."""
    gathered = job.group.gather((job.window.state(), getattr(job.batches, "skipped", {})))
    window_states = [window for window, _ in gathered]
    for _, skipped in gathered:
        job.state.unreadable |= skipped
    job.group.average(job.step.averages)
    job.seconds()
    job.sessions[-1] |= {"to_iteration": job.state.iteration, "step": job.step.way}
    if job.group.rank:
        return
    content = {
        "recipe": job.recipe.digest,
        "model": job.model.state_dict(),
        "momenta": job.optimizer.state_dict()["state"],
        "state": vars(job.state),
        "rows": job.rows,
        "window": window_states,
        "sessions": job.sessions,
    }
    buffer = io.BytesIO()  # torch.save into the file itself would hide a full disk behind an error of its own
    torch.save(content, buffer)
    with whole_file(job.run.checkpoint_file, "wb") as file:
        file.write(buffer.getbuffer())


def restore(run: Run, model, optimizer, window, state: State, rows: list, sessions: list, device, group) -> None:
    """Fill all of these from the checkpoint where there is one. UserError when it is damaged or another's.

    The first process reads it for all: other machines of a job may not see its disk.
    Learning rate and options of the optimiser are not taken from the file: they are tensors on one device and numbers
    on another, and follow from the recipe.
    """
    file = run.checkpoint_file
    data = group.broadcast(file.read_bytes() if not group.rank and file.exists() else None)
    if data is None:
        set_learning_rate(optimizer, state.lr, state.lr)
        return
    try:
        saved = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        digest = saved["recipe"]
        if digest == run.recipe.digest:
            loaded = State(**saved["state"])
            model.load_state_dict(saved["model"])
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": saved["momenta"], "param_groups": groups})
            window.load(saved["window"], group)
            rows += saved["rows"]
            sessions += saved["sessions"]
    except Exception as error:  # torch raises many kinds on damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file} is not a usable checkpoint: remove it to start over ({reason})") from error
    if digest != run.recipe.digest:
        raise UserError(f"{file} belongs to recipe {digest}, not {run.recipe.digest}")
    vars(state).update(vars(loaded))
    set_learning_rate(optimizer, state.lr, state.lr)
