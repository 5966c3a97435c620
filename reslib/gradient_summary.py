"""What the norms of the gradients study say: which layers a signal reaches, whether each learns, what cures what."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .criteria import FROZEN, WILD
from .errors import UserError

NEEDED = {"kind", "model", "family", "depth", "seed", "init", "batch_norm", "iteration", "layer", "norm"}
NEEDED |= {"synthetic", "evidence"}


def signal_summary(measured: pd.DataFrame) -> pd.DataFrame:
    """A row per net, seed and iteration: what reaches the first layers, forward and backward, and whether each learns.

    "activation, last / first" and "backward, first / last": medians of a quarter of the layers, 1 for a signal that
    keeps its size on its way; "gradient": its smallest and largest norm over the layers, and a verdict by FROZEN, WILD.
    """
    rows = []
    keys = ["batch_norm", "init", "family", "depth", "model", "seed", "iteration"]
    for key, net in measured.groupby(keys, sort=True):
        norms = {kind: part.sort_values("layer")["norm"] for kind, part in net.groupby("kind")}
        first, last = ({k: _quarter(v, end) for k, v in norms.items()} for end in (0, 1))
        gradient = norms["gradient"]
        rows.append(
            dict(zip(keys, key, strict=True))
            | {
                "activation, last / first": _ratio(last["activation"], first["activation"]),
                "backward, first / last": _ratio(first["backward"], last["backward"]),
                "smallest gradient": gradient.min(skipna=False),
                "largest gradient": gradient.max(skipna=False),
                "gradients": _verdict(gradient),
            }
        )
    by = ["batch_norm", "init", "family", "depth", "seed", "iteration"]
    return pd.DataFrame(rows).sort_values(by, ignore_index=True)


def captioned(measured: pd.DataFrame) -> dict[str, tuple[pd.DataFrame, str]]:
    """The two tables of the study by the name of their files, each with its caption.

    Raises UserError naming a column that the measurement, of an older version perhaps, does not have.
    """
    if missing := NEEDED - set(measured.columns):
        raise UserError(f"the measurement of gradients lacks {', '.join(sorted(missing))}: run its notebook again")
    summary = signal_summary(measured)
    start = summary[summary["iteration"] == 0]
    short = start.map(lambda value: f"{value:.2g}" if isinstance(value, float) else value)
    warning = "SYNTHETIC DATA. " if measured["synthetic"].any() else ""
    evidence = measured["evidence"].iloc[0]
    words = "What normalised initialisation and batch norm cure, deepest nets, one batch."
    return {
        "gradients": (short, f"{warning}Signals at the start of training, one batch. {evidence}"),
        "gradients_cures": (cures(summary), f"{warning}{words} {evidence}"),
    }


def cures(summary: pd.DataFrame) -> pd.DataFrame:
    """What batch norm and each initialisation cure in the deepest nets: a row per combination and family, as text.

    For the start and the last iteration measured: the worst verdict over seeds, and the medians over seeds of the two
    ratios of `signal_summary`.
    """
    deep = summary[summary["depth"] == summary["depth"].max()]
    last = deep["iteration"].max()
    rows = []
    for key, net in deep.groupby(["family", "batch_norm", "init"], sort=True):
        row = dict(
            zip(("family", "batch norm", "initialisation"), (key[0], "yes" if key[1] else "no", key[2]), strict=True)
        )
        for iteration, words in {0: "at the start", last: f"at iteration {last}"}.items():
            part = net[net["iteration"] == iteration]
            row[f"gradients {words}"] = worst_verdict(part["gradients"])
            for column in ("activation, last / first", "backward, first / last"):
                row[f"{column} {words}"] = f"{part[column].median():.2g}"
        rows.append(row)
    return pd.DataFrame(rows)


def worst_verdict(verdicts: pd.Series) -> str:
    """Of several seeds' verdicts the one that is least like "healthy", with how many of them say it."""
    order = ("not finite", "explode", "vanish", "healthy")
    worst = min(verdicts, key=order.index)
    count = int((verdicts == worst).sum())
    return worst if count == len(verdicts) else f"{worst} ({count} of {len(verdicts)})"


def _quarter(norms: pd.Series, end: int) -> float:
    size = max(1, len(norms) // 4)
    return norms.iloc[-size:].median(skipna=False) if end else norms.iloc[:size].median(skipna=False)


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")


def _verdict(gradient: pd.Series) -> str:
    if not np.isfinite(gradient).all():
        return "not finite"
    if gradient.max() > WILD:
        return "explode"
    return "vanish" if gradient.min() < FROZEN else "healthy"
