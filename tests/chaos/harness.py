"""Kill training at random moments, continue, and compare with a run that was left alone.

    python tests/chaos/harness.py --kills 100

The process that trains keeps a journal of where it is (start, warm-up, step, evaluation, checkpoint, log, end, weights,
summary), so that every death is counted where it struck. A kill is one of three: SIGKILL at a random moment inside a
chosen phase; SIGKILL when half of a file is written, or just after it took its name; SIGKILL at any time at all.
Nothing may be lost beyond the steps since the last checkpoint; in the end there must be the same rows and the same bits
of the weights, and no leftovers. Prints one line per run; exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training import processes, rows_of, silent, tiny, weights_of  # noqa: E402

from reslib import engine, outcome  # noqa: E402
from reslib import train as loop  # noqa: E402
from reslib.runs import Run, read_json  # noqa: E402
from reslib.train import Execution, train  # noqa: E402

PHASES = ("start", "warm-up", "step", "evaluation", "checkpoint", "log", "weights", "summary")
FILES = ("recipe.json", "checkpoint.pt", "metrics.csv", "weights.safetensors", "summary.json")
TURNS = (PHASES, FILES, ("",) * 8)  # where the kills of one run strike, then of the next; "": at any time
BRIEFLY = (  # for either recipe: every kind of kill, what comes at the end of a run at the end
    ("step", "half of checkpoint.pt", "evaluation", "", "log", "half of summary.json"),
    ("start", "warm-up", "just after checkpoint.pt", "", "half of metrics.csv", "weights"),
)
MOST_RUNS = 12  # of the short version
INTERVALS = (0.0, 60.0)  # seconds between checkpoints: one after every step, or after evaluations alone
RECIPES = (
    tiny(iterations=30, options="dropout=0.5", val_size=10),
    tiny(iterations=24, accumulation=2, warmup_lr=0.01, warmup_window=5, lr_drops=(0.3, 0.6)),
)


@dataclass(frozen=True)
class Plan:
    """How one process is to die: in the `count`-th visit of a phase, at the `count`-th writing of a file, or whenever.

    moment: 0 to 1, when within the phase, as a share of what the phase usually takes.
    """

    phase: str = ""
    file: str = ""
    count: int = 1
    moment: float = 0.0
    half: bool = True  # of a file: half of it is written under its temporary name; else it has just taken its name
    after: float = 0.0  # seconds, when neither phase nor file is given


def any_plan(chance: random.Random, kind: str, whole: float) -> Plan:
    """A kill of this kind, its moment by chance. whole: seconds of a process that trains from start to end."""
    words = kind.split()
    kind = words[-1] if words else ""
    late = kind in ("weights", "summary", "start", "weights.safetensors", "summary.json", "recipe.json")
    most = 1 if late else 3 if kind == "warm-up" else 6  # the warm-up is soon over
    plan = {"count": chance.randint(1, most), "moment": chance.random(), "half": chance.random() < 0.5}
    if words[1:]:
        plan |= {"count": 1, "half": words[0] == "half"}
    where = {"phase": kind} if kind in PHASES else {"file": kind}
    return Plan(**plan, **where, after=chance.uniform(0.0, whole))


# --- The victim ------------------------------------------------------------------------------------------------------


class Witness:
    """Follows the training from inside: writes the journal, and kills where the plan says."""

    def __init__(self, journal: Path, plan: Plan, seconds: dict[str, float]):
        self.file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # unbuffered: it survives the kill
        self.plan, self.visits, self.warming_up = plan, Counter(), False
        self.seconds = dict(seconds)  # that each phase usually takes

    def note(self, text: str) -> None:
        os.write(self.file, f"{text}\n".encode())

    @contextlib.contextmanager
    def inside(self, phase: str):
        self.note(f"> {phase}")
        self.visits[phase] += 1
        killer, begun = None, time.perf_counter()
        if phase == self.plan.phase and self.visits[phase] == self.plan.count:
            delay = self.plan.moment * self.seconds[phase]
            killer = threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL)))
            killer.start()
        yield
        self.seconds[phase] = time.perf_counter() - begun
        if killer:
            killer.join()  # the phase was shorter than usual: it ends here all the same
        self.note(f"< {phase} {self.seconds[phase]:.6f}")

    def watch(self, owner, name: str, phase, told=None) -> None:
        """Replace a function by one that tells when it is entered and left; phase: its name or what gives it."""
        function = getattr(owner, name)

        def watched(*arguments, **options):
            with self.inside(phase if isinstance(phase, str) else phase()):
                result = function(*arguments, **options)
                if told:
                    self.note(told(result, *arguments))
            return result

        setattr(owner, name, watched)

    def watch_everything(self) -> None:
        rate = loop.learning_rate

        def learning_rate(recipe, iteration, warming_up, history):
            self.warming_up = warming_up
            return rate(recipe, iteration, warming_up, history)

        loop.learning_rate = learning_rate
        self.watch(loop, "prepare", "start", lambda job, *_: f"begun {job.state.iteration}")
        self.watch(engine.Step, "__call__", lambda: "warm-up" if self.warming_up else "step", _done)
        self.watch(loop, "evaluate", "evaluation")
        self.watch(loop, "save", "checkpoint", lambda _, job: f"saved {job.state.iteration}")
        self.watch(loop, "finish", "end")
        self.watch(Run, "write_metrics", "log")
        self.watch(outcome, "write_weights", "weights")
        self.watch(Run, "finish", "summary")
        rename = os.replace

        def deadly(source, destination):
            name = Path(destination).name
            self.visits[name] += 1
            strikes = name == self.plan.file and self.visits[name] == self.plan.count
            if strikes and self.plan.half:
                os.truncate(source, os.path.getsize(source) // 2)
            if not strikes or not self.plan.half:
                rename(source, destination)
            if strikes:
                self.note(f"{'half of' if self.plan.half else 'just after'} {name}")
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = deadly


def _done(result, step, x, y, iteration) -> str:
    return f"done {iteration + 1}"


def victim(recipe, runs_dir, journal: Path, plan: Plan, interval: float, seconds: dict[str, float]):
    Witness(journal, plan, seconds).watch_everything()
    train(recipe, runs_dir, execution=Execution("cpu", deterministic=True, checkpoint_seconds=interval), say=silent)


# --- What the journal tells -----------------------------------------------------------------------------------------


def usual_seconds(journal: Path) -> dict[str, float]:
    """How long each phase of a run that was left alone took, at the last time."""
    ends = [line.split() for line in journal.read_text().splitlines() if line.startswith("< ")]
    return {phase: float(seconds) for _, phase, seconds in ends}


@dataclass
class Life:
    """One process, from its journal."""

    where: str = ""  # at its end: the innermost phase, the file it was writing, or ""
    begun: int | None = None  # iteration it continued from
    saved: int = 0  # iteration of its last whole checkpoint
    done: int = 0  # iterations trained


def life(journal: Path, saved: int) -> Life:
    """saved: the last checkpoint of the process before."""
    found, stack = Life(saved=saved), []
    for line in journal.read_text().splitlines() if journal.exists() else ():
        word, _, rest = line.partition(" ")
        if word == ">":
            stack.append(rest)
        elif word == "<":
            stack.pop()
        elif word in ("begun", "saved", "done"):
            setattr(found, word, int(rest))
        else:
            found.where = line
    found.where = found.where or (stack[-1] if stack else "between" if found.begun is not None else "before the start")
    return found


def torture(context, recipe, runs_dir: Path, chance, kills: int, kinds, seconds: dict) -> tuple[Counter, list]:
    """Kill the training of one recipe `kills` times at most, then let it end: (deaths by place, faults).

    kinds: of the kills, taken in turn. seconds: that its phases usually take; "": a whole process.
    """
    deaths, faults, before = Counter(), [], None
    for attempt in range(4 * kills + 1):
        last = sum(deaths.values()) >= kills
        plan = Plan() if last else any_plan(chance, kinds[attempt % len(kinds)], seconds[""])
        if plan.phase == "warm-up" and not recipe.warmup_lr:
            plan = replace(plan, phase="step")
        journal = runs_dir.with_name(f"{runs_dir.name}-{attempt}.journal")
        interval = chance.choice(INTERVALS)
        process = context.Process(target=victim, args=(recipe, str(runs_dir), journal, plan, interval, seconds))
        process.start()
        if not (plan.phase or plan.file or last):
            process.join(plan.after)
            process.kill()
        process.join(300)
        assert process.exitcode in (0, -signal.SIGKILL), f"exit code {process.exitcode}"
        now = life(journal, before.saved if before else 0)
        if now.begun is not None and before and now.begun < before.saved:
            faults.append(f"continued at {now.begun}, a checkpoint of {before.saved} was written")
        if now.begun is not None and before and now.begun > max(before.done, before.saved):
            faults.append(f"continued at {now.begun}, only {before.done} iterations were trained")
        if now.begun is not None:
            now.saved, now.done = max(now.saved, now.begun), max(now.done, now.begun)
            before = now
        if process.exitcode:
            deaths[now.where] += 1
        elif Run(runs_dir, recipe).ended:
            break
    return deaths, faults


def differences(recipe, runs_dir: Path, whole: Path) -> list[str]:
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


def _left(kinds, deaths: Counter) -> list[str]:
    """The kinds of which none has struck."""
    return [kind for kind in kinds if kind and not deaths[kind]]


def chaos(kills: int, seed: int, folder: Path, say=print, kinds=None) -> tuple[int, Counter, list[str]]:
    """Torture runs until `kills` kills have struck: (runs, deaths by place, faults).

    kinds: for either recipe, each of which must have struck. On a busy machine a run may come to its end before the
    moment of a kill, and the next run takes up the kinds that are left.
    """
    context, chance = processes(), random.Random(seed)
    deaths, found, runs, seconds = Counter(), [], 0, []
    for number, recipe in enumerate(RECIPES):
        journal = folder / f"whole{number}.journal"
        arguments = (recipe, folder / f"whole{number}", journal, Plan(), INTERVALS[-1], dict.fromkeys(PHASES, 0.0))
        reference = context.Process(target=victim, args=arguments)
        begun = time.perf_counter()
        reference.start()
        reference.join(300)
        assert reference.exitcode == 0
        whole = {"": time.perf_counter() - begun}
        seconds.append(dict.fromkeys(PHASES, 0.0) | usual_seconds(journal) | whole)
    while sum(deaths.values()) < kills or (kinds and runs < MOST_RUNS and any(_left(k, deaths) for k in kinds)):
        number, round_ = runs % len(RECIPES), runs // len(RECIPES)
        recipe, runs_dir = RECIPES[number], folder / f"run{runs}"
        if kinds:
            turn = _left(kinds[number], deaths) or kinds[number]
            todo = len(turn)
        else:
            turn = TURNS[round_ % len(TURNS)]
            todo = min(len(turn), kills - sum(deaths.values()))
        struck, wrong = torture(context, recipe, runs_dir, chance, todo, turn, seconds[number])
        wrong += differences(recipe, runs_dir, folder / f"whole{number}")
        deaths += struck
        found += [f"run {runs}: {fault}" for fault in wrong]
        listed = ", ".join(f"{n} {where}" for where, n in sorted(struck.items()))
        say(f"run {runs}: killed {listed or 'never'}: {'; '.join(wrong) or 'same rows, same weights'}")
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
    for where, count in sorted(deaths.items(), key=lambda item: -item[1]):
        print(f"  {count:>3} {where}")
    print(f"{sum(deaths.values())} kills in {runs} runs: {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
