"""`reslib bench`: reslib beside the loop everyone writes, in one process, in alternating turns (README, Speed).

Command: `reslib bench --models resnet20,resnet56`. Time: about 3 minutes a model on two CPU cores or on a GPU.
Writes results/bench/<device>-<date>.json and .md.
"""

from __future__ import annotations

import os

import torch

from ..cli import ArgumentError, add_common
from ..errors import UserError, choose
from ..numerics import resolve_device

CONTENDERS = "usual,fp32,fast"


def add_arguments(parser) -> None:
    add_common(parser, preset=None)
    parser.add_argument("--models", default="resnet20,resnet56", help="names joined by commas; none: no comparison")
    parser.add_argument("--batch-sizes", default="128", help="numbers joined by commas")
    parser.add_argument("--devices", default="auto", help="auto, cpu, mps, cuda or cuda:N, joined by commas")
    parser.add_argument("--contenders", default=CONTENDERS, help="of usual, fp32, bf16, compiled, fast; the first is 1")
    parser.add_argument("--dataset", default=None, help="cifar10 or synthetic (default: what is found)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a turn")
    parser.add_argument(
        "--workers", type=int, default=None, help="of the usual loop (default: one per core, at most 8)"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--scaling", action="store_true", help="images/s against depth, batch size, width")
    for name in ("depths", "batches", "widths"):
        parser.add_argument(f"--{name}", default="", help=f"{name} of --scaling, joined by commas")
    parser.add_argument("--loader", action="store_true", help="ImageNet loader alone, network alone, both")
    parser.add_argument("--loader-model", default="resnet18")
    parser.add_argument("--loader-dataset", default=None, help="imagenet, imagenette or synthetic-imagenet")
    parser.add_argument("--loader-steps", type=int, default=10, help="batches in a turn of --loader")
    parser.add_argument("--loader-preset", default="medium", help="whose crop and batch size --loader uses")
    parser.add_argument("--tune", action="store_true", help="measure this processor's settings anew, compilation too")


def main(arguments) -> int:
    from ..provenance import device_name
    from ..runs import results_root
    from .report import markdown, write

    try:
        asked = _checked(arguments)
    except UserError as error:
        raise ArgumentError(str(error)) from error
    for device in asked["devices"]:
        print(f"{device_name(device)}:")
        record = measure(arguments, device, asked)
        path = write(results_root(arguments.results) / "bench", record)
        print(f"\n{markdown(record)}\nwritten: {path} and {path.with_suffix('.md').name}")
    return 0


def measure(arguments, device, asked: dict) -> dict:
    """Everything that was asked for, on one device, as one record."""
    from .. import data, tune
    from ..provenance import environment, now
    from .compare import compare
    from .loading import loading
    from .scaling import scaling

    root, rounds, seconds = arguments.data_root, arguments.rounds, arguments.seconds
    memory = not arguments.no_memory
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
        "loading": [],
    }
    if device.type == "cpu":
        if arguments.tune:
            os.environ.setdefault("RESLIB_TUNE", "measure")
        record["tuned"] = str(tune.choice(compilation=arguments.tune or "compiled" in asked["contenders"]))
        if os.environ.get("RESLIB_TUNE") == "measure":
            del os.environ["RESLIB_TUNE"]  # measured and kept: not again for every contender
        print(f"  settings: {record['tuned']}")
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    source = data.load(record["dataset"], root)
    for model in asked["models"]:
        for batch in asked["batch_sizes"]:
            print(f"{model}, batch {batch}")
            record["comparisons"].append(
                compare(
                    asked["contenders"], model, batch, source, device, rounds, seconds, root, arguments.workers, memory
                )
            )
    if arguments.scaling:
        print("scaling")
        axes = {name: asked[name] for name in ("depths", "batches", "widths")}
        record["scaling"] = scaling(source, device, min(rounds, 3), seconds, root, memory, **axes)
    if arguments.loader:
        dataset = arguments.loader_dataset or data.choose_dataset("imagenet", root)
        print(f"loader: {arguments.loader_model} on {dataset}")
        steps, preset = arguments.loader_steps, arguments.loader_preset
        record["loading"].append(loading(arguments.loader_model, dataset, device, rounds, steps, root, preset))
    return record


def _checked(arguments) -> dict:
    """The lists among the arguments. Raises UserError naming what is wrong before anything is measured."""
    from .contenders import NAMES

    lists = {n: _words(getattr(arguments, n)) for n in ("models", "contenders", "devices")}
    lists |= {n: _numbers(n, getattr(arguments, n)) for n in ("batch_sizes", "depths", "batches", "widths")}
    lists["models"] = [] if lists["models"] == ["none"] else lists["models"]
    for name in lists["contenders"]:
        choose("contender", name, NAMES)
    for name, least in (("rounds", 1), ("loader_steps", 1)):
        if getattr(arguments, name) < least:
            raise UserError(f"{name} {getattr(arguments, name)} is out of range: allowed is {least} and above")
    from ..models import build_model

    for model in lists["models"]:
        with torch.device("meta"):
            build_model(model, 10)
    return lists | {"devices": [resolve_device(name) for name in lists["devices"]]}


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name: str, text: str) -> list[int]:
    try:
        values = [int(word) for word in _words(text)]
    except ValueError:
        raise UserError(f"{name} {text!r} must be whole numbers joined by commas") from None
    if any(v < 1 for v in values):
        raise UserError(f"{name} {text!r} must be above 0")
    return values
