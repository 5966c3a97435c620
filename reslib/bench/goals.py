"""What the benchmark was to reach (written down before anything was measured), and what its records say.

Every goal has a row: what no record measures is named as not measured.
"""

from __future__ import annotations

import pandas as pd

from ..tune import MARGIN
from .records import BF16_FULL_RATE, latest

BATCH = 128  # of the paper's recipe: the goals are about it
CPU_GOALS = {True: {"resnet20": 3.0, "resnet56": 2.5}, False: {"resnet20": 1.8, "resnet56": 1.5}}  # bf16 at full rate?
CPU_NAMES = {True: "a processor with bf16 at full rate", False: "a processor with slow bf16"}  # without a record
CUDA_GOALS = {"resnet20": (10.0, 3.0), "resnet110": (8.0, 12.0), "resnet1202": (None, 90.0)}  # ratio; minutes to 64k
SHARE_GOAL, SET_UP_GOAL = 0.6, 60.0  # of the matrix rate, ResNet-20; seconds of setting up on a GPU
SEEDS_GOAL = (5, "resnet20", 2.0)  # seeds at once of a network cost at most so many single runs on a GPU
FIRST_STEP_GOAL, IMPORT_GOAL = 10.0, 2.0  # seconds, on a processor: to the first step; of the import beyond torch's
NONE = pd.DataFrame()


def goals(frame: pd.DataFrame, seeds: pd.DataFrame = NONE, starts: pd.DataFrame = NONE) -> pd.DataFrame:
    """A row per goal and device: frames of `records.comparisons`, `records.seeds`, `records.starts`."""
    whole = frame[frame["batch_size"] == BATCH] if len(frame) else frame
    frame = latest(whole, "usual", "fast")
    table = Table(_of(whole, contender="fast"))
    for full in CPU_GOALS:
        mine = _of(frame, kind="cpu")
        mine = mine[(mine["bf16_rate"] >= BF16_FULL_RATE) == full] if len(mine) else mine
        for device in _devices(mine) or [CPU_NAMES[full]]:
            _processor(table, device, _of(mine, device=device), full)
    measured = _devices(_of(starts, kind="cpu"))
    for device in measured or ["a processor"]:
        row = _only(_of(starts, device=device) if measured else NONE)
        aim = f"first step (eager) within {FIRST_STEP_GOAL:g} s of the start"
        table.below(device, "resnet20", aim, row, "first_step_seconds", FIRST_STEP_GOAL)
        aim = f"imported in {IMPORT_GOAL:g} s beyond torch"
        table.below(device, "", aim, row, "import_seconds", IMPORT_GOAL)
    frame, seeds = _of(frame, kind="cuda"), _of(seeds, kind="cuda")
    for device in list(dict.fromkeys(_devices(frame) + _devices(seeds))) or ["a CUDA GPU"]:
        _gpu(table, device, _of(frame, device=device), _of(seeds, device=device))
    return pd.DataFrame(table.rows)


class Table:
    """Rows of (hardware, network, goal, measured, verdict). fast: that contender's rows of all comparisons."""

    def __init__(self, fast: pd.DataFrame):
        self.rows, self.fast = [], fast

    def add(self, device: str, model: str, goal: str, measured: str = "", reached=None) -> None:
        """A goal and whether it was reached; None: not measured."""
        verdict = "not measured" if reached is None else "reached" if reached else "missed"
        self.rows.append({"hardware": device, "network": model, "goal": goal, "measured": measured, "verdict": verdict})

    def below(self, device, model, goal, row, column: str, limit: float, unit: str = "s") -> None:
        """A goal that a number of `row` (None: not measured) shall not exceed."""
        known = row is not None and not pd.isna(row[column])
        self.add(device, model, goal, *((f"{row[column]:.1f} {unit}", row[column] <= limit) if known else ()))

    def ratio(self, device, model, row, least: float) -> None:
        """A goal against the usual loop."""
        shown = "" if row is None else f"{row['ratio']:.2f}x ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        alike = _of(self.fast, device=device, model=model)
        if row is not None and len(alike) > 1:
            shown += f"; {len(alike)} records, older code too: {alike['ratio'].min():.2f} to {alike['ratio'].max():.2f}"
        measured = () if row is None else (shown, row["ratio"] >= least)
        self.add(device, model, f"at least {least:g}x the usual loop", *measured)


def _processor(table: Table, device: str, frame, full: bool) -> None:
    for model, least in CPU_GOALS[full].items():
        fast, plain = (_only(_of(frame, model=model, contender=name)) for name in ("fast", "fp32"))
        table.ratio(device, model, fast, least)
        if model == "resnet20":
            share = None if fast is None else fast["share_of_matrix_rate"]
            measured = () if share is None else (f"{share:.0%}", share >= SHARE_GOAL)
            table.add(device, model, f"{SHARE_GOAL:.0%} of the matrix rate (as direct sums)", *measured)
        against = None if fast is None or plain is None else fast["images_per_second"] / plain["images_per_second"]
        measured = () if against is None else (f"{against:.2f}x", against >= 1 / MARGIN)
        table.add(device, model, f"not slower than eager fp32, within {MARGIN - 1:.0%}", *measured)


def _gpu(table: Table, device: str, frame, seeds) -> None:
    for model, (least, limit) in CUDA_GOALS.items():
        fast = _only(_of(frame, model=model, contender="fast"))
        if least:
            table.ratio(device, model, fast, least)
        minutes = None if fast is None else {"minutes": 60 * fast["hours_to_64k"]}
        table.below(device, model, f"64k iterations in {limit:g} minutes", minutes, "minutes", limit, "minutes")
        table.below(device, model, f"set up in {SET_UP_GOAL:g} s", fast, "setup_seconds", SET_UP_GOAL)
    count, model, limit = SEEDS_GOAL
    ways = _of(seeds, model=model, seeds=count, batch_size=BATCH)
    ways = ways[ways["way"] != "one in turn"] if len(ways) else ways
    least = {"cost": ways["cost_in_runs"].min()} if len(ways) else None
    table.below(device, model, f"{count} seeds in {limit:g} times the time of one", least, "cost", limit, "runs")


def _of(frame: pd.DataFrame, **values) -> pd.DataFrame:
    """The rows of a frame with these values."""
    for column, value in values.items() if len(frame) else ():
        frame = frame[frame[column] == value]
    return frame


def _only(frame: pd.DataFrame):
    """The last row, None of an empty frame."""
    return frame.iloc[-1] if len(frame) else None


def _devices(frame: pd.DataFrame) -> list[str]:
    return list(frame["device"].unique()) if len(frame) else []
