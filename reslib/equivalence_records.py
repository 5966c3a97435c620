"""The records of `reslib equivalence`: what two sides of seeds show, as JSON, as a Markdown page and as a frame.

They lie in results/equivalence/<preset>/<network>-<data>.json beside the runs that were trained for them alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from .runs import read_json
from .stats import summarize, welch

FOLDER = "equivalence"  # below results/
SIDES = ("fp32", "fast")


def ways(summary: dict) -> set[str]:
    """How the steps of a run were taken, over all its sessions."""
    return {session.get("step", "unknown") for session in summary.get("sessions", [])} or {"unknown"}


def compare(model: str, preset: str, dataset: str, pairs: list[tuple[dict, dict]]) -> dict:
    """Final test errors in percent of (fp32, fast) summaries, their difference with Welch's 95% interval, a verdict.

    Verdict: "different" when the interval leaves out 0 or one side alone diverges, "no difference found" otherwise,
    with the smallest difference that these seeds could have shown; "too few seeds" below two.
    """
    diverged = [sum(s["status"] == "diverged" for s in side) for side in zip(*pairs, strict=True)]
    kept = [p for p in pairs if all(s["status"] == "finished" for s in p)]
    errors = [[100 * s["test_error"] for s in side] for side in zip(*kept, strict=True)] if kept else [[], []]
    record = {
        "model": model,
        "preset": preset,
        "dataset": dataset,
        "precision": sorted({p[1]["precision"] for p in pairs}),
        "steps": {
            name: sorted(set().union(*map(ways, side)))
            for name, side in zip(SIDES, zip(*pairs, strict=True), strict=True)
        },
        "device_name": sorted({s["device_name"] for p in pairs for s in p}),
        "commit": sorted({s["commit"] for p in pairs for s in p}),
        "data_fingerprint": sorted({s["data_fingerprint"] for p in pairs for s in p}),
        "fp32_errors": errors[0],
        "fast_errors": errors[1],
        "diverged": {"fp32": diverged[0], "fast": diverged[1]},
        "images_per_second": {
            name: [s["images_per_second"] for s in side]
            for name, side in zip(SIDES, zip(*pairs, strict=True), strict=True)
        },
    }
    if len(kept) < 2:
        return record | {"verdict": "different" if diverged[0] != diverged[1] else "too few seeds"}
    result = welch(*errors)
    different = not result.low <= 0 <= result.high or diverged[0] != diverged[1]
    return record | {
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "degrees": None if math.isnan(result.degrees) else result.degrees,
        "detectable": (result.high - result.low) / 2,
        "verdict": "different" if different else "no difference found",
    }


def markdown(record: dict) -> str:
    """The comparison as a Markdown page."""
    lines = [
        f"# Fast path beside fp32: {record['model']} on {record['dataset']}, preset {record['preset']}",
        "",
        f"{', '.join(record['device_name'])}; steps of fp32: {', '.join(record['steps']['fp32'])}; "
        f"of the fast path: {', '.join(record['precision'] + record['steps']['fast'])}; "
        f"commit {', '.join(c[:10] for c in record['commit'])}; data {', '.join(record['data_fingerprint'])}.",
        "",
        "| | seeds | final test error in % | mean ± std |",
        "| --- | ---: | --- | ---: |",
    ]
    for name in SIDES:
        values = record[f"{name}_errors"]
        summary = summarize(values) if values else None
        shown = "" if summary is None else f"{summary.mean:.2f}" + (f" ± {summary.std:.2f}" if summary.n > 1 else "")
        lines.append(f"| {name} | {len(values)} | {', '.join(f'{v:.2f}' for v in values)} | {shown} |")
    lines.append("")
    if "difference" in record:
        lines.append(
            f"Difference fast - fp32: {record['difference']:+.2f} points, 95% interval {record['low']:+.2f} to "
            f"{record['high']:+.2f} (Welch). Verdict: {record['verdict']}; a difference of {record['detectable']:.2f} "
            "points or more would have shown."
        )
    else:
        lines.append(f"Verdict: {record['verdict']}.")
    if any(record["diverged"].values()):
        lines.append(f"Diverged: {record['diverged']['fp32']} in fp32, {record['diverged']['fast']} on the fast path.")
    return "\n".join(lines) + "\n"


def rebuilt(record: dict, results: Path) -> dict:
    """The record that the runs it names give now. Raises UserError where one cannot be read."""
    sides = [[read_json(results / run / "summary.json") for run in record["runs"][side]] for side in SIDES]
    made = compare(record["model"], record["preset"], record["dataset"], list(zip(*sides, strict=True)))
    return made | {"runs": record["runs"]}


def paths(results: Path) -> list[Path]:
    """The records below a results folder."""
    return sorted((Path(results) / FOLDER).glob("*/[!.]*.json"))


def frame(*results: Path) -> pd.DataFrame:
    """A row per side of each record below these results folders.

    Columns: `errors` in percent, mean and standard deviation, and, the same on both sides, the difference fast - fp32
    with its interval (low, high), the verdict, and where the runs come from.
    """
    rows = []
    for path in dict.fromkeys(path.resolve() for folder in results for path in paths(folder)):
        record = read_json(path)
        for side in SIDES:
            errors = record[f"{side}_errors"]
            summary = summarize(errors) if errors else None
            rows.append(
                {
                    **{key: record[key] for key in ("model", "preset", "dataset", "verdict")},
                    **{key: record.get(key) for key in ("difference", "low", "high")},
                    "side": side,
                    "steps": ", ".join((record["precision"] if side == "fast" else ["fp32"]) + record["steps"][side]),
                    "errors": errors,
                    "mean": summary.mean if summary else None,
                    "std": summary.std if summary and summary.n > 1 else None,
                    "device": ", ".join(record["device_name"]),
                    "commit": ", ".join(c[:10] for c in record["commit"]),
                    "file": path.relative_to(path.parents[2]).as_posix(),
                }
            )
    return pd.DataFrame(rows)
