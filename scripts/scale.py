"""Measures `reslib status`, the CIFAR-10 table and `reslib report` over many records.

    python scripts/scale.py [RUNS]     # 10,000 unless given; about a minute

Writes made-up records into a temporary folder and runs each command as a user would, in a process of its own: first
without an index of the records (which the first of them writes), then with it. Prints wall and processor seconds; exit
code 1 when a command took more than LIMIT seconds with the index, of both: waiting for other work does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from reslib import record_index
from reslib.presets import PRESETS
from reslib.recipe import Recipe
from reslib.runs import METRICS, Run
from reslib.studies import cifar10_table, figure1, plan

PRESET = "medium"
LIMIT = 5.0  # seconds for a command at 10,000 records
TABLE = "import sys, reslib.artefacts as a; from pathlib import Path; a.cifar10(Path(sys.argv[1]))"


def recipes(count: int) -> list[Recipe]:
    """`count` recipes of the networks of Table 6 and Figure 1, on synthetic data, with as many seeds as that takes."""
    models = len({r.model for study in (cifar10_table, figure1) for r in study(PRESETS[PRESET], "synthetic", 1)})
    seeds = -(-count // models)
    both = {r.digest: r for study in (cifar10_table, figure1) for r in study(PRESETS[PRESET], "synthetic", seeds)}
    return list(both.values())[:count]


def seeds_for(count: int) -> int:
    """Seeds per network with which the whole plan has about `count` runs."""
    return max(1, count // len(plan(PRESETS[PRESET], {"cifar": "synthetic", "imagenet": "synthetic-imagenet"}, 1)))


def write_record(runs_dir: Path, recipe: Recipe, number: int) -> None:
    """A finished run as the trainer leaves it, with made-up numbers."""
    run = Run(runs_dir, recipe)
    run.path.mkdir(parents=True)
    error, steps = (
        0.2 + (number * 7919 % 1000) / 1e4,
        range(recipe.eval_every, recipe.iterations + 1, recipe.eval_every),
    )
    lines = [f"{i},{i / 391:.6g},0.1,1.5,{error + 0.1},1.5,{error},,{i / 100:.6g},12800" for i in steps]
    run.metrics_file.write_text("\n".join([",".join(METRICS), *lines, ""]))
    run.recipe_file.write_text(json.dumps(recipe.to_dict()))
    summary = {
        "status": "finished", "recipe_hash": recipe.digest, "preset": PRESET, "model": recipe.model, "dataset":
        recipe.dataset, "seed": recipe.seed, "iterations": recipe.iterations, "test_error": error, "train_error":
        error + 0.1, "best_test_error": error - 0.01, "best_iteration": recipe.iterations, "parameters": 269_722,
        "multiply_adds": 40_551_040, "layers": 20, "seconds": 640.0, "images_per_second": 12_800.0, "precision": "bf16",
        "device": "cuda", "device_name": "made up", "commit": "0" * 40, "dirty": False, "torch": "2.11.0",
        "data_fingerprint": "00ff00ff00ff00ff", "data_origin": "generated", "synthetic": True, "test_images": 2000,
        "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:10:40+00:00", "message": "",
        "sessions": [{"from_iteration": 0, "started": "2026-01-01T00:00:00+00:00", "device_name": "made up"}],
    }  # fmt: skip
    run.summary_file.write_text(json.dumps(summary))


def timed(command: list[str]) -> tuple[float, float]:
    """(wall seconds, processor seconds) of a command, which must not fail."""
    environment = os.environ | {"RESLIB_DOWNLOAD": "off", "RESLIB_DATA": ""}
    begun = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.monotonic() - begun, usage.ru_utime + usage.ru_stime


def main(arguments: list[str]) -> int:
    count = int(arguments[0]) if arguments else 10_000
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        runs_dir, records = results / PRESET / "runs", recipes(count)
        for number, recipe in enumerate(records):
            write_record(runs_dir, recipe, number)
        time.sleep(record_index.SETTLED + 0.5)  # what changed a moment ago is not indexed
        reslib = [sys.executable, "-m", "reslib"]
        where = ["--results", str(results)]
        commands = {
            "status": [*reslib, "status", "--preset", PRESET, *where],
            f"status of a plan of about {count:,} runs": [
                *reslib, "status", "--preset", PRESET, "--seeds", str(seeds_for(count)), "--gpus", "64", *where],
            "table": [sys.executable, "-c", TABLE, str(results / PRESET)],
            "report": [*reslib, "report", *where],
        }  # fmt: skip
        print(f"{len(records):,} records; wall (processor) seconds\n")
        print("| command | without index | with it |\n| --- | --- | --- |")
        late = []
        for name, command in commands.items():
            (runs_dir / record_index.FILE).unlink(missing_ok=True)
            cold, warm = timed(command), timed(command)
            print(f"| {name} | {cold[0]:.1f} ({cold[1]:.1f}) | {warm[0]:.1f} ({warm[1]:.1f}) |", flush=True)
            late += [f"{name}: {warm[0]:.1f} s, of them {warm[1]:.1f} s of a processor"] * (min(warm) > LIMIT)
    for line in late:
        print(f"more than {LIMIT:g} s: {line}", file=sys.stderr)
    return 1 if late else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
