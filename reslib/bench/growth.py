"""How cost grows, from the benchmark's records: points on axes of depth, batch size and width as a frame."""

from __future__ import annotations

import re

import pandas as pd

from ..names import is_imagenet
from .records import origin, threads_of

CROSSING = {"depth": 20, "batch": 128, "width": 16}  # of the axes of `--scaling`: a network that lies on each


def scaling(records: list[dict]) -> pd.DataFrame:
    """A row per point of `--scaling`; of points measured again on one device the last that has a speed.

    The axes cross in one network; where that was measured along one of them alone, it stands on the others too that
    have points of their own. A depth that only comparisons measured is a point as well, unless it is its device's only
    one, which shows no growth.
    """
    compared = [_point(record, point) for record in records for point in _compared_depths(record)]
    asked = [_point(record, point) for record in records for point in record["scaling"]]
    depths = {}
    for row in compared:
        depths.setdefault(row["device"], set()).add(row["value"])
    grown = {row["device"] for row in asked} | {device for device, found in depths.items() if len(found) > 1}
    rows = [row for row in compared if row["device"] in grown] + asked
    if not rows:
        return pd.DataFrame()
    frame = pd.DataFrame(rows)
    measured = frame.iloc[(frame["failed"] == "").argsort(kind="stable")]
    again = measured.assign(threads=threads_of(measured)).duplicated(
        ["device", "threads", "axis", "value"], keep="last"
    )
    return _crossing(measured[~again].sort_index())


def _point(record: dict, point: dict) -> dict:
    """A row of such a point."""
    memory = (point.get("peak_memory_mib") or {}).values()
    turns = point.get("images_per_second_turns") or [None]
    named = ("axis", "value", "model", "batch_size", "width", "precision", "contender", "images_per_second")
    return {
        **origin(record),
        **{name: point.get(name) for name in named},
        "low": min(turns),
        "high": max(turns),
        "peak_memory_mib": max(memory, default=None),
        "failed": point.get("failed", ""),
    }


def _compared_depths(record: dict) -> list[dict]:
    """Points on the axis of depths: CIFAR's residual nets that a comparison has measured as `--scaling` does."""
    way, points = "fast" if record["environment"]["device"] == "cuda" else "eager", []
    for part in record["comparisons"]:
        depth = re.fullmatch(r"resnet(\d+)", part["model"])
        if not depth or is_imagenet(part["model"]) or part["batch_size"] != CROSSING["batch"]:
            continue
        place = {"axis": "depth", "value": int(depth[1]), "model": part["model"], "batch_size": part["batch_size"]}
        place["width"] = CROSSING["width"]
        points += [row | place for row in part["contenders"] if row["contender"] == way]
    return points


def _crossing(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame, with the point in which the axes cross on each axis of its device that lacks it.

    What failed there is left out then, and an axis that has no other point gets no copy.
    """
    here = frame["value"] == frame["axis"].map(CROSSING)
    here &= frame["model"].eq(f"resnet{CROSSING['depth']}") & frame["batch_size"].eq(CROSSING["batch"])
    kept, copies = frame["failed"] == "", []
    for _, points in frame.groupby(["device", threads_of(frame)], sort=False, dropna=False):
        known = points[kept[points.index]]
        base = known[here[known.index]]
        if base.empty:
            kept[points.index] = True
            continue
        kept[points.index] |= ~here[points.index]
        for axis, value in CROSSING.items():
            if (known["axis"] == axis).any() and not (base["axis"] == axis).any():
                copies.append(base.iloc[-1:].assign(axis=axis, value=value))
    return pd.concat([frame[kept], *copies], ignore_index=True)
