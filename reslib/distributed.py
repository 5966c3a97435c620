"""One process, or the processes that torchrun started: rank, sums over them, and DistributedDataParallel."""

from __future__ import annotations

import atexit
import contextlib
import inspect
import os
import time
import uuid
from datetime import timedelta

import torch
import torch.distributed as dist

from .errors import UserError


class Group:
    """A single process: every reduction is the identity."""

    rank, world = 0, 1

    def device(self, device: torch.device) -> torch.device:
        """The device of this process."""
        return device

    def wrap(self, module, device, unused: bool):
        """The module, its gradients averaged over processes; unused: some parameters may take no part in a step."""
        return module

    def sync_at(self, module, last: bool):
        """A context in which gradients are averaged only at the last micro-batch of a step."""
        return contextlib.nullcontext()

    def sum(self, tensor: torch.Tensor) -> None:
        """Sum over processes, in place."""

    def average(self, tensors: list[torch.Tensor]) -> None:
        """Mean over processes, in place. Moving averages are linear in what went in, so their mean is exact."""

    def maximum(self, value: float) -> float:
        """The largest of all processes' values."""
        return value

    def gather(self, value) -> list:
        """All processes' values, in order of rank."""
        return [value]

    def broadcast(self, value):
        """What the first process gives; the others' values are not looked at."""
        return value


class TorchrunGroup(Group):
    """One of the processes of a torchrun job; gloo on CPUs, NCCL on GPUs."""

    def __init__(self):
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))

    def device(self, device):
        if device.type == "cuda":
            device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(device)
        return device

    def wrap(self, module, device, unused):
        # Buffers stay local during steps: each process has its own micro-batch statistics; average() joins them.
        parallel = torch.nn.parallel.DistributedDataParallel
        new, old = "forward_sync_buffers", "broadcast_buffers"  # its name before torch 2.14, deprecated since
        local = {new if new in inspect.signature(parallel).parameters else old: False}
        ids = [device] if device.type == "cuda" else None
        return parallel(module, device_ids=ids, find_unused_parameters=unused, **local)

    def sync_at(self, module, last):
        return contextlib.nullcontext() if last else module.no_sync()

    def sum(self, tensor):
        dist.all_reduce(tensor)

    def average(self, tensors):
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor /= self.world

    def maximum(self, value):
        tensor = torch.tensor([float(value)], dtype=torch.float64)  # over gloo: a GPU need not be waited for
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.item()

    def gather(self, value):
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value):
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


ALONE = Group()


def group() -> Group:
    """The group of this process; of a torchrun job, joined at the first call and left when the process ends."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(f"WORLD_SIZE is set, but {', '.join(missing)} not: start several processes with torchrun")
    mine = TorchrunGroup()
    if torch.cuda.is_available():
        torch.cuda.set_device(mine.local_rank)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        common, rank, world = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=own_store(common, rank, world), rank=rank, world_size=world)
        atexit.register(dist.destroy_process_group)
    return mine


def own_store(common: dist.Store, rank: int, world: int, patience: float = 600.0) -> dist.Store:
    """Where the processes of this very attempt find each other. patience: seconds to wait for the first of them.

    torchrun keeps one store, `common`, for all its restarts, and a restarted process that reads there what a killed one
    has left tries to reach it and fails (pytorch/pytorch#135712). So the first process opens a new store and leaves its
    port in torchrun's. Where nobody answers with the right token, it is that of an earlier attempt and is read again.
    """
    host, end = os.environ["MASTER_ADDR"], time.monotonic() + patience
    if rank == 0:
        store, token = dist.TCPStore(host, 0, world, is_master=True, wait_for_workers=False), uuid.uuid4().hex
        store.set("token", token)
        common.set("reslib", f"{store.port} {token}")
        return store
    while True:
        port, token = common.get("reslib").decode().split()
        try:
            store = dist.TCPStore(host, int(port), world, wait_for_workers=False, timeout=timedelta(seconds=3))
            if store.get("token").decode() == token:
                store.set_timeout(common.timeout)
                return store
        except RuntimeError:  # nobody there, or another program
            if time.monotonic() > end:
                raise
        time.sleep(0.2)


def first() -> bool:
    """Whether this process is the one that speaks for its torchrun job."""
    return int(os.environ.get("RANK", "0")) == 0


def check_divisible(recipe, world: int) -> None:
    """Each process takes an equal number of micro-batches. Raises UserError naming what is allowed."""
    if recipe.batch_size % world:
        counts = [n for n in range(1, recipe.batch_size + 1) if recipe.batch_size % n == 0]
        raise UserError(
            f"batch_size {recipe.batch_size} cannot be shared equally by {world} processes: allowed are "
            f"{', '.join(map(str, counts))} processes, or a batch size that is a multiple of {world}"
        )
    if recipe.accumulation % world:
        raise UserError(
            f"accumulation {recipe.accumulation} cannot be shared by {world} processes: set it to a multiple of {world}"
        )
