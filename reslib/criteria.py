"""How each of the paper's claims is judged: a function from the runs to (verdict, evidence in words).

The claims themselves, with their criteria in words, are in claims.py. Errors in evidence are in %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import comparison, paper, stats
from .tables import paper_z

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "not enough evidence"
ONE_SEED = "single seeds"  # in the evidence of verdicts that rest on such
COMPARABLE_POINTS = 1.0  # errors that differ by no more are called comparable
WIDEST_INTERVAL = 0.5  # half width in points above which agreement of ResNet-110 with the paper says nothing
TABLE6_DEPTHS = (20, 32, 44, 56)
TABLE6_Z = 2.5  # of four comparisons one goes beyond it by chance in 5% of all studies (two-sided normal, 4 x 1.24%)
WARMUP_FACTOR = 2.0  # "about 400 iterations" is read as 200 to 800
# A layer whose gradient stays below FROZEN moves by less than 0.34 in the whole training: FROZEN times the sum of the
# rates, divided by 1 - 0.9 for the momentum. Its weights begin with a norm of 2 to 11 (He's initialisation). Above WILD
# a single step at 0.1 moves it by more than 10, about that length.
FROZEN, WILD = 1e-5, 100.0


@dataclass(frozen=True)
class Frames:
    """What claims are judged on: finished runs of one recipe per model, and optional measurements."""

    runs: pd.DataFrame
    curves: pd.DataFrame | None = None
    responses: pd.DataFrame | None = None  # model, layer, std
    gradients: pd.DataFrame | None = None  # kind, model, family, depth, batch_norm, iteration, layer, norm

    def of(self, model: str) -> pd.DataFrame:
        """The runs of one network."""
        return self.runs[self.runs["model"] == model]


def compare(frames: Frames, first: str, second: str, column: str = "test_error") -> tuple[int, str]:
    """Sign of second - first, 0 if within its uncertainty, and the comparison in words."""
    return comparison.compare(frames.of(first), frames.of(second), column, frames.runs)


def _all(comparisons: list[tuple[int, str]], wanted: int) -> tuple[str, str]:
    """Holds if every comparison has the wanted sign; does not hold if one has the opposite sign."""
    signs, texts = [s for s, _ in comparisons], "; ".join(t for _, t in comparisons)
    if -wanted in signs:
        return FAILS, texts
    return (HOLDS, texts) if all(s == wanted for s in signs) else (UNDECIDED, f"{texts}; within the uncertainty")


def pair(first: str, second: str, wanted: int, columns: tuple[str, ...] = ("train_error", "test_error")):
    """A criterion: every error of `second` differs from that of `first` with the sign `wanted`."""
    return lambda frames: _all([compare(frames, first, second, c) for c in columns], wanted)


def comparable(first: str, second: str):
    """A criterion: the test errors of two networks differ by no more than COMPARABLE_POINTS."""

    def judged(frames: Frames) -> tuple[str, str]:
        pair = frames.of(first), frames.of(second)
        d, text = (f(*pair, others=frames.runs) for f in (comparison.difference, comparison.in_words))
        if d.low > COMPARABLE_POINTS or d.high < -COMPARABLE_POINTS:
            return FAILS, text
        within = -COMPARABLE_POINTS <= d.low and d.high <= COMPARABLE_POINTS
        return (HOLDS, text) if within else (UNDECIDED, f"{text}; the interval is too wide to tell")

    return judged


def degradation(frames: Frames) -> tuple[str, str]:
    """The ends of the range decide; a depth between them that is trained must not be better than a shallower one."""
    columns = ("train_error", "test_error")
    names = [m for m in (f"plain{d}" for d in paper.FIGURE6_PLAIN) if len(frames.of(m))]
    names = [m for m in names if not comparison.differing(pd.concat([frames.of("plain20"), frames.of(m)]))]
    verdict, text = _all([compare(frames, "plain20", "plain56", c) for c in columns], 1)
    if len(names) == 2:
        return verdict, text
    steps = [compare(frames, a, b, c) for c in columns for a, b in zip(names, names[1:], strict=False)]
    for column in columns:
        means = ", ".join(f"{100 * frames.of(m)[column].mean():.2f}" for m in names)
        depths = ", ".join(m.removeprefix("plain") for m in names)
        text += f"; {'training' if column == 'train_error' else 'test'} {means} at {depths} layers"
    return (FAILS, f"{text}; better at a greater depth") if any(sign < 0 for sign, _ in steps) else (verdict, text)


def warmup(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: the warm-up of ResNet-110 ended after about as many iterations as the paper's."""
    runs = frames.of("resnet110")
    ends = [None if np.isnan(end) else int(end) for end in runs["warmup_ended_at"].astype(float)]
    low, high = paper.WARMUP_ITERATIONS / WARMUP_FACTOR, paper.WARMUP_ITERATIONS * WARMUP_FACTOR
    text = f"ended after {', '.join('never' if end is None else f'{end:,}' for end in ends)} iterations"
    if any(end is None for end in ends) and (runs["iterations"] < high).any():
        return UNDECIDED, f"{text}; too short a training to tell"
    windows = runs.get("warmup_window", [0] * len(runs))
    first = [int(window) for end, window in zip(ends, windows, strict=True) if end == window > low]
    if first and all(end is not None and low <= end <= high for end in ends):
        return UNDECIDED, f"{text}, the first that an error over {max(first)} iterations can end it at"
    return (HOLDS if all(end is not None and low <= end <= high for end in ends) else FAILS), text


def plain110(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: plain-110 stays above 60 % training error."""
    errors = frames.of("plain110")["train_error"] * 100
    text = f"training error of plain-110 {', '.join(f'{e:.2f}' for e in errors)}"
    return (HOLDS if (errors > paper.PLAIN110_TRAINING_ERROR_ABOVE).all() else FAILS), text


def deeper_is_better(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: the test error of residual nets falls from 20 to 110 layers."""
    names = [f"resnet{d}" for d in paper.FIGURE6_RESNET]
    means = [100 * frames.of(m)["test_error"].mean() for m in names]
    steps = [compare(frames, a, b) for a, b in zip(names, names[1:], strict=False)]
    ends = compare(frames, names[0], names[-1])
    text = f"test {', '.join(f'{m:.2f}' for m in means)} (20 to 110 layers); {ends[1]}"
    worse = [words for sign, words in steps if sign > 0]
    if ends[0] > 0 or worse:
        return FAILS, "; worse: ".join([text, *worse])
    return (HOLDS, text) if _falls(means) and ends[0] < 0 else (UNDECIDED, f"{text}; within the uncertainty")


def _falls(values: list[float]) -> bool:
    return all(a > b for a, b in zip(values, values[1:], strict=False))


def residual_beats_plain(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: residual nets test no worse at 20 layers and better at more."""
    shallow, shallow_text = compare(frames, "plain20", "resnet20")
    pairs = [(f"plain{d}", f"resnet{d}") for d in (32, 44, 56)]
    pairs = [(a, b) for a, b in pairs if len(frames.of(a)) and len(frames.of(b))]
    alike = [pair for pair in pairs if not comparison.differing(pd.concat([frames.of(m) for m in pair]))]
    deep = [compare(frames, a, b) for a, b in alike]
    gap = 100 * (frames.of("resnet20")["test_error"].mean() - frames.of("plain20")["test_error"].mean())
    verdict, text = _all(deep, -1)
    text = f"{shallow_text}; {text}"
    if gap > COMPARABLE_POINTS:
        text += "; at 20 layers the residual net is worse" + ", within the uncertainty" * (shallow <= 0)
        return (FAILS if verdict == FAILS or shallow > 0 else UNDECIDED), text
    return verdict, text


def resnet110(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: the mean of ResNet-110 agrees with the paper's mean of five runs."""
    quoted, own = paper.TABLE6["resnet110"], stats.summarize(frames.of("resnet110")["test_error"] * 100)
    if own.n < 2:
        return UNDECIDED, f"test {own.mean:.2f} of a single seed; the paper's is a mean of five"
    d = stats.welch_from_moments(quoted.mean, quoted.std, quoted.seeds, own.mean, own.std, own.n)
    text = f"mean {own.mean:.2f}, 95% {own.low:.2f} to {own.high:.2f}; from the paper's mean {d.difference:+.2f}, "
    text += f"95% {d.low:+.2f} to {d.high:+.2f}"
    if own.high - own.low > 2 * WIDEST_INTERVAL:
        return UNDECIDED, f"{text}; the interval is too wide to tell"
    if abs(d.difference) <= quoted.std:
        return HOLDS, text
    return (FAILS, text) if d.low > 0 or d.high < 0 else (UNDECIDED, f"{text}; outside, within the uncertainty")


def resnet1202(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: ResNet-1202 fits the training images, and tests worse than ResNet-110."""
    train = 100 * frames.of("resnet1202")["train_error"]
    worse, text = compare(frames, "resnet110", "resnet1202")
    text = f"training error of ResNet-1202 {', '.join(f'{e:.3f}' for e in train)}; {text}"
    if (train >= paper.RESNET1202_TRAINING_ERROR_BELOW).any() or worse < 0:
        return FAILS, text
    return (HOLDS, text) if worse > 0 else (UNDECIDED, f"{text}; within the uncertainty")


def fewer_parameters(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: ResNet-110 has fewer parameters than FitNet and Highway, and tests better."""
    others = ("fitnet19", "highway19")
    counts = {m: int(frames.of(m)["parameters"].max()) for m in ("resnet110", *others)}
    verdict, text = _all([compare(frames, m, "resnet110") for m in others], -1)
    text = f"parameters {', '.join(f'{paper.label(m)} {n:,}' for m, n in counts.items())}; {text}"
    return (FAILS, text) if counts["resnet110"] >= min(counts[m] for m in others) else (verdict, text)


def table6(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: the residual rows of Table 6, each by its z."""
    z = [paper_z(f"resnet{d}", frames.of(f"resnet{d}")) for d in TABLE6_DEPTHS]
    return (HOLDS if all(abs(v) <= TABLE6_Z for v in z) else FAILS), table6_so_far(frames)


def table6_so_far(frames: Frames) -> str:
    """Those rows that are there, at the paper's scale, in words."""
    words = []
    for model in (f"resnet{d}" for d in TABLE6_DEPTHS):
        runs = frames.of(model)
        if len(runs) and (z := paper_z(model, runs)) is not None:
            mean, printed = 100 * runs["test_error"].mean(), paper.TABLE6[model].error
            words.append(f"{paper.label(model)} {mean:.2f}, paper {printed:.2f}, z {z:+.1f}")
    return "; ".join(words)


def same_parameters(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: plain and residual nets of one depth have the same parameters."""
    runs = frames.runs[frames.runs["shortcut"] == "A"] if "shortcut" in frames.runs else frames.runs
    runs = runs.dropna(subset=["parameters"])
    known = runs["dataset"] == "cifar10"  # ten classes: the count itself is known too
    real = set(runs.loc[known & (runs["options"] == "") if "options" in runs else known, "depth"])
    table = runs.pivot_table(index="depth", columns="family", values="parameters", aggfunc=lambda p: tuple(set(p)))
    if not {"plain", "resnet"} <= set(table.columns) or (pairs := table[["plain", "resnet"]].dropna()).empty:
        return UNDECIDED, "no depth with both a plain and a residual net trained"
    texts, same = [], True
    for depth, row in pairs.iterrows():
        counts = sorted({int(p) for p in row["plain"] + row["resnet"]})
        same &= len(counts) == 1 and (
            depth not in real or counts[0] == paper.EXACT_PARAMETERS.get(int(depth), counts[0])
        )
        texts.append(f"{int(depth)} layers {' and '.join(f'{c:,}' for c in counts)}")
    return (HOLDS if same else FAILS), "; ".join(texts)


def responses(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: layers of residual nets respond more weakly than those of plain ones."""
    level = frames.responses.groupby("model")["std"].mean()
    depths = [d for d in (20, 32, 44, 56, 110) if {f"plain{d}", f"resnet{d}"} <= set(level.index)]
    if not depths:
        return UNDECIDED, "no depth with responses of both a plain and a residual net"
    ratios = {d: level[f"resnet{d}"] / level[f"plain{d}"] for d in depths}
    text = "mean std, residual / plain: " + ", ".join(f"{d} layers {r:.2f}" for d, r in ratios.items())
    return _by_ratio(list(ratios.values()), text)


def deeper_responses(frames: Frames) -> tuple[str, str]:
    """Verdict and evidence: layers of deeper residual nets respond more weakly."""
    level = frames.responses.groupby("model")["std"].mean()
    names = [m for m in ("resnet20", "resnet56", "resnet110") if m in level.index]
    if len(names) < 2:
        return UNDECIDED, "fewer than two of ResNet-20, 56 and 110 measured"
    text = "mean std: " + ", ".join(f"{paper.label(m)} {level[m]:.3f}" for m in names)
    return _by_ratio([level[b] / level[a] for a, b in zip(names, names[1:], strict=False)], text)


def _by_ratio(ratios: list[float], text: str) -> tuple[str, str]:
    """Below 1 by 5% counts; there is no error bar on a response, so what is nearer to 1 is left open."""
    if any(r > 1.05 for r in ratios):
        return FAILS, text
    return (HOLDS, text) if all(r < 0.95 for r in ratios) else (UNDECIDED, f"{text}; not everywhere below by 5%")


def gradients(frames: Frames) -> tuple[str, str]:
    """On plain nets as the paper trains them: batch norm, He's initialisation."""
    df = frames.gradients
    df = df[(df["kind"] == "gradient") & (df["family"] == "plain") & df["batch_norm"].astype(bool)]
    df = df[df["init"] == "he"] if "init" in df else df
    if df.empty:
        return UNDECIDED, "gradients of plain nets with batch norm not measured"
    texts, alive = [], True
    for model, net in df.groupby("model", sort=False):
        norms = net["norm"].where(np.isfinite(net["norm"]), 0.0)  # an overflow is no healthy norm either
        alive &= bool((norms >= FROZEN).all())
        worst = net.iloc[norms.argmin()]
        ratios = [_first_to_last(at) for _, at in net.groupby([c for c in ("seed", "iteration") if c in net])]
        texts.append(
            f"{paper.label(model)} smallest {norms.min():.2g} (layer {worst['layer']:g}, iteration "
            f"{worst['iteration']:g}), first / last quarter of the layers {min(ratios):.2g} to {max(ratios):.2g}"
        )
    steps = f"iterations 0 to {df['iteration'].max():g}"
    seeds = df["seed"].nunique() if "seed" in df else 1
    loud = ["SYNTHETIC DATA"] if "synthetic" in df and df["synthetic"].fillna(False).astype(bool).any() else []
    alone = f", {ONE_SEED}" * (seeds == 1)
    return (HOLDS if alive else FAILS), "; ".join([*texts, f"{steps}, n = {seeds}{alone}", *loud])


def _first_to_last(net: pd.DataFrame) -> float:
    """Median norm of the first quarter of the layers over that of the last."""
    norms = net.sort_values("layer")["norm"]
    quarter = max(1, len(norms) // 4)
    last = norms.iloc[-quarter:].median()
    return norms.iloc[:quarter].median() / last if last else math.nan


def converges_faster(frames: Frames) -> tuple[str, str]:
    """Mean validation error over the first half of training, per run."""
    curves = frames.curves[frames.curves["run"].isin(frames.runs["run"])].dropna(subset=["test_error"])
    half = curves[curves["iteration"] <= curves.groupby("run")["iteration"].transform("max") / 2]
    early = half.groupby("run")["test_error"].mean()
    runs = frames.runs.assign(test_error=frames.runs["run"].map(early)).dropna(subset=["test_error"])
    pair = [runs[runs["model"] == model] for model in ("plain18", "resnet18")]
    if any(rows.empty for rows in pair):
        return UNDECIDED, "no points in the first half of training"
    if comparison.difference(*pair).interval != comparison.BINOMIAL:
        verdict, text = _all([comparison.compare(*pair)], -1)
        return verdict, f"mean over the first half: {text}"
    plain, residual = (half[half["run"].isin(rows["run"])].groupby("iteration")["test_error"].mean() for rows in pair)
    gap = (residual - plain).dropna()  # at the iterations at which both were tested
    lower, higher = int((gap < 0).sum()), int((gap > 0).sum())
    means = ", ".join(f"{paper.label(rows['model'].iloc[0])} {100 * rows['test_error'].mean():.2f}" for rows in pair)
    text = f"mean over the first half: validation {means}; the residual net lower at {lower} of {len(gap)} evaluations"
    return (HOLDS if lower == len(gap) > 0 else FAILS if higher == len(gap) > 0 else UNDECIDED), text
