"""The benchmark's records as frames: what the notebook `speed` draws."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from .. import sources
from ..errors import UserError
from ..runs import read_json
from .report import PARTS

BF16_FULL_RATE = 1.5  # of the fp32 rate of matrix products: from there on bf16 counts as running at full rate
THREADS = re.compile(r" \(\d+ threads?\)$")  # at the end of a processor's name
COMMITTED = Path(__file__).resolve().parent.parent.parent / "results" / "bench"  # of the checkout


def load_records(*folders: Path, damaged=None) -> list[dict]:
    """The records of `reslib bench` in these folders, each once, oldest first.

    A damaged one raises UserError; with `damaged` that is told, and the record left out. The commit of code that was
    committed elsewhere is that of results/sources.json.
    """
    files = {path.resolve() for folder in folders for path in Path(folder).glob("[!.]*.json")}
    records = []
    for path in sorted(files):
        try:
            record = read_json(path)
            if missing := {"date", "environment", "comparisons", "scaling"} - set(record):
                raise UserError(f"{path} is no record of `reslib bench`: {', '.join(sorted(missing))} missing")
        except UserError as error:
            if damaged is None:
                raise
            damaged(f"{error}; left out")
            continue
        commits = sources.known(path.parent.parent)
        records.append(record | {"file": path.name, "environment": sources.resolved(record["environment"], commits)})
    return sorted(records, key=lambda r: r["date"])


def home(results: Path) -> Path:
    """The results folder whose records the notebook shows: this one, or the checkout's while nothing is measured."""
    measured = any(any(Path(results).glob(pattern)) for pattern in ("bench/[!.]*.json", "equivalence/*/[!.]*.json"))
    return Path(results) if measured else COMMITTED.parent


def hardware(record: dict) -> str:
    """The device without its number of threads; of a processor also whether bf16 runs at its full rate there.

    One name can stand for several processors ("AMD EPYC"), and this decides what a benchmark measures on them. A record
    without a comparison has no matrix rates: there what was measured as the faster precision tells.
    """
    env, tuned = record["environment"], record.get("tuned") or ""
    name = THREADS.sub("", env["device_name"])
    rates = [bf16_rate(part["machine"]) for part in record.get("comparisons", ())]
    fast = max(rates) >= BF16_FULL_RATE if rates else tuned.startswith("bf16") and "(given" not in tuned
    return f"{name}, fast bf16" if fast and env["device"] == "cpu" else name


def bf16_rate(machine: dict) -> float:
    """Of matrix products in bf16, over that in fp32."""
    return machine["bf16_multiply_adds_per_second"] / machine["fp32_multiply_adds_per_second"]


def origin(record: dict) -> dict:
    """Where a record's numbers come from: its file, the machine, software, data and date, as columns of a frame."""
    env = record["environment"]
    return {
        "file": record["file"],
        "device": hardware(record),
        "threads": env.get("threads"),
        "kind": env["device"],
        "date": record["date"],
        "load": record["load"],
        "torch": env["torch"],
        "commit": env["commit"][:10],
        "dataset": record["dataset"],
    }


def comparisons(records: list[dict]) -> pd.DataFrame:
    """A row per record, network, batch size and contender."""
    rows = []
    for record in records:
        for number, part in enumerate(record["comparisons"]):
            for row in part["contenders"]:
                turns = row["images_per_second_turns"]
                memory = (row.get("peak_memory_mib") or {}).values()
                rows.append(
                    {
                        **origin(record),
                        "comparison": f"{record['file']}#{number}",
                        "model": part["model"],
                        "batch_size": part["batch_size"],
                        **{k: row[k] for k in ("contender", "what", "precision", "images_per_second", "ratio")},
                        **{k: row[k] for k in ("ratio_low", "ratio_high", "setup_seconds", "share_of_matrix_rate")},
                        "low": min(turns),
                        "high": max(turns),
                        "turns": len(turns),
                        "bf16_rate": bf16_rate(part["machine"]),
                        "hours_to_64k": row["seconds_to_the_end_of_64k"] / 3600,
                        "peak_memory_mib": max(memory, default=None),
                        "captured": row["parts_are_of_the_eager_step"],
                        **{f"{name} (ms)": 1000 * row["parts"].get(name, 0.0) for name in PARTS},
                    }
                )
    return pd.DataFrame(rows)


def latest(frame: pd.DataFrame, *contenders: str) -> pd.DataFrame:
    """Per device, network and batch size the rows of the last comparison in which all these contenders ran.

    A processor with another number of threads is another device; a GPU is the same one beside whatever processor.
    """
    if not len(frame):
        return frame
    kept = []
    for _, group in frame.groupby(["device", threads_of(frame), "model", "batch_size"], sort=False, dropna=False):
        having = [
            rows for _, rows in group.groupby("comparison", sort=False) if set(contenders) <= set(rows["contender"])
        ]
        kept += having[-1:]
    return pd.concat(kept, ignore_index=True) if kept else frame.iloc[:0]


def threads_of(frame: pd.DataFrame) -> pd.Series:
    """What tells devices of one name apart: of a processor its threads, of a GPU nothing."""
    return frame["threads"].where(frame["kind"] == "cpu", 0)


def seeds(records: list[dict]) -> pd.DataFrame:
    """A row per device, network and way of training several seeds at once; low, high: of the cost.

    Of several measurements on one device the last: a way that it lacks is not taken from one before, whose single run
    was another.
    """
    rows = [
        {
            **origin(record),
            **{k: part[k] for k in ("model", "batch_size", "seeds", "precision", "processes_at_once")},
            "way": way,
            "images_per_second": rate,
            "cost_in_runs": part["cost_in_runs"][way],
            "low": min(_turns(part, way)),
            "high": max(_turns(part, way)),
        }
        for record in records
        for part in record.get("seeds", [])
        for way, rate in part["images_per_second"].items()
    ]
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    groups = frame.groupby(["device", threads_of(frame), "model", "batch_size", "seeds"], sort=False, dropna=False)
    return frame[frame["file"] == groups["file"].transform("last")]


def _turns(part: dict, way: str) -> list[float]:
    """The cost of a way turn by turn; older records have its median alone."""
    return part.get("cost_in_runs_turns", {}).get(way) or [part["cost_in_runs"][way]]


def starts(records: list[dict]) -> pd.DataFrame:
    """A row per device: seconds to the first step of a new process and of its imports, as measured last."""
    rows = [
        {
            **origin(record),
            **{k: record["start"][k] for k in ("first_step_seconds", "import_seconds", "torch_import_seconds")},
        }
        for record in records
        if "first_step_seconds" in record.get("start", {})
    ]
    return pd.DataFrame(rows).drop_duplicates("device", keep="last") if rows else pd.DataFrame()


def loading(records: list[dict]) -> pd.DataFrame:
    """A row per device, network and part of `--loader` (loader alone, network alone, both), as measured last."""
    rows = [
        {
            **origin(record),
            **{k: part[k] for k in ("model", "dataset", "crop_size", "batch_size", "precision")},
            "part": name.replace("_", " "),
            "images_per_second": rate,
            "low": min(part["images_per_second_turns"][name]),
            "high": max(part["images_per_second_turns"][name]),
        }
        for record in records
        for part in record.get("loading", [])
        for name, rate in part["images_per_second"].items()
    ]
    frame, same = pd.DataFrame(rows), ["device", "model", "dataset", "crop_size", "batch_size", "part"]
    return frame.drop_duplicates(same, keep="last") if rows else frame


TRIED = {  # kind of device: {contender: (what, what was expected before it was measured, what became of it)}
    "cpu": {
        "contiguous": (
            "NCHW instead of channels-last",
            "slower: oneDNN works on blocks of channels and has to reorder at every layer that is not a convolution",
            "measured anew on every processor (tune.py); channels-last unless it loses",
        ),
        "freed": (
            "memory given back to the system after every step",
            "an eighth slower in fp32: each step's activations are mapped and zeroed anew, page by page",
            "dropped; glibc is told to keep memory (tune.py)",
        ),
        "bf16": (
            "bf16 autocast",
            "twice as fast by the processor's flags",
            "measured on every processor; kept only where it wins",
        ),
        "blocks": (
            "torch.compile of each residual block: a compilation per shape, not per layer",
            "as fast as compiling the whole net, at a fraction of the compile time",
            "dropped on processors; see the text",
        ),
        "compiled": (
            "torch.compile of the whole net with its loss",
            "a third faster: batch norm, ReLU and addition are fused",
            "kept where a trial on the network itself wins and the run is long enough",
        ),
        "convolved": (
            "3x3 convolutions by Winograd's minimal filtering, larger ones by Fourier transforms",
            "a third less time in fp32: convolutions are most of a step, and a quarter of the multiply-adds is left",
            "kept for the layers where a trial wins, compiled or not",
        ),
        "fused": (
            "batch norm, addition of the shortcut and ReLU in one go, by loops in C++",
            "a tenth less time: they are a third of a step, and a good third of what they read and write is saved",
            "kept where a trial wins and the net is not compiled",
        ),
        "tiles": (
            "convolution, batch norm, addition and ReLU image by image on matrix tiles (AMX), by loops in C++",
            "half the time of a step: the sums take a tenth of it, and a third of what is read and written is saved",
            "kept where the processor has tiles and a trial wins",
        ),
    },
    "cuda": {
        "fast": (
            "the whole step as one CUDA graph",
            "several times as fast: a thin net's kernels end before Python has launched the next",
            "kept: how every run trains that can be captured",
        ),
        "blocks": (
            "torch.compile of each residual block, then captured",
            "a third faster than captured alone: batch norm, ReLU and addition are bound by memory traffic",
            "kept for nets of more than 20 layers, where a trial on the captured step finds it faster",
        ),
        "compiled": (
            "torch.compile of the whole net with its loss, then captured",
            "as the blocks, after a longer compilation",
            "kept up to 20 layers, where a trial on the captured step finds it faster",
        ),
        "thin": (
            "convolution, batch norm, addition and ReLU of up to 64 filters by six Triton kernels, captured",
            "half the time of the captured step: a third of its kernels, and convolutions in a fraction of theirs",
            "kept where a trial on the captured step finds it faster; from 1.4 times on torch.compile is not tried",
        ),
        "contiguous": (
            "NCHW instead of channels-last, captured",
            "slower: tensor cores work on channels-last, and other layouts are converted at every convolution",
            "not measured on a GPU when this was written",
        ),
    },
}


def tried(records: list[dict]) -> pd.DataFrame:
    """What was tried beside the eager step: predicted, measured (from the records), and what became of it."""
    rows = []
    frame = latest(comparisons(records), "eager", "contiguous")
    for (device, kind, model), group in frame.groupby(["device", "kind", "model"], sort=False) if len(frame) else ():
        named = group.set_index("contender")
        ratios = named["ratio"]  # of turns side by side, to the first contender: eager
        lows, highs = named["ratio_low"], named["ratio_high"]
        for name, (what, expected, became) in TRIED.get(kind, {}).items():
            if name in ratios:
                rows.append(
                    {
                        "tried": what,
                        "predicted": expected,
                        "network": model,
                        "measured, of eager": ratios[name],
                        "range of the turns": f"{lows[name]:.2f} to {highs[name]:.2f}"
                        if group.turns.iloc[0] > 1
                        else "one turn",
                        "kept?": became,
                        "hardware": device,
                    }
                )
    return pd.DataFrame(rows)
