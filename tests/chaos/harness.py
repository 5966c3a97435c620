"""Kill training at random moments, continue, and compare with a run that was left alone.

    python tests/chaos/harness.py --kills 100

A kill comes after a random time, or in the middle of writing checkpoint, metrics, weights or summary: half of the
temporary file is written, or it has just taken its name. After each run: the same rows, the same bits of the weights,
no leftovers. Sessions must join without a gap. Prints one line per run; exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training import QUIET, processes, rows_of, silent, tiny, weights_of  # noqa: E402

from reslib.runs import Run, read_json  # noqa: E402
from reslib.train import Execution, train  # noqa: E402

FILES = ("checkpoint.pt", "metrics.csv", "weights.safetensors", "summary.json", "recipe.json")
SHARP = Execution(device="cpu", deterministic=True, checkpoint_seconds=0.0)
RECIPES = (
    tiny(iterations=30, options="dropout=0.5", val_size=10),
    tiny(iterations=24, accumulation=2, warmup_lr=0.01, warmup_window=5, lr_drops=(0.3, 0.6)),
)


def victim(recipe, runs_dir, target="", countdown=0, after=False):
    """Train; with a target, die by SIGKILL at the countdown-th time that this file is replaced."""
    replace, seen = os.replace, 0

    def deadly(source, destination):
        nonlocal seen
        if Path(destination).name == target:
            seen += 1
            if seen == countdown:
                if after:
                    replace(source, destination)
                else:
                    os.truncate(source, os.path.getsize(source) // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        replace(source, destination)

    if target:
        os.replace = deadly
    train(recipe, runs_dir, execution=SHARP, say=silent)


def torture(context, recipe, runs_dir: Path, chance: random.Random, kills: int) -> dict[str, int]:
    """Kill the training of one recipe `kills` times at most, then let it end; how often it died of what."""
    deaths = {}
    for attempt in range(kills + 1):
        target, arguments = "", ()
        if attempt < kills and chance.random() < 0.6:
            target = chance.choice(FILES)
            countdown = chance.randint(1, 6) if target in FILES[:2] else 1
            arguments = (target, countdown, chance.random() < 0.5)
        process = context.Process(target=victim, args=(recipe, str(runs_dir), *arguments))
        process.start()
        if attempt < kills and not target:
            time.sleep(chance.uniform(0.0, 0.8))
            process.kill()
        process.join(300)
        assert process.exitcode in (0, -signal.SIGKILL), f"exit code {process.exitcode}"
        if process.exitcode:
            deaths[target or "time"] = deaths.get(target or "time", 0) + 1
        elif Run(runs_dir, recipe).ended:
            break
    return deaths


def faults(recipe, runs_dir: Path, whole: Path) -> list[str]:
    """What differs between the tortured run and the one left alone."""
    run, found = Run(runs_dir, recipe), []
    if not run.ended:
        return ["the run has not ended"]
    if rows_of(runs_dir, recipe) != rows_of(whole, recipe):
        found.append("metrics differ")
    if weights_of(runs_dir, recipe) != weights_of(whole, recipe):
        found.append("weights differ")
    ours, theirs = read_json(run.summary_file), read_json(Run(whole, recipe).summary_file)
    for key in ("test_error", "exact_bn_test_error", "warmup_ended_at", "weights_sha256", "selected_iteration"):
        if ours[key] != theirs[key]:
            found.append(f"{key} {ours[key]} instead of {theirs[key]}")
    if list(run.path.glob(".*.tmp")):
        found.append("temporary files are left")
    end = 0
    for session in ours["sessions"]:
        if session["from_iteration"] != end:
            found.append(f"a session begins at {session['from_iteration']}, the one before had come to {end}")
        end = session["to_iteration"]
    return found


def chaos(kills: int, seed: int, folder: Path, say=print) -> tuple[int, dict[str, int], list[str]]:
    """Torture runs until `kills` kills have struck: (runs, deaths by kind, faults)."""
    context, chance = processes(), random.Random(seed)
    deaths, found, runs = {}, [], 0
    for number, recipe in enumerate(RECIPES):
        reference = context.Process(target=train, args=(recipe, folder / f"whole{number}", None, "", QUIET, silent))
        reference.start()
        reference.join(300)
        assert reference.exitcode == 0
    while sum(deaths.values()) < kills:
        number = runs % len(RECIPES)
        recipe, runs_dir = RECIPES[number], folder / f"run{runs}"
        struck = torture(context, recipe, runs_dir, chance, min(8, kills - sum(deaths.values())))
        wrong = faults(recipe, runs_dir, folder / f"whole{number}")
        for kind, count in struck.items():
            deaths[kind] = deaths.get(kind, 0) + count
        found += [f"run {runs}: {fault}" for fault in wrong]
        say(f"run {runs}: killed {struck or 'never'}: {'; '.join(wrong) or 'same rows, same weights'}")
        runs += 1
        if not wrong:
            shutil.rmtree(runs_dir)
    return runs, deaths, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, deaths, found = chaos(arguments.kills, arguments.seed, Path(folder))
    print(f"{sum(deaths.values())} kills in {runs} runs ({deaths}): {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
