"""`reslib bench`: reslib beside the loop everyone writes, in one process, in alternating turns (README, Speed).

Command: `reslib bench --models resnet20,resnet56`. Time: about 3 minutes a model on two CPU cores or on a GPU.
All of it, with how cost grows and several seeds at once: `reslib bench --whole`, about 45 minutes on two cores.
With little time, on a GPU: `reslib bench --whole --time-limit 8m --rounds 3 --seconds 1`, the most important first.
Writes results/bench/<device>-<date>.json and .md. PyTorch is imported when something is measured, not to read records.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import time

from ..cli import ArgumentError, add_common, duration, number, results_of
from ..errors import UserError, choose, reason
from ..files import make_folder

CONTENDERS = "usual,fp32,fast"
CIFAR_SETS = ("cifar10", "synthetic")
IMAGENET_SETS = ("imagenet", "imagenette", "synthetic-imagenet")
LARGEST = 100_000  # of a depth, batch or width


def add_arguments(parser) -> None:
    add_common(parser, preset=None)
    parser.add_argument("--models", default="resnet20,resnet56", help="names joined by commas; none: no comparison")
    parser.add_argument("--batch-sizes", default="128", help="numbers joined by commas")
    parser.add_argument("--devices", default="auto", help="auto, cpu, mps, cuda or cuda:N, joined by commas")
    parser.add_argument(
        "--contenders",
        default=CONTENDERS,
        help="the first is the measure: see contenders.py",
    )
    parser.add_argument("--dataset", default=None, help=f"{' or '.join(CIFAR_SETS)} (default: what is found)")
    parser.add_argument("--rounds", type=number(int, 1, 10_000), default=7, help="turns of each contender")
    parser.add_argument("--seconds", type=number(float, 0.01, 3600), default=3.0, help="length of a turn")
    parser.add_argument(
        "--workers",
        type=number(int, 0, 1024),
        default=None,
        help="of the usual loop (default: one per core, at most 8)",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--tried", action="store_true", help="also what was tried and dropped, on the first model")
    parser.add_argument("--scaling", action="store_true", help="images/s against depth, batch size, width")
    for name in ("depths", "batches", "widths"):
        parser.add_argument(f"--{name}", default="", help=f"{name} of --scaling, joined by commas")
    parser.add_argument(
        "--seeds-at-once",
        type=number(int, 0, 100),
        default=0,
        metavar="N",
        help="N seeds one after the other, and at once",
    )
    parser.add_argument("--seed-models", default="resnet20", help="networks of --seeds-at-once, joined by commas")
    parser.add_argument("--loader", action="store_true", help="ImageNet loader alone, network alone, both")
    parser.add_argument("--loader-model", default="resnet18")
    parser.add_argument("--loader-dataset", default=None, help=", ".join(IMAGENET_SETS))
    parser.add_argument(
        "--loader-steps", type=number(int, 1, 1_000_000), default=10, help="batches in a turn of --loader"
    )
    parser.add_argument("--loader-preset", default="medium", help="whose crop and batch size --loader uses")
    parser.add_argument("--whole", action="store_true", help="all of this for the paper's networks: one command")
    parser.add_argument("--start", action="store_true", help="seconds from a process's start to its first step")
    parser.add_argument(
        "--time-limit", type=duration, default=None, metavar="8m", help="begin no further part or turn after this"
    )
    parser.add_argument("--tune", action="store_true", help="measure this processor's settings anew, compilation too")


def main(arguments) -> int:
    from .. import tune
    from ..provenance import device_name
    from .report import Report

    try:
        tune.check_environment()
        if arguments.whole:
            _everything(arguments)
        asked = _checked(arguments)
    except UserError as error:
        raise ArgumentError(str(error)) from error
    failed = False
    for device in asked["devices"]:
        print(f"{device_name(device)}:")
        report = Report(results_of(arguments) / "bench")
        make_folder(report.folder)
        try:
            record = measure(arguments, device, asked, keep=report.write)
            failed |= bool(record and record["failed"])
        finally:
            if report.path:
                print(f"written: {report.path} and {report.path.with_suffix('.md').name}", flush=True)
    return int(failed)


def measure(arguments, device, asked: dict, say=print, keep=lambda record, show=True: None) -> dict:
    """Everything that was asked for, on one device, as one record; keep(record) is called after each part of it.

    A part that fails is named with its reason, and the rest goes on. After the time limit no part is begun.
    """
    import torch

    from .. import data, tune
    from ..numerics import use
    from ..provenance import environment, now

    root = arguments.data_root
    end = math.inf if arguments.time_limit is None else time.monotonic() + arguments.time_limit
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    record = {
        "date": now(),
        "environment": environment(device),
        "load": load and round(load, 2),
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32},
        "tuned": None,
        "dataset": arguments.dataset or data.choose_dataset("cifar", root),
        "comparisons": [],
        "scaling": [],
        "seeds": [],
        "loading": [],
        "start": {},
        "failed": {},
        "left_out": [],
    }
    if device.type == "cpu":
        if arguments.tune:
            tune.forget()
        record["tuned"] = str(tune.choice())
        if os.environ.get("RESLIB_TUNE") == "measure":
            del os.environ["RESLIB_TUNE"]  # measured and kept: not again for every contender
        say(f"  settings: {record['tuned']}")
    if device.type == "cuda":
        use(device)
        torch.backends.cudnn.benchmark = True
    source = data.load(record["dataset"], root)
    for name, part in _parts(arguments, device, asked, source, record, end, say, keep).items():
        if time.monotonic() >= end:
            record["left_out"].append(name)
            continue
        say(name)
        try:
            part()
        except Exception as error:
            if arguments.traceback:
                raise
            record["failed"][name] = reason(error)
            say(f"  failed: {record['failed'][name]}")
        keep(record)
    if record["left_out"]:
        say(f"time limit: left out {'; '.join(record['left_out'])}")
        keep(record)
    return record


def _parts(arguments, device, asked, source, record, end, say, keep) -> dict:
    """Name -> a function that adds its part to the record; the most important first, should the time run out."""
    from .. import data
    from .compare import compare
    from .loading import loading
    from .records import TRIED
    from .scaling import scaling
    from .seeds import seeds_at_once
    from .start import start

    root, rounds, seconds = arguments.data_root, arguments.rounds, arguments.seconds
    memory, workers, parts = not arguments.no_memory, arguments.workers, {}

    def side_by_side(names, model, batch, memory):
        made = compare(names, model, batch, source, device, rounds, seconds, root, workers, memory, say, end)
        record["comparisons"].append(made)

    def seeds(model):
        made = seeds_at_once(model, arguments.seeds_at_once, source, device, rounds, seconds, root, say=say, end=end)
        record["seeds"].append(made)

    for model in asked["models"]:
        for batch in asked["batch_sizes"]:
            names = asked["contenders"]
            parts[f"{model}, batch {batch}"] = functools.partial(side_by_side, names, model, batch, memory)
    if arguments.start:
        parts["start to first step"] = lambda: record.update(start=start(source, device, root))
    for model in asked["seed_models"] if arguments.seeds_at_once else ():
        parts[f"{model}, {arguments.seeds_at_once} seeds at once"] = functools.partial(seeds, model)
    if arguments.tried and (tried := TRIED.get(device.type)):
        model, batch = (asked["models"] or ["resnet20"])[0], asked["batch_sizes"][0]
        name = f"{model}, batch {batch}: what was tried beside the eager step"
        parts[name] = functools.partial(side_by_side, ("eager", *tried), model, batch, False)
    if arguments.scaling:
        axes = {name: asked[name] for name in ("depths", "batches", "widths")}
        few = min(rounds, 3)
        points = functools.partial(scaling, source, device, few, seconds, root, memory, **axes, say=say, end=end)

        def grown(made):
            record["scaling"] = made
            keep(record, show=False)

        parts["scaling"] = functools.partial(points, keep=grown)
    if arguments.loader:
        dataset = arguments.loader_dataset or data.choose_dataset("imagenet", root)
        model, steps, preset = arguments.loader_model, arguments.loader_steps, arguments.loader_preset
        turns = functools.partial(loading, model, dataset, device, rounds, steps, root, preset)
        parts[f"loader: {model} on {dataset}"] = lambda: record["loading"].append(turns())
    return parts


GLANCES = {"smoke": "--models resnet8 --batch-sizes 16 --workers 0 --rounds 2 --seconds 0.1"}
GLANCE = "--models resnet20 --rounds 3 --seconds 1"


def glance(preset: str, dataset: str, data_root, device) -> dict:
    """The record of a few short turns of the usual loop and reslib's eager step, for the notebook; not written."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = f"{GLANCES.get(preset, GLANCE)} --contenders usual,eager --no-memory --dataset {dataset}".split()
    arguments = parser.parse_args([*words, *(["--data-root", str(data_root)] if data_root else [])])
    arguments.traceback = True  # a glance has one part: without it there is nothing to show
    return measure(arguments, device, _checked(arguments), say=_silent)


def _silent(text) -> None:
    pass


def _everything(arguments) -> None:
    """Fill in what --whole stands for."""
    from ..numerics import resolve_device

    gpu = any(resolve_device(name).type == "cuda" for name in _words(arguments.devices))
    arguments.models = "resnet20,resnet110,resnet56,resnet1202" if gpu else "resnet20,resnet56"
    arguments.scaling = arguments.loader = arguments.tried = arguments.start = True
    arguments.seeds_at_once = arguments.seeds_at_once or 5


def _checked(arguments) -> dict:
    """The lists among the arguments. Raises UserError naming what is wrong before anything is measured."""
    import torch

    from ..models import build_model
    from ..numerics import resolve_device
    from ..presets import preset_of
    from .contenders import NAMES

    lists = {n: _words(getattr(arguments, n)) for n in ("models", "contenders", "devices", "seed_models")}
    lists |= {n: _numbers(n, getattr(arguments, n)) for n in ("batch_sizes", "depths", "batches", "widths")}
    lists["contenders"] = list(dict.fromkeys(lists["contenders"]))  # one cannot be measured beside itself
    lists["models"] = [] if lists["models"] == ["none"] else lists["models"]
    for name in lists["contenders"]:
        choose("contender", name, NAMES)
    for name, sets in (("dataset", CIFAR_SETS), ("loader_dataset", IMAGENET_SETS)):
        if getattr(arguments, name) is not None:
            choose(name, getattr(arguments, name), sets)
    with of_option("loader_preset"):
        preset_of(arguments.loader_preset)
    for name in ("batch_sizes", "contenders", "devices"):
        if not lists[name]:
            raise UserError(f"{name} {getattr(arguments, name)!r} is empty: allowed is at least one")
    models = {name: lists[name] for name in ("models", "seed_models")} | {"loader_model": [arguments.loader_model]}
    for option, names in models.items():
        with of_option(option), torch.device("meta"):
            for model in names:
                build_model(model, 10)
    return lists | {"devices": [resolve_device(name) for name in lists["devices"]]}


@contextlib.contextmanager
def of_option(name: str):
    """Within the block a UserError also says which option it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name: str, text: str) -> list[int]:
    try:
        values = [int(word) for word in _words(text)]
    except ValueError:
        raise UserError(f"{name} {text!r} must be whole numbers joined by commas") from None
    if not all(1 <= v <= LARGEST for v in values):
        raise UserError(f"{name} {text!r} is out of range: allowed are numbers from 1 to {LARGEST}")
    return values
