"""The paper's claims, each with a criterion that can fail, judged on the runs at hand.

Verdicts: "holds", "does not hold", "not enough evidence". A difference counts only when it is larger than its
uncertainty: the 95% Welch interval over seeds where both sides have two seeds or more, else twice the binomial
standard error of one test. Claims about absolute numbers are judged only on runs of the paper's scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from . import evidence, paper, stats
from .tables import paper_z

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "not enough evidence"
COMPARABLE_POINTS = 1.0  # ResNet-20 may test worse than plain-20 by this much and still be called comparable
WIDEST_INTERVAL = 0.5  # half width in points above which agreement of ResNet-110 with the paper says nothing
VANISHING = 1e-2  # early layers' median gradient norm below this part of the late layers' has vanished
SAME_DATA = ("dataset", "data_fingerprint", "iterations", "batch_size", "train_size", "val_size", "test_size")


@dataclass(frozen=True)
class Frames:
    """What claims are judged on: finished runs of one recipe per model, and optional measurements."""

    runs: pd.DataFrame
    curves: pd.DataFrame | None = None
    responses: pd.DataFrame | None = None  # model, layer, std
    gradients: pd.DataFrame | None = None  # kind, model, family, depth, batch_norm, iteration, layer, norm

    def of(self, model: str) -> pd.DataFrame:
        return self.runs[self.runs["model"] == model]


@dataclass(frozen=True)
class Claim:
    id: str
    text: str
    source: str
    criterion: str
    scale: str  # "any", or "paper" for absolute numbers
    models: tuple[str, ...]  # runs the claim needs; without one of them there is not enough evidence
    evaluate: Callable[[Frames], tuple[str, str]]  # -> verdict, evidence
    needs: str = ""  # the measurement it needs: "curves", "responses" or "gradients"


def scoreboard(
    runs: pd.DataFrame,
    curves: pd.DataFrame | None = None,
    responses: pd.DataFrame | None = None,
    gradients: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """A row per claim: claim, source, criterion, scale, evidence, verdict."""
    runs = evidence.finished(runs)
    imagenet = evidence.is_imagenet(runs)
    parts = {  # one recipe per model and part of the study
        True: Frames(evidence.main_runs(runs[imagenet]), curves),
        False: Frames(evidence.main_runs(runs[~imagenet]), curves, responses, gradients),
    }
    rows = []
    for claim in CLAIMS:
        verdict, found = judge(claim, parts[claim in IMAGENET_CLAIMS])
        rows.append((claim.text, claim.source, claim.criterion, claim.scale, found, verdict))
    return pd.DataFrame(rows, columns=["claim", "source", "criterion", "scale", "evidence", "verdict"])


def judge(claim: Claim, frames: Frames) -> tuple[str, str]:
    """Verdict and evidence, after the checks that all claims share: runs present, same data, scale."""
    if missing := [paper.label(m) for m in claim.models if frames.of(m).empty]:
        return UNDECIDED, f"no finished runs of {', '.join(missing)}"
    measured = getattr(frames, claim.needs) if claim.needs else None
    if claim.needs and (measured is None or measured.empty):
        return UNDECIDED, f"{claim.needs} not measured"
    models = claim.models or (set(measured["model"]) if claim.needs else ())
    used = frames.runs[frames.runs["model"].isin(models)]
    if claim.models and (column := _differing(used)):
        return UNDECIDED, f"the runs differ in {column}: {', '.join(sorted(map(str, used[column].unique())))}"
    if claim.scale == "paper" and not evidence.at_paper_scale(used):
        return UNDECIDED, f"judged only on CIFAR-10 with {paper.PAPER_ITERATIONS:,} iterations"
    verdict, found = claim.evaluate(frames)
    return verdict, "; ".join([found, *_caveats(used)])


def _differing(rows: pd.DataFrame) -> str:
    """The first column of data or budget in which runs to be compared differ."""
    return next((c for c in SAME_DATA if c in rows and rows[c].nunique() > 1), "")


def _caveats(used: pd.DataFrame) -> list[str]:
    if used.empty:
        return []
    seeds = used.groupby("model")["seed"].nunique()
    low, high = seeds.min(), seeds.max()
    notes = [f"n = {low}" if low == high else f"n = {low} to {high}"]
    if evidence.is_synthetic(used).any():
        notes.append("SYNTHETIC DATA")
    elif not evidence.at_paper_scale(used) and (used["dataset"] != "imagenet").any():
        notes.append(f"{used['dataset'].iloc[0]}, {int(used['iterations'].iloc[0]):,} iterations")
    for model, group in used.groupby("model"):
        if stats.summarize(group["test_error"]).zero_variance:
            notes.append(f"seeds of {paper.label(model)} are all equal")
    return notes


def compare(frames: Frames, first: str, second: str, column: str = "test_error") -> tuple[int, str]:
    """Sign of second - first, 0 if within its uncertainty, and the comparison in words."""
    return evidence.compare(frames.of(first), frames.of(second), column)


def _all(comparisons: list[tuple[int, str]], wanted: int) -> tuple[str, str]:
    """Holds if every comparison has the wanted sign; does not hold if one has the opposite sign."""
    signs, texts = [s for s, _ in comparisons], "; ".join(t for _, t in comparisons)
    if -wanted in signs:
        return FAILS, texts
    return (HOLDS, texts) if all(s == wanted for s in signs) else (UNDECIDED, f"{texts}; within the uncertainty")


def _pair(first: str, second: str, wanted: int, columns: tuple[str, ...] = ("train_error", "test_error")):
    return lambda frames: _all([compare(frames, first, second, c) for c in columns], wanted)


def _plain110(frames: Frames) -> tuple[str, str]:
    errors = frames.of("plain110")["train_error"] * 100
    text = f"training error of plain-110 {', '.join(f'{e:.2f}' for e in errors)}"
    return (HOLDS if (errors > paper.PLAIN110_TRAINING_ERROR_ABOVE).all() else FAILS), text


def _deeper_is_better(frames: Frames) -> tuple[str, str]:
    names = [f"resnet{d}" for d in paper.FIGURE6_RESNET]
    means = [100 * frames.of(m)["test_error"].mean() for m in names]
    steps = [compare(frames, a, b) for a, b in zip(names, names[1:], strict=False)]
    ends = compare(frames, names[0], names[-1])
    text = f"test {', '.join(f'{m:.2f}' for m in means)} (20 to 110 layers); {ends[1]}"
    if ends[0] > 0 or any(sign > 0 for sign, _ in steps):
        return FAILS, text
    return (HOLDS, text) if _falls(means) and ends[0] < 0 else (UNDECIDED, f"{text}; within the uncertainty")


def _falls(values: list[float]) -> bool:
    return all(a > b for a, b in zip(values, values[1:], strict=False))


def _residual_beats_plain(frames: Frames) -> tuple[str, str]:
    shallow, shallow_text = compare(frames, "plain20", "resnet20")
    pairs = [(f"plain{d}", f"resnet{d}") for d in (32, 44, 56)]
    pairs = [(a, b) for a, b in pairs if len(frames.of(a)) and len(frames.of(b))]
    deep = [compare(frames, a, b) for a, b in pairs if not _differing(pd.concat([frames.of(a), frames.of(b)]))]
    gap = 100 * (frames.of("resnet20")["test_error"].mean() - frames.of("plain20")["test_error"].mean())
    verdict, text = _all(deep, -1)
    text = f"{shallow_text}; {text}"
    if shallow > 0 and gap > COMPARABLE_POINTS:
        return FAILS, f"{text}; at 20 layers the residual net is worse"
    return verdict, text


def _resnet110(frames: Frames) -> tuple[str, str]:
    quoted, own = paper.TABLE6["resnet110"], stats.summarize(frames.of("resnet110")["test_error"] * 100)
    if own.n < 2:
        return UNDECIDED, f"test {own.mean:.2f} of a single seed; the paper's is a mean of five"
    reach = stats.t_quantile(quoted.seeds - 1) * quoted.std / math.sqrt(quoted.seeds)
    text = f"mean {own.mean:.2f}, 95% {own.low:.2f} to {own.high:.2f}; paper {quoted.mean - reach:.2f} to "
    text += f"{quoted.mean + reach:.2f}"
    if own.low > quoted.mean + reach or own.high < quoted.mean - reach:
        return FAILS, text
    wide = own.high - own.low > 2 * WIDEST_INTERVAL
    return (UNDECIDED, f"{text}; the interval is too wide to tell") if wide else (HOLDS, text)


def _resnet1202(frames: Frames) -> tuple[str, str]:
    train = 100 * frames.of("resnet1202")["train_error"]
    worse, text = compare(frames, "resnet110", "resnet1202")
    text = f"training error of ResNet-1202 {', '.join(f'{e:.3f}' for e in train)}; {text}"
    if (train >= paper.RESNET1202_TRAINING_ERROR_BELOW).any() or worse < 0:
        return FAILS, text
    return (HOLDS, text) if worse > 0 else (UNDECIDED, f"{text}; within the uncertainty")


def _table6(frames: Frames) -> tuple[str, str]:
    names = [f"resnet{d}" for d in (20, 32, 44, 56)]
    z = {m: paper_z(m, frames.of(m)) for m in names}
    means = {m: 100 * frames.of(m)["test_error"].mean() for m in names}
    text = "; ".join(
        f"{paper.label(m)} {means[m]:.2f}, paper {paper.TABLE6[m].error:.2f}, z {z[m]:+.1f}" for m in names
    )
    return (HOLDS if all(abs(v) <= 2 for v in z.values()) else FAILS), text


def _same_parameters(frames: Frames) -> tuple[str, str]:
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


def _responses(frames: Frames) -> tuple[str, str]:
    level = frames.responses.groupby("model")["std"].mean()
    depths = [d for d in (20, 32, 44, 56, 110) if {f"plain{d}", f"resnet{d}"} <= set(level.index)]
    if not depths:
        return UNDECIDED, "no depth with responses of both a plain and a residual net"
    ratios = {d: level[f"resnet{d}"] / level[f"plain{d}"] for d in depths}
    text = "mean std, residual / plain: " + ", ".join(f"{d} layers {r:.2f}" for d, r in ratios.items())
    return _by_ratio(list(ratios.values()), text)


def _deeper_responses(frames: Frames) -> tuple[str, str]:
    level = frames.responses.groupby("model")["std"].mean()
    names = [m for m in ("resnet20", "resnet56", "resnet110") if m in level.index]
    if len(names) < 2:
        return UNDECIDED, "fewer than two depths of residual nets measured"
    text = "mean std: " + ", ".join(f"{paper.label(m)} {level[m]:.3f}" for m in names)
    return _by_ratio([level[b] / level[a] for a, b in zip(names, names[1:], strict=False)], text)


def _by_ratio(ratios: list[float], text: str) -> tuple[str, str]:
    """Below 1 by 5% counts; there is no error bar on a response, so what is nearer to 1 is left open."""
    if any(r > 1.05 for r in ratios):
        return FAILS, text
    return (HOLDS, text) if all(r < 0.95 for r in ratios) else (UNDECIDED, f"{text}; within 5% of each other")


def _gradients(frames: Frames) -> tuple[str, str]:
    df = frames.gradients
    df = df[(df["kind"] == "gradient") & (df["family"] == "plain") & df["batch_norm"].astype(bool)]
    if df.empty:
        return UNDECIDED, "gradients of plain nets with batch norm not measured"
    texts, healthy = [], True
    columns = [c for c in ("model", "init", "iteration") if c in df]
    for key, group in df.groupby(columns):
        norms = group.groupby("layer")["norm"].mean()
        quarter = max(1, len(norms) // 4)
        alive = bool(np.isfinite(norms).all() and (norms > 0).all())
        ratio = norms.iloc[:quarter].median() / norms.iloc[-quarter:].median() if alive else 0.0
        healthy &= alive and ratio >= VANISHING
        name = " ".join(map(str, (paper.label(key[0]), *key[1:-1], "at", key[-1])))
        texts.append(f"{name}: {ratio:.2g}" if alive else f"{name}: zero or not finite")
    return (HOLDS if healthy else FAILS), "first / last quarter of the layers, " + ", ".join(texts)


def _converges_faster(frames: Frames) -> tuple[str, str]:
    """Mean validation error over the first half of training, per run."""
    curves = frames.curves[frames.curves["run"].isin(frames.runs["run"])].dropna(subset=["test_error"])
    half = curves[curves["iteration"] <= curves.groupby("run")["iteration"].transform("max") / 2]
    early = half.groupby("run")["test_error"].mean()
    runs = frames.runs.assign(test_error=frames.runs["run"].map(early)).dropna(subset=["test_error"])
    part = Frames(runs)
    if part.of("plain18").empty or part.of("resnet18").empty:
        return UNDECIDED, "no points in the first half of training"
    verdict, text = _all([compare(part, "plain18", "resnet18")], -1)
    return verdict, f"mean over the first half: {text}"


_UNCERTAIN = "beyond the 95% Welch interval over seeds, with one seed beyond two binomial standard errors"
CIFAR_CLAIMS = (
    Claim("degradation", "Plain nets get worse with depth, in training too", "Figure 1; section 4.2",
          f"training and test error of plain-56 above plain-20, {_UNCERTAIN}", "any", ("plain20", "plain56"),
          _pair("plain20", "plain56", 1)),
    Claim("plain110", "plain-110 stays above 60% error", "Figure 6, caption",
          "final training error above 60% in every run", "paper", ("plain110",), _plain110),
    Claim("deeper", "Residual nets get better from 20 to 110 layers", "Figure 6; Table 6",
          f"mean test error falls at 20, 32, 44, 56, 110 layers; 110 below 20 {_UNCERTAIN}", "any",
          tuple(f"resnet{d}" for d in paper.FIGURE6_RESNET), _deeper_is_better),
    Claim("residual", "Residual nets beat plain nets: comparable at 20 layers, better when deeper",
          "Figure 6; section 4.2", f"test error at 20 layers not worse by more than {COMPARABLE_POINTS:g} point; at "
          f"32, 44, 56 (where both are trained) below the plain net's, {_UNCERTAIN}", "any",
          ("plain20", "resnet20", "plain56", "resnet56"), _residual_beats_plain),
    Claim("resnet110", "ResNet-110 has 6.61 ± 0.16% test error", "Table 6, ResNet-110",
          f"95% intervals of the two means overlap; ours of two seeds or more and within ±{WIDEST_INTERVAL:g} points",
          "paper", ("resnet110",), _resnet110),
    Claim("resnet1202", "ResNet-1202 fits the training data (<0.1%) yet tests worse than ResNet-110",
          "Table 6; section 4.2", f"final training error below 0.1% and test error above ResNet-110's {_UNCERTAIN}",
          "paper", ("resnet110", "resnet1202"), _resnet1202),
    Claim("table6", "ResNet-20, 32, 44, 56 have the test errors of Table 6", "Table 6",
          "each mean within two combined standard errors (the paper's: binomial)", "paper",
          tuple(f"resnet{d}" for d in (20, 32, 44, 56)), _table6),
    Claim("parameters", "With option A plain and residual nets have the same parameters", "Section 4.2",
          "equal counts at every depth trained both ways, on CIFAR-10 those of the paper's layer sizes", "any", (),
          _same_parameters),
    Claim("responses", "Residual nets have smaller responses than plain nets", "Figure 7",
          "mean over layers of the response's std below the plain net's by 5% at every depth measured", "any", (),
          _responses, "responses"),
    Claim("deeper-responses", "Deeper residual nets have smaller responses", "Figure 7",
          "mean over layers of the response's std falls by 5% from 20 to 56 to 110 layers", "any", (),
          _deeper_responses, "responses"),
    Claim("gradients", "Gradients of plain nets with batch norm do not vanish", "Section 4.1",
          f"all layers' norms finite and above 0; median of the first quarter of the layers at least {VANISHING:g} of "
          "the last quarter's", "any", (), _gradients, "gradients"),
)  # fmt: skip
IMAGENET_CLAIMS = (
    Claim("imagenet-plain", "plain-34 is worse than plain-18, in training too", "Figure 4, left; Table 2",
          f"training and validation error above plain-18's, {_UNCERTAIN}", "any", ("plain18", "plain34"),
          _pair("plain18", "plain34", 1)),
    Claim("imagenet-residual", "ResNet-34 is better than ResNet-18", "Figure 4, right; Table 2",
          f"training and validation error below ResNet-18's, {_UNCERTAIN}", "any", ("resnet18", "resnet34"),
          _pair("resnet18", "resnet34", -1)),
    Claim("imagenet-speed", "ResNet-18 converges faster than plain-18", "Section 4.1; Figure 4",
          f"mean validation error over the first half of training below plain-18's, {_UNCERTAIN}", "any",
          ("plain18", "resnet18"), _converges_faster, "curves"),
)  # fmt: skip
CLAIMS = CIFAR_CLAIMS + IMAGENET_CLAIMS
