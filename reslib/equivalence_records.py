"""The records of `reslib equivalence`: what two sides of seeds show, as JSON, as a Markdown page and as a frame.

They lie in results/equivalence/<preset>/ beside the runs that were trained for them alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from .errors import UserError
from .runs import read_json, read_recipe
from .stats import summarize, welch

FOLDER = "equivalence"  # below results/
SIDES = ("fp32", "fast")
HEAD = ("model", "preset", "dataset", "command", "sides", "data_fingerprint", "verdict")  # keys of a record
ORIGIN = ("device_name", "torch", "commit", "precision")  # of a run, as its summary has them


def ways(summary: dict) -> set[str]:
    """How the steps of a run were taken, over all its sessions."""
    return {session.get("step", "unknown") for session in summary.get("sessions", [])} or {"unknown"}


def compare(model: str, preset: str, dataset: str, pairs: list[tuple[dict, dict]]) -> dict:
    """Final test errors in percent of (fp32, fast) summaries and, from two seeds on, their difference fast - fp32.

    The difference of the means has Welch's 95% interval (low, high); `paired` is the interval of the differences seed
    by seed. Verdict: "nothing compared" when every fast run is an eager one in fp32 too; "different" when low and high
    are on one side of 0, or when runs of one side alone diverge; else "no difference found", or "too few seeds".
    """
    kept = [p for p in pairs if all(s["status"] == "finished" for s in p)]
    sides = {name: _side([p[n] for p in pairs], [p[n] for p in kept]) for n, name in enumerate(SIDES)}
    record = {
        "model": model,
        "preset": preset,
        "dataset": dataset,
        "sides": sides,
        "data_fingerprint": sorted({s["data_fingerprint"] for p in pairs for s in p}),
    }
    diverged = [sides[name]["diverged"] for name in SIDES]
    same = sides["fast"]["precision"] == ["fp32"] and sides["fast"]["steps"] == ["eager"]
    errors = [sides[name]["errors"] for name in SIDES]
    if same or len(kept) < 2:
        other = "different" if bool(diverged[0]) != bool(diverged[1]) else "too few seeds"
        return record | {"verdict": "nothing compared" if same else other}
    result, paired = welch(*errors), summarize([b - a for a, b in zip(*errors, strict=True)])
    different = not result.low <= 0 <= result.high or bool(diverged[0]) != bool(diverged[1])
    return record | {
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "paired": [paired.low, paired.high],
        "verdict": "different" if different else "no difference found",
    }


def _side(runs: list[dict], kept: list[dict]) -> dict:
    """What the runs of one side have in common and their final errors in percent."""
    sessions = [session for s in runs for session in s.get("sessions", [])]
    return {
        **{key: sorted({str(s.get(key)) for s in runs}) for key in ORIGIN},
        "steps": sorted(set().union(*map(ways, runs))),
        "why": sorted({str(why) for s in sessions if (why := s.get("speed", {}).get("why"))}),
        "finished": sorted({str(s["finished"])[:10] for s in runs if s.get("finished")}),
        "images_per_second": [s["images_per_second"] for s in runs],
        "diverged": sum(s["status"] == "diverged" for s in runs),
        "errors": [100 * s["test_error"] for s in kept],
    }


def markdown(record: dict) -> str:
    """The comparison as a Markdown page."""
    sides = record["sides"]
    lines = [
        f"# Fast path beside fp32: {record['model']} on {record['dataset']}, preset {record['preset']}"
        + f", {record.get('apart')}" * bool(record.get("apart")),
        "",
        f"Data {', '.join(record['data_fingerprint'])}. Made by `{record['command']}`.",
        "",
        "| | steps | seeds | final test error in % | mean ± std | hardware | torch | commit |",
        "| --- | --- | ---: | --- | ---: | --- | --- | --- |",
    ]
    for name in SIDES:
        side, shown = sides[name], ""
        if side["errors"]:
            summary = summarize(side["errors"])
            shown = f"{summary.mean:.2f}" + (f" ± {summary.std:.2f}" if summary.n > 1 else "")
        cells = [name, steps(side), len(side["errors"]), ", ".join(f"{v:.2f}" for v in side["errors"]), shown]
        cells += [", ".join(side[key]) for key in ("device_name", "torch")]
        lines.append("| " + " | ".join(map(str, [*cells, ", ".join(c[:10] for c in side["commit"])])) + " |")
    lines.append("")
    if "difference" in record:
        paired = " to ".join(f"{v:+.2f}" for v in record["paired"])
        lines.append(
            f"Difference fast - fp32: {record['difference']:+.2f} points. Verdict: {record['verdict']}; what lies "
            f"outside {record['low']:+.2f} to {record['high']:+.2f} is excluded at 95% (Welch; seed by seed: {paired})."
        )
    else:
        lines.append(f"Verdict: {record['verdict']}.")
    if any(sides[name]["diverged"] for name in SIDES):
        count = [f"{sides[name]['diverged']} of {len(sides[name]['images_per_second'])}" for name in SIDES]
        lines.append(f"Diverged: {count[0]} in fp32, {count[1]} on the fast path.")
    if differ := [key for key in ("device_name", "torch", "commit") if sides["fp32"][key] != sides["fast"][key]]:
        names = {"device_name": "hardware"}
        lines.append(f"The sides differ in more than the path: in {', '.join(names.get(k, k) for k in differ)}.")
    return "\n".join(lines) + "\n"


def steps(side: dict) -> str:
    """How the steps of a side were taken, in a line."""
    return "; ".join(dict.fromkeys([", ".join(side["precision"]), *side["steps"], *side["why"]]))


def read_record(path: Path) -> dict:
    """A record from disk. Raises UserError for a damaged one."""
    record = read_json(path)
    if missing := [key for key in HEAD if key not in record]:
        raise UserError(f"{path} is no record of `reslib equivalence`: {', '.join(missing)} missing")
    return record


def rebuilt(record: dict, results: Path) -> dict:
    """The record that the runs it names give now. Raises UserError where one cannot be read or does not belong here."""
    sides = {}
    for side in SIDES:
        sides[side] = [(read_recipe(results / run / "recipe.json"), results / run) for run in record["runs"][side]]
        for recipe, folder in sides[side]:
            if (recipe.model, recipe.dataset) != (record["model"], record["dataset"]):
                raise UserError(f"{folder} is of {recipe.model} on {recipe.dataset}")
    summaries = {side: [read_json(folder / "summary.json") for _, folder in runs] for side, runs in sides.items()}
    if [r.replace(precision="auto") for r, _ in sides["fp32"]] != [
        r.replace(precision="auto") for r, _ in sides["fast"]
    ]:
        raise UserError("its runs are no pairs: their recipes differ in more than the precision")
    if any(r.precision != "fp32" for r, _ in sides["fp32"]) or any(ways(s) != {"eager"} for s in summaries["fp32"]):
        raise UserError("its reference is not fp32 in eager steps")
    made = compare(record["model"], record["preset"], record["dataset"], list(zip(*summaries.values(), strict=True)))
    return made | {key: record[key] for key in ("runs", "command", "apart") if key in record}


def alike(first, second) -> bool:
    """Whether two records say the same, numbers but for their last digits: another scipy may round otherwise."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(alike, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-9)
    return first == second


def paths(results: Path) -> list[Path]:
    """The records below a results folder."""
    return sorted((Path(results) / FOLDER).glob("*/[!.]*.json"))


def frame(results: Path, damaged=None) -> pd.DataFrame:
    """A row per side of each record below a results folder.

    Columns: `errors` in percent, their mean, how the steps were taken, and, the same on both sides, the difference
    fast - fp32 with its interval (low, high), the verdict, and where the runs come from. A damaged record raises
    UserError; with `damaged` that is told, and the record left out.
    """
    rows = []
    for path in paths(results):
        try:
            record = read_record(path)
            rows += [_row(record, side, path.relative_to(results).as_posix()) for side in SIDES]
        except (UserError, LookupError, TypeError, ValueError, AttributeError) as error:
            if damaged is None:
                raise UserError(f"{path} cannot be read: {error}") from error
            damaged(f"{path} left out: {error}")
    return pd.DataFrame(rows)


def _row(record: dict, name: str, file: str) -> dict:
    side = record["sides"][name]
    return {
        **{key: record[key] for key in ("model", "preset", "dataset", "verdict")},
        **{key: record.get(key) for key in ("difference", "low", "high")},
        "apart": record.get("apart", ""),
        "side": name,
        "steps": "; ".join([", ".join(side["precision"]), *side["steps"]]),
        "why": ", ".join(side["why"]),
        "errors": side["errors"],
        "mean": summarize(side["errors"]).mean if side["errors"] else None,
        "device": ", ".join(side["device_name"]),
        "torch": ", ".join(side["torch"]),
        "commit": ", ".join(c[:10] for c in side["commit"]),
        "date": max(side["finished"], default=None),
        "file": file,
    }
