"""The paper's claims, each with a criterion that can fail, judged on the runs at hand.

Verdicts: "holds", "does not hold", "not enough evidence". A difference counts only when it is larger than its
uncertainty (`comparison.difference`): the 95% interval over seeds or, with one seed on each side, four binomial
standard errors of one test, twice the usual number because how far seeds differ is not known; the evidence says so.
Claims about absolute numbers are judged only on runs of the paper's scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from . import comparison, criteria, evidence, paper, stats
from .baseline_recipes import ARCHITECTURES
from .criteria import FAILS, FROZEN, HOLDS, ONE_SEED, UNDECIDED, Frames
from .errors import choose

__all__ = ["CIFAR_CLAIMS", "CLAIMS", "FAILS", "HOLDS", "IMAGENET_CLAIMS", "UNDECIDED", "judge", "rows_of", "scoreboard"]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with the criterion that decides about it."""

    id: str
    text: str
    source: str
    criterion: str
    scale: str  # "any", or "paper" for absolute numbers
    models: tuple[str, ...]  # runs the claim needs; without one of them there is not enough evidence
    evaluate: Callable[[Frames], tuple[str, str]]  # -> verdict, evidence
    needs: str = ""  # the measurement it needs: "curves", "responses" or "gradients"
    so_far: Callable[[Frames], str] | None = None  # what those of its runs say that are there


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


def rows_of(board: pd.DataFrame, *ids: str) -> pd.DataFrame:
    """The rows of these claims, in their order, whatever their verdict. Raises UserError for an unknown claim."""
    texts = {claim.id: claim.text for claim in CLAIMS}
    for name in ids:
        choose("claim", name, texts)
    return board.set_index("claim", drop=False).loc[[texts[name] for name in ids]].reset_index(drop=True)


def judge(claim: Claim, frames: Frames) -> tuple[str, str]:
    """Verdict and evidence, after the checks that all claims share: runs present, same data, scale."""
    if missing := [paper.label(m) for m in claim.models if frames.of(m).empty]:
        so_far = claim.so_far(frames) if claim.so_far else ""
        return UNDECIDED, f"no finished runs of {', '.join(missing)}" + f"; so far {so_far}" * bool(so_far)
    measured = getattr(frames, claim.needs) if claim.needs else None
    if claim.needs and (measured is None or measured.empty):
        return UNDECIDED, f"{claim.needs} not measured"
    models = claim.models or (set(measured["model"]) if claim.needs else ())
    used = frames.runs[frames.runs["model"].isin(models)]
    if measured is not None and "run" in measured:  # of some runs the weights may be gone
        used = used[used["run"].isin(measured["run"])]
    if claim.models and (columns := comparison.differing(used)):
        values = (", ".join(map(str, sorted(used[column].dropna().unique()))) for column in columns)
        found = "; ".join(f"{column}: {text}" for column, text in zip(columns, values, strict=True))
        return UNDECIDED, f"the runs differ in {found}"
    if claim.scale == "paper" and not evidence.at_paper_scale(used):
        return UNDECIDED, f"judged only at {evidence.PAPER_SCALE}; here {evidence.scale(used)}"
    if claim.scale == "paper" and (others := evidence.departures(used)):
        return UNDECIDED, f"judged only on the paper's recipe, not with {', '.join(others)}"
    verdict, found = claim.evaluate(frames)
    # Gradients are measured on networks of their own, not on these runs: their evidence brings its own caveats.
    return verdict, "; ".join([found, *([] if claim.needs == "gradients" else _caveats(used))])


def _caveats(used: pd.DataFrame) -> list[str]:
    if used.empty:
        return []
    seeds = used.groupby("model")["seed"].nunique()
    low, high = int(seeds.min()), int(seeds.max())
    notes = [f"n = {low}" if low == high else f"n = {low} to {high}"]
    if low == 1:
        notes[0] += f", {ONE_SEED}" + f" of {_named(seeds[seeds == 1].index)}" * (high > 1)
    if evidence.is_synthetic(used).any():
        notes.append("SYNTHETIC DATA")
    elif not evidence.at_paper_scale(used) and (used["dataset"] != "imagenet").any():
        notes.append(evidence.scale(used))
    if others := evidence.departures(used):
        notes.append(f"not the paper's recipe: {', '.join(others)}")
    for model in (m for m in ARCHITECTURES if m in seeds.index):
        notes.append(f"{paper.label(model)} not as in its paper: {ARCHITECTURES[model]}")
    for model, group in used.groupby("model"):
        if stats.summarize(group["test_error"]).zero_variance:
            notes.append(f"seeds of {paper.label(model)} are all equal")
    return notes


def _named(models) -> str:
    return ", ".join(map(paper.label, models))


_UNCERTAIN = (
    f"beyond the 95% interval over seeds (Welch's from {comparison.ENOUGH} seeds a side on; with fewer by the spread "
    "of all plain and residual nets with several seeds, no narrower than that of single ones: "
    f"{comparison.SINGLE} binomial standard errors)"
)
CIFAR_CLAIMS = (
    Claim("degradation", "Plain nets get worse with depth, in training too", "Figure 1; section 4.2",
          f"training and test error of plain-56 above plain-20, {_UNCERTAIN}; at no depth between that is trained "
          "below a shallower net's by as much", "any", ("plain20", "plain56"), criteria.degradation),
    Claim("plain110", "plain-110 stays above 60% error", "Figure 6, caption",
          "final training error (the caption only says error) above 60% in every run", "paper", ("plain110",),
          criteria.plain110),
    Claim("deeper", "Residual nets get better from 20 to 110 layers", "Figure 6; Table 6",
          f"mean test error falls at 20, 32, 44, 56, 110 layers; 110 below 20 {_UNCERTAIN}", "any",
          tuple(f"resnet{d}" for d in paper.FIGURE6_RESNET), criteria.deeper_is_better),
    Claim("residual", "Residual nets beat plain nets: no worse at 20 layers, better when deeper",
          "Figure 6; section 4.2", f"test error at 20 layers not worse by more than {criteria.COMPARABLE_POINTS:g} "
          f"point; at 32, 44, 56 (where both are trained) below the plain net's, {_UNCERTAIN}", "any",
          ("plain20", "resnet20", "plain56", "resnet56"), criteria.residual_beats_plain),
    Claim("resnet110", "ResNet-110 has 6.61 ± 0.16% test error", "Table 6, ResNet-110",
          f"mean of two seeds or more within 6.61 ± 0.16, known to ±{criteria.WIDEST_INTERVAL:g} points; fails "
          "outside, if the 95% Welch interval of the difference excludes zero", "paper", ("resnet110",),
          criteria.resnet110),
    Claim("fewer-parameters", "ResNet-110 has fewer parameters than FitNet-19 and Highway-19 and tests better",
          "Table 6; section 4.2", f"fewer parameters than both; test error below both, {_UNCERTAIN}", "any",
          ("resnet110", "fitnet19", "highway19"), criteria.fewer_parameters),
    Claim("warm-up", "Warmed up at 0.01, ResNet-110 is below 80% training error after about 400 iterations",
          "Section 4.2", f"the warm-up ended, after {paper.WARMUP_ITERATIONS / criteria.WARMUP_FACTOR:g} to "
          f"{paper.WARMUP_ITERATIONS * criteria.WARMUP_FACTOR:g} iterations, in every run, and could have ended "
          "earlier: the error is judged over windows", "any", ("resnet110",),
          criteria.warmup),
    Claim("resnet1202", "ResNet-1202 fits the training data (<0.1%) yet tests worse than ResNet-110",
          "Table 6; section 4.2", f"final training error below 0.1% and test error above ResNet-110's {_UNCERTAIN}",
          "paper", ("resnet110", "resnet1202"), criteria.resnet1202),
    Claim("table6", "ResNet-20, 32, 44, 56 test as in Table 6", "Table 6",
          f"each mean within {criteria.TABLE6_Z:g} combined standard errors (the paper's: binomial)", "paper",
          tuple(f"resnet{d}" for d in criteria.TABLE6_DEPTHS), criteria.table6, so_far=criteria.table6_so_far),
    Claim("parameters", "With option A plain and residual nets have the same parameters", "Section 4.2",
          "equal counts at every depth trained both ways, on CIFAR-10 those of the paper's layer sizes", "any", (),
          criteria.same_parameters),
    Claim("responses", "Residual nets have smaller responses than plain nets", "Figure 7",
          "mean over layers of the response's std below the plain net's by 5% at every depth measured", "any", (),
          criteria.responses, "responses"),
    Claim("deeper-responses", "Deeper residual nets have smaller responses", "Figure 7",
          "mean over layers of the response's std falls by 5% from 20 to 56 to 110 layers", "any", (),
          criteria.deeper_responses, "responses"),
    Claim("gradients", "Gradients of plain nets with batch norm do not vanish", "Section 4.1",
          f"with He's initialisation, at every iteration measured, every layer's gradient norm finite and at least "
          f"{FROZEN:.5f}; below, a layer would move by under 0.34 in the paper's whole training", "any", (),
          criteria.gradients, "gradients"),
)  # fmt: skip
IMAGENET_CLAIMS = (
    Claim("imagenet-plain", "plain-34 is worse than plain-18, in training too", "Figure 4, left; Table 2",
          f"training and validation error above plain-18's, {_UNCERTAIN}", "any", ("plain18", "plain34"),
          criteria.pair("plain18", "plain34", 1)),
    Claim("imagenet-residual", "ResNet-34 is better than ResNet-18", "Figure 4, right; Table 2",
          f"training and validation error below ResNet-18's, {_UNCERTAIN}", "any", ("resnet18", "resnet34"),
          criteria.pair("resnet18", "resnet34", -1)),
    Claim("imagenet-cured", "ResNet-34 is better than plain-34", "Section 4.1; Table 2",
          f"training and validation error below plain-34's, {_UNCERTAIN}", "any", ("plain34", "resnet34"),
          criteria.pair("plain34", "resnet34", -1)),
    Claim("imagenet-shallow", "plain-18 and ResNet-18 are comparably accurate", "Section 4.1; Table 2",
          "the interval of the difference of validation errors (95% over seeds, with one seed on each side "
          f"{comparison.SINGLE} binomial standard errors) within ±{criteria.COMPARABLE_POINTS:g} point; fails where it "
          "lies outside", "any", ("plain18", "resnet18"), criteria.comparable("plain18", "resnet18")),
    Claim("imagenet-speed", "ResNet-18 converges faster than plain-18", "Section 4.1; Figure 4",
          "mean validation error over the first half of training below plain-18's, beyond the 95% interval over seeds; "
          "with single seeds lower at every evaluation in it", "any",
          ("plain18", "resnet18"), criteria.converges_faster, "curves"),
)  # fmt: skip
CLAIMS = CIFAR_CLAIMS + IMAGENET_CLAIMS
