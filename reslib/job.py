"""A run in training: everything that is set up before the first step."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from dataclasses import dataclass, field

import torch
from torch import nn

from . import compilation, data, distributed, gpu_trials, own_network
from .checkpoint import State, restore
from .complexity import multiply_adds, weighted_layers
from .engine import Step, make_optimizer, make_step
from .errors import UserError
from .machine import multi_process_service
from .networks import check_own, make_model
from .numerics import CUBLAS, resolve_device, resolve_precision, use
from .provenance import environment, now
from .recipe import Recipe
from .runs import Run
from .tune import EAGER, LAYOUTS, Choice, choice_for, keep_memory, measures
from .window import Window


@dataclass(frozen=True)
class Execution:
    """How a recipe is run; nothing here changes its result (on one machine)."""

    device: str = "auto"
    deterministic: bool = False
    time_limit: float | None = None  # seconds for this call, then a checkpoint and Interrupted
    checkpoint_seconds: float = 60.0  # at most this much work is lost
    activation_checkpointing: bool = False
    patience: float = math.inf  # seconds to wait for another process that trains the same run
    tensorboard: bool = False
    eager: bool = False  # no CUDA graph, not compiled: the reference that the fast path is compared with
    threads: int | None = None  # of the processor; None: as measured (tune.py)


PLAIN = Execution()


@dataclass
class Job:
    """One recipe, its data, network and optimiser, and what has been measured so far."""

    run: Run
    preset: str
    group: distributed.Group
    device: torch.device
    source: data.DataSource
    batches: data.MemoryBatches  # or what offers the same
    model: nn.Module
    optimizer: torch.optim.SGD
    step: Step
    window: Window
    state: State
    costs: dict
    rows: list[dict] = field(default_factory=list)  # one per evaluation
    sessions: list[dict] = field(default_factory=list)  # one per process that worked on the run
    speed: dict = field(default_factory=dict)  # on a processor: how it was made fast (compilation.py)
    begun: float = 0.0

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return self.run.recipe

    def begin_session(self) -> None:
        """Note from which iteration, on which machine and with which code this process trains."""
        self.sessions.append(
            {
                "from_iteration": self.state.iteration,
                "started": now(),
                **environment(self.device),
                "processes": self.group.world,
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "step": self.step.way,
                **({"multi_process_service": True} if self.device.type == "cuda" and multi_process_service() else {}),
                **({"speed": self.speed} if self.speed else {}),
            }
        )
        self.begun = time.perf_counter() - self.state.seconds

    def seconds(self) -> float:
        """Seconds of work on this run so far, over all its sessions."""
        self.state.seconds = time.perf_counter() - self.begun
        return self.state.seconds


def prepare(run: Run, data_root, preset: str, execution: Execution, group: distributed.Group, say=print) -> Job:
    """Load the data, build network and optimiser, continue from the checkpoint where there is one."""
    recipe = run.recipe
    distributed.check_divisible(recipe, group.world)
    device = group.device(resolve_device(execution.device))
    use(device)
    set_deterministic(execution.deterministic, device)
    source, batches = _load(recipe, data_root, device, group)
    model = make_model(recipe, len(source.classes), run.path.parent)
    check_own(model, recipe, len(source.classes))
    costs = {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "multiply_adds": multiply_adds(model, recipe.crop_size),
        "layers": weighted_layers(model),
    }
    chosen = None
    if device.type == "cpu":
        keep_memory()
        chosen = choice_for(recipe.iterations, execution.deterministic, execution.threads)
    layout = LAYOUTS[chosen.layout if chosen else "channels-last"]
    model.to(device, memory_format=layout).train()
    if execution.activation_checkpointing:
        _checkpoint_activations(model, recipe, say)
    optimizer = make_optimizer(recipe, model, device)
    window = Window(recipe, device)
    state = State(warming_up=recipe.warmup_lr > 0, fingerprint=source.fingerprint)
    state.lr = recipe.warmup_lr if state.warming_up else recipe.lr
    rows, sessions = [], []
    restore(run, model, optimizer, window, state, rows, sessions, device, group)
    _as_begun(recipe, state, source)
    may_measure = measures(recipe.iterations, execution.deterministic)
    state.precision = state.precision or group.broadcast(resolve_precision(recipe.precision, device, may_measure))
    if device.type == "cuda" and state.precision == "fp32":  # fp32 is what the fast path is proved against: no TF32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    step = make_step(recipe, model, optimizer, device, state.precision, group, execution.eager)
    step.layout = layout
    job = Job(run, preset, group, device, source, batches, model, optimizer, step, window, state, costs, rows, sessions)
    _accelerate(job, execution, chosen, may_measure, say)
    job.begin_session()
    return job


def _load(
    recipe: Recipe, data_root, device: torch.device, group: distributed.Group
) -> tuple[data.DataSource, data.MemoryBatches]:
    """The data of a recipe, the same in all processes, and its batches on the device."""
    source = data.load(recipe.dataset, data_root)
    if len(prints := set(group.gather(source.fingerprint))) > 1:
        raise UserError(f"the processes of this job read different data: fingerprints {', '.join(sorted(prints))}")
    batches = data.batches_for(recipe, source, device)
    if recipe.batch_size > len(batches):  # it would hold some of them twice
        raise UserError(f"batch_size {recipe.batch_size} is more than the {len(batches)} images to train on")
    return source, batches


def _checkpoint_activations(model: nn.Module, recipe: Recipe, say) -> None:
    if hasattr(model, "activation_checkpointing"):
        model.activation_checkpointing = True
    else:  # the numbers are the same without it: no reason to leave the rest of a plan untrained
        say(f"{recipe.run_name}: without activation checkpointing, which plain and residual nets alone have")


def _as_begun(recipe: Recipe, state: State, source: data.DataSource) -> None:
    """A run goes on with the data and the network it was begun on; the latter's source is noted at its beginning."""
    if state.fingerprint != source.fingerprint:
        raise UserError(
            f"run {recipe.run_name} was begun on data {state.fingerprint}, but the data here is {source.fingerprint}"
        )
    own_network.check(recipe, state.network_source)
    state.network_source = state.network_source or own_network.source_of(recipe.model)


def _accelerate(job: Job, execution: Execution, chosen: Choice | None, may_measure: bool, say) -> None:
    """Make the job's step fast, as its device does; chosen: how, on a processor."""
    recipe, state, sessions = job.recipe, job.state, job.sessions
    left = recipe.iterations - state.iteration

    def say_whose(text) -> None:
        say(f"{recipe.run_name}: {text}")

    if job.device.type == "cuda" and not execution.eager:
        gpu_trials.accelerate(
            job.step, left=left, limit=execution.time_limit, sessions=sessions, measure=may_measure, say=say_whose
        )
    if chosen:
        chosen = dataclasses.replace(chosen, **EAGER) if execution.eager else chosen
        at, rank, world = state.iteration, job.group.rank, job.group.world
        job.speed = compilation.accelerate(
            job.step,
            chosen,
            batch=lambda: next(job.batches.stream(at, at + 1, rank, world)),
            left=left,
            limit=execution.time_limit,
            before=sessions[-1].get("speed") if sessions else None,
            say=say_whose,
        )
        if chosen.origin != "default":
            say_whose(compilation.describe(state.precision, job.speed))


def set_deterministic(wanted: bool, device: torch.device) -> None:
    """The same bits every time, or the fastest kernels."""
    if wanted:
        os.environ.setdefault(*CUBLAS)
    if wanted != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler: seconds
        torch.use_deterministic_algorithms(wanted)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not wanted
