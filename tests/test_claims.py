"""Each claim can hold, fail and stay open, on frames made for it."""

import numpy as np
import pandas as pd
import pytest
from fake_frames import fake_curves, fake_runs

from reslib import claims
from reslib.claims import FAILS, HOLDS, UNDECIDED
from reslib.criteria import FROZEN
from reslib.errors import UserError
from reslib.recipe import Recipe
from reslib.schedule import learning_rate

GOOD = {
    "resnet20": (3, 8.75),
    "resnet32": (1, 7.5),
    "resnet44": (0.5, 7.2),
    "resnet56": (0.2, 6.95),
    "resnet110": (0.1, 6.4),
}


def judge(name, runs, **frames):
    """Verdict and evidence of one claim, through the scoreboard."""
    (claim,) = [c for c in claims.CLAIMS if c.id == name]
    board = claims.scoreboard(runs, **frames)
    (row,) = board[board["claim"] == claim.text].to_dict("records")
    return row["verdict"], row["evidence"]


@pytest.mark.parametrize(
    "plain20,plain56,verdict",
    [
        ((3, 9), (9, 13), HOLDS),
        ((9, 13), (3, 9), FAILS),
        ((3, 9), (9, 9.2), UNDECIDED),  # test errors nearer than four binomial standard errors
        ((3, 9), (1, 13), FAILS),  # overfitting, not degradation: the training error falls
    ],
)
def test_degradation(plain20, plain56, verdict):
    assert judge("degradation", fake_runs({"plain20": plain20, "plain56": plain56}))[0] == verdict


def test_degradation_looks_at_the_depths_between():
    ends = {"plain20": (3, 9), "plain56": (9, 13)}
    verdict, evidence = judge("degradation", fake_runs(ends | {"plain32": (5, 10)}))
    assert verdict == HOLDS and "test 9.00, 10.00, 13.00 at 20, 32, 56 layers" in evidence
    assert judge("degradation", fake_runs(ends | {"plain32": (3, 6)}))[0] == FAILS  # better than a shallower net
    assert judge("degradation", fake_runs(ends | {"plain44": (5, 8.9)}))[0] == HOLDS  # within the uncertainty
    shorter = fake_runs(ends | {"plain32": (3, 6)})
    shorter.loc[shorter["model"] == "plain32", "iterations"] = 6400  # of another length: not compared
    assert judge("degradation", shorter)[0] == HOLDS


def test_seeds_decide_where_there_are_seeds():
    runs = fake_runs({"resnet110": [6.5, 6.6, 6.7], "resnet1202": [6.9, 7.0, 7.1]})
    runs["train_error"] = 0.0005
    verdict, evidence = judge("resnet1202", runs)
    assert verdict == HOLDS and "95% +0.17 to +0.63" in evidence  # t(4) = 2.776 times 0.1 sqrt(2/3)
    wide = fake_runs({"resnet110": [6.0, 6.6, 7.2], "resnet1202": [6.4, 7.0, 7.6]}).assign(train_error=0.0005)
    assert judge("resnet1202", wide)[0] == UNDECIDED


@pytest.mark.parametrize(
    "train,test,verdict", [(0.05, 8.4, HOLDS), (0.05, 6.6, UNDECIDED), (0.2, 7.9, FAILS), (0.05, 5.0, FAILS)]
)
def test_resnet1202(train, test, verdict):
    assert judge("resnet1202", fake_runs({"resnet110": (0.1, 6.5), "resnet1202": (train, test)}))[0] == verdict


def test_absolute_numbers_are_judged_by_the_papers_recipe_only():
    runs = fake_runs({"resnet110": [6.5, 6.6, 6.7], "resnet20": (3, 8.75), "plain20": (4, 9.0), "plain56": (20, 25.0)})
    board = claims.scoreboard(runs).set_index("claim")
    assert board.verdict["ResNet-110 has 6.61 ± 0.16% test error"] == claims.HOLDS
    board = claims.scoreboard(runs.assign(lr=0.01)).set_index("claim")
    assert board.verdict["ResNet-110 has 6.61 ± 0.16% test error"] == claims.UNDECIDED
    assert "not with lr=0.01" in board.evidence["ResNet-110 has 6.61 ± 0.16% test error"]
    degradation = board.loc["Plain nets get worse with depth, in training too"]
    assert degradation.verdict == claims.HOLDS and "not the paper's recipe: lr=0.01" in degradation.evidence


def test_plain110_is_judged_at_the_papers_scale_only():
    assert judge("plain110", fake_runs({"plain110": (65, 66)}))[0] == HOLDS
    assert judge("plain110", fake_runs({"plain110": (40, 41)}))[0] == FAILS
    verdict, evidence = judge("plain110", fake_runs({"plain110": (65, 66)}, iterations=640))
    assert (
        verdict == UNDECIDED
        and "64,000" in evidence
        and evidence.endswith("here cifar10, 640 iterations of 128 images")
    )
    for fields, words in (({"batch_size": 32}, "64,000 iterations of 32 images"),
                          ({"test_size": 500}, "64,000 iterations of 128 images, 500 test images")):  # fmt: skip
        verdict, evidence = judge("plain110", fake_runs({"plain110": (65, 66)}, **fields))
        assert verdict == UNDECIDED and evidence.endswith(f"of 128 images on CIFAR-10; here cifar10, {words}")


def test_deeper_residual_nets_are_better():
    assert judge("deeper", fake_runs(GOOD))[0] == HOLDS
    assert judge("deeper", fake_runs(GOOD | {"resnet56": (0.2, 8.9)}))[0] == FAILS
    assert judge("deeper", fake_runs(GOOD | {"resnet56": (0.2, 7.25)}))[0] == UNDECIDED  # not monotone, by a hair
    verdict, evidence = judge("deeper", fake_runs({k: v for k, v in GOOD.items() if k != "resnet44"}))
    assert verdict == UNDECIDED and evidence == "no finished runs of ResNet-44"
    worse = judge("deeper", fake_runs(GOOD | {"resnet56": (0.2, 8.9)}))[1]
    assert "; worse: test ResNet-44 7.20, ResNet-56 8.90 (+1.70 ± 1.54, 4 binomial errors)" in worse


@pytest.mark.parametrize(
    "errors,verdict",
    [((9.0, 8.8, 13.0, 7.0), HOLDS), ((9.0, 11.0, 13.0, 7.0), FAILS), ((9.0, 8.8, 7.0, 13.0), FAILS),
     ((9.0, 8.8, 7.1, 7.0), UNDECIDED), ((9.0, 7.0, 13.0, 7.0), HOLDS), ((9.0, 10.2, 13.0, 7.0), UNDECIDED)],
)  # fmt: skip
def test_residual_beats_plain(errors, verdict):
    names = ("plain20", "resnet20", "plain56", "resnet56")
    runs = fake_runs({n: (1, e) for n, e in zip(names, errors, strict=True)})
    assert judge("residual", runs)[0] == verdict


@pytest.mark.parametrize(
    "tests,verdict",
    [
        ([6.45, 6.60, 6.55, 6.80, 6.70], HOLDS),
        ([7.45, 7.60, 7.55, 7.80, 7.70], FAILS),
        ([6.6], UNDECIDED),
        ([6.2, 7.0], UNDECIDED),  # overlaps with anything
        ([6.70, 6.85, 6.90], UNDECIDED),  # 0.21 away, which the uncertainty of two means explains
        ([6.95, 6.96, 6.97, 6.95, 6.96], FAILS),  # 0.35 away, beyond it
    ],
)
def test_resnet110_against_the_papers_mean(tests, verdict):
    assert judge("resnet110", fake_runs({"resnet110": tests}))[0] == verdict


@pytest.mark.parametrize(
    "errors,parameters,verdict",
    [((6.0, 8.4, 7.7), 1_727_962, HOLDS), ((9.6, 8.4, 7.7), 1_727_962, FAILS), ((6.5, 8.4, 7.7), 2_300_000, FAILS),
     ((7.6, 8.4, 7.7), 1_727_962, UNDECIDED)],
)  # fmt: skip
def test_fewer_parameters_and_better(errors, parameters, verdict):
    names = ("resnet110", "fitnet19", "highway19")
    runs = fake_runs({n: (1, e) for n, e in zip(names, errors, strict=True)})
    runs["parameters"] = [parameters, 2_548_602, 2_256_838]
    assert judge("fewer-parameters", runs)[0] == verdict
    assert "FitNet-19 not as in its paper: batch norm added, no hints" in judge("fewer-parameters", runs)[1]


@pytest.mark.parametrize(
    "ends,verdict", [([400, 300], HOLDS), ([400, 1500], FAILS), ([100, 400], FAILS), ([400, None], FAILS)]
)
def test_warm_up(ends, verdict):
    runs = fake_runs({"resnet110": [6.5, 6.6]}).assign(warmup_ended_at=ends)
    assert judge("warm-up", runs)[0] == verdict
    assert judge("warm-up", runs.assign(iterations=6400))[0] == verdict  # the first iterations are the paper's
    assert judge("warm-up", runs.assign(iterations=300, warmup_ended_at=None))[0] == UNDECIDED


@pytest.mark.parametrize("ends, window, verdict", [([391, 391], 391, UNDECIDED), ([391, 782], 391, UNDECIDED),
                                                   ([782, 782], 391, HOLDS), ([391, 1173], 391, FAILS),
                                                   ([100, 300], 100, FAILS), ([400, 300], 100, HOLDS)])  # fmt: skip
def test_a_warm_up_that_could_not_have_ended_earlier_says_nothing(ends, window, verdict):
    runs = fake_runs({"resnet110": [6.5, 6.6]}).assign(warmup_ended_at=ends, warmup_window=window)
    assert judge("warm-up", runs)[0] == verdict


def test_table6():
    near = {"resnet20": (3, 8.9), "resnet32": (1, 7.2), "resnet44": (0.5, 7.3), "resnet56": (0.2, 6.6)}
    assert judge("table6", fake_runs(near))[0] == HOLDS
    assert judge("table6", fake_runs(near | {"resnet56": (0.2, 5.9)}))[0] == FAILS
    assert judge("table6", fake_runs(near, dataset="synthetic", synthetic=True))[0] == UNDECIDED
    verdict, found = judge("table6", fake_runs({"resnet20": (0.7, 7.57)}))
    assert verdict == UNDECIDED and found.startswith("no finished runs of ResNet-32, ResNet-44, ResNet-56")
    assert "so far ResNet-20 7.57, paper 8.75, z -3.0" in found
    assert judge("table6", fake_runs({"resnet20": (9, 14)}, iterations=6400))[1].endswith("ResNet-56")


def test_parameters():
    runs = fake_runs({"plain20": (1, 9), "resnet20": (1, 9)})
    assert judge("parameters", runs) == (HOLDS, "20 layers 269,722")
    option_b = runs.assign(parameters=[269_722, 272_474])
    assert judge("parameters", option_b)[0] == FAILS
    assert judge("parameters", runs.assign(parameters=11_000_000))[0] == FAILS  # equal, but of another network
    assert judge("parameters", runs.iloc[:1])[0] == UNDECIDED


def responses(**levels):
    return pd.DataFrame(
        [{"model": m, "layer": i, "std": v * f} for m, v in levels.items() for i, f in enumerate((1, 2))]
    )


def test_responses():
    runs = fake_runs({"plain20": (1, 9), "resnet20": (1, 9)}, dataset="synthetic", synthetic=True)
    verdict, evidence = judge("responses", runs, responses=responses(plain20=1.0, resnet20=0.5))
    assert verdict == HOLDS and "20 layers 0.50" in evidence and "n = 1" in evidence and "SYNTHETIC DATA" in evidence
    assert judge("responses", runs, responses=responses(plain20=0.5, resnet20=1.0))[0] == FAILS
    assert judge("responses", runs, responses=responses(plain20=1.0, resnet20=0.98))[0] == UNDECIDED
    assert judge("responses", runs) == (UNDECIDED, "responses not measured")
    several = fake_runs({"plain20": (1, 9), "resnet20": [9, 9.1, 9.2]})
    measured = several[several.seed < 2]
    of_some = pd.concat(
        [responses(**{m: 0.5 + (m == "plain20")}).assign(run=r) for m, r in measured[["model", "run"]].values]
    )
    assert "n = 1 to 2, single seeds of plain-20" in judge("responses", several, responses=of_some)[1]
    assert judge("deeper-responses", runs, responses=responses(resnet20=1.0, resnet56=0.7, resnet110=0.5))[0] == HOLDS
    assert judge("deeper-responses", runs, responses=responses(resnet20=1.0, resnet56=1.2))[0] == FAILS
    assert judge("deeper-responses", runs, responses=responses(resnet20=1.0))[0] == UNDECIDED


def gradients(rate, batch_norm=True, init="he"):
    """Norms that change by a factor of e^rate per layer towards the last one's 1."""
    return pd.DataFrame(
        {
            "kind": "gradient", "model": "plain56", "family": "plain", "depth": 56, "seed": 0, "init": init,
            "batch_norm": batch_norm, "iteration": 0, "layer": range(1, 56), "norm": np.exp(rate * np.arange(-54, 1)),
            "synthetic": False,
        }
    )  # fmt: skip


def test_gradients():
    runs = fake_runs({"plain56": (9, 13)})
    verdict, evidence = judge("gradients", runs, gradients=gradients(0.02))
    assert verdict == HOLDS and "iterations 0 to 0, n = 1" in evidence and "64,000" not in evidence
    assert f"smallest {np.exp(-54 * 0.02):.2g} (layer 1, iteration 0)" in evidence
    assert judge("gradients", runs, gradients=gradients(-0.05))[0] == HOLDS  # they grow towards the image
    assert judge("gradients", runs, gradients=gradients(0.5))[0] == FAILS  # shrinks e^-27 on the way to layer 1
    for value in (0.0, np.nan, np.inf):
        dead = gradients(0.02)
        dead.loc[3, "norm"] = value
        assert judge("gradients", runs, gradients=dead)[0] == FAILS
    naive = pd.concat([gradients(0.02), gradients(0.5, batch_norm=False), gradients(0.5, init="gaussian")])
    assert judge("gradients", runs, gradients=naive)[0] == HOLDS  # the claim is about the paper's own plain nets
    assert judge("gradients", runs, gradients=gradients(0.5, batch_norm=False))[0] == UNDECIDED
    later = pd.concat([gradients(0.02), gradients(0.5).assign(iteration=12, seed=1)])
    verdict, evidence = judge("gradients", runs, gradients=later)
    assert verdict == FAILS and "iterations 0 to 12, n = 2" in evidence  # every seed at every iteration


def test_how_far_a_vanished_gradient_moves_a_layer():
    """What the criterion says: under SGD with momentum, by the paper's rates, with a gradient of one direction."""
    recipe = Recipe()
    rates = sum(learning_rate(recipe, iteration, False, []) for iteration in range(recipe.iterations))
    assert rates == pytest.approx(3376)
    (claim,) = (claim for claim in claims.CIFAR_CLAIMS if claim.id == "gradients")
    assert f"under {FROZEN * rates / (1 - recipe.momentum):.2f} in the paper" in claim.criterion


def test_imagenet_claims():
    good = {"plain18": (32, 28), "plain34": (36, 31), "resnet18": (31, 27.9), "resnet34": (26, 25)}
    runs = fake_runs(good, dataset="imagenette", iterations=600, test_images=50_000)
    assert judge("imagenet-plain", runs)[0] == HOLDS and judge("imagenet-residual", runs)[0] == HOLDS
    assert "imagenette, 600 iterations" in judge("imagenet-plain", runs)[1]
    bad = fake_runs(good | {"plain34": (20, 20), "resnet34": (40, 40)}, dataset="imagenet", iterations=600_000)
    assert judge("imagenet-plain", bad)[0] == FAILS and judge("imagenet-residual", bad)[0] == FAILS
    cifar = fake_runs(good)  # the same names on CIFAR-10 are not Figure 4
    assert judge("imagenet-plain", cifar)[0] == UNDECIDED


@pytest.mark.parametrize(
    "plain,residual,verdict",
    [
        ([28.0, 28.1, 27.9], [27.9, 28.0, 27.8], HOLDS),
        ([28.0, 28.1, 27.9], [25.9, 26.0, 25.8], FAILS),  # two points apart
        ([28.0, 29.1, 26.9], [27.9, 29.0, 26.8], UNDECIDED),  # the seeds differ by more than a point
        ((30, 28.0), (30, 28.0), UNDECIDED),  # one seed each: four binomial standard errors are 1.14 points
        ((30, 28.0), (30, 25.0), FAILS),
        ((30, 28.0), (30, 27.3), UNDECIDED),
    ],
)
def test_comparable_accuracy_is_an_interval_within_a_point(plain, residual, verdict):
    runs = fake_runs({"plain18": plain, "resnet18": residual}, dataset="imagenet", test_images=50_000)
    found, evidence = judge("imagenet-shallow", runs)
    assert found == verdict and evidence.startswith("validation plain-18 28.00, ResNet-18")


def test_a_training_error_is_one_of_the_last_window():
    runs = fake_runs({"plain18": (50, 40), "plain34": (60, 50)}, dataset="imagenette", iterations=1109, batch_size=64)
    runs["eval_every"] = 56  # 19 windows of 56 and one of 45 iterations: 2,880 images
    half = 400 * (0.5 * 0.5 / 2880 + 0.6 * 0.4 / 2880) ** 0.5
    assert f"training plain-18 50.00, plain-34 60.00 (+10.00 ± {half:.2f}" in judge("imagenet-plain", runs)[1]


@pytest.mark.parametrize("shift,verdict", [(-0.10, HOLDS), (0.10, FAILS), (0.0, UNDECIDED)])
def test_convergence_is_judged_on_the_first_half(shift, verdict):
    runs = fake_runs({"plain18": (32, 28), "resnet18": (32, 28)}, dataset="imagenet", iterations=800)
    curves = fake_curves(runs)
    early = (curves["model"] == "resnet18") & (curves["iteration"] <= 400)
    curves.loc[early, "test_error"] += shift
    curves.loc[(curves["model"] == "resnet18") & (curves["iteration"] > 400), "test_error"] -= (
        2 * shift
    )  # must not count
    assert judge("imagenet-speed", runs, curves=curves)[0] == verdict
    assert judge("imagenet-speed", runs)[0] == UNDECIDED
    if shift:
        assert f"lower at {4 if shift < 0 else 0} of 4 evaluations" in judge("imagenet-speed", runs, curves=curves)[1]
        once = curves.index[early][0]
        curves.loc[once, "test_error"] -= 2 * shift  # single seeds are to agree at every evaluation
        assert judge("imagenet-speed", runs, curves=curves)[0] == UNDECIDED


def test_runs_on_different_data_or_budget_are_not_compared():
    runs = fake_runs({"plain20": (3, 9), "plain56": (9, 13)})
    runs.loc[1, "data_fingerprint"] = "beef"
    verdict, evidence = judge("degradation", runs)
    assert verdict == UNDECIDED and "data_fingerprint: 00ff, beef" in evidence
    runs = fake_runs({"plain20": (3, 9), "plain56": (9, 13)})
    runs.loc[1, "iterations"] = 6400
    assert "differ in iterations: 6400, 64000" in judge("degradation", runs)[1]
    runs.loc[1, "batch_size"] = 64  # all of what differs is named
    assert judge("degradation", runs)[1] == "the runs differ in iterations: 6400, 64000; batch_size: 64, 128"


def test_diverged_runs_and_equal_seeds():
    runs = fake_runs({"plain20": [9.0, 9.0], "plain56": [13.0, 13.0]})
    runs.loc[runs["model"] == "plain56", "train_error"] = 0.09
    verdict, evidence = judge("degradation", runs)
    assert verdict == HOLDS and "binomial" in evidence and "seeds of plain-20 are all equal" in evidence
    assert judge("degradation", runs.assign(status="diverged"))[0] == UNDECIDED


def test_rows_of_a_figure_are_there_whatever_the_verdict():
    board = claims.scoreboard(fake_runs({"plain20": (3, 9), "plain32": (5, 10)}))  # as smoke: no 56 layers
    rows = claims.rows_of(board, "residual", "degradation")
    assert list(rows.columns) == list(board.columns)
    assert list(rows["source"]) == ["Figure 6; section 4.2", "Figure 1; section 4.2"]
    assert set(rows["verdict"]) == {UNDECIDED} and rows["evidence"].iloc[1] == "no finished runs of plain-56"
    with pytest.raises(UserError, match="claim 'degradatoin' is unknown.* did you mean 'degradation'"):
        claims.rows_of(board, "degradatoin")


def test_scoreboard_columns_and_caveats():
    board = claims.scoreboard(fake_runs({"plain20": (3, 9), "plain56": (9, 13)}, dataset="synthetic", synthetic=True))
    assert list(board.columns) == ["claim", "source", "criterion", "scale", "evidence", "verdict"]
    assert len(board) == len(claims.CLAIMS) == len({c.id for c in claims.CLAIMS})
    assert set(board["verdict"]) <= {HOLDS, FAILS, UNDECIDED} and (board["evidence"] != "").all()
    assert "n = 1, single seeds; SYNTHETIC DATA" in board["evidence"].iloc[0]
