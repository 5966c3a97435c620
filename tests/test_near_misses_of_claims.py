"""Verdicts and numbers of the tables where a criterion read slightly otherwise would give another one."""

import pandas as pd
import pytest
from fake_frames import fake_curves, fake_runs
from test_claims import GOOD, gradients, judge, responses

from reslib import comparison, stats, tables
from reslib.claims import FAILS, HOLDS, UNDECIDED
from reslib.recipe import Recipe
from reslib.schedule import drop_iterations


def test_every_run_counts_where_an_absolute_error_is_judged():
    runs = fake_runs({"plain110": [65, 66]}).assign(train_error=[0.65, 0.40])
    assert judge("plain110", runs)[0] == FAILS
    runs = fake_runs({"resnet110": [6.5, 6.6], "resnet1202": [7.9, 8.0]})
    runs["train_error"] = [0.001, 0.001, 0.0005, 0.002]  # 0.1 % is the bound for ResNet-1202
    assert judge("resnet1202", runs)[0] == FAILS


def test_every_depth_counts_where_residual_and_plain_nets_are_compared():
    ends = {"plain20": (1, 9.0), "resnet20": (1, 8.8), "plain56": (1, 13.0), "resnet56": (1, 7.0)}
    between = fake_runs(ends | {"plain32": (1, 9.0), "resnet32": (1, 13.0)})
    assert judge("residual", between)[0] == FAILS
    between.loc[between["model"] == "resnet32", "iterations"] = 6400  # of another length: not compared
    assert judge("residual", between)[0] == HOLDS


@pytest.mark.parametrize(
    "tests, verdict",
    [
        ([6.40, 6.60, 6.70], HOLDS),  # the interval is 0.38 to each side, 0.76 in all
        ([6.3, 6.6, 6.9], UNDECIDED),  # 0.75 to each side says nothing
    ],
)
def test_the_interval_of_resnet110_may_be_so_wide(tests, verdict):
    assert judge("resnet110", fake_runs({"resnet110": tests}))[0] == verdict


@pytest.mark.parametrize(
    "levels, verdict", [((1.0, 0.7, 0.8), FAILS), ((1.0, 0.7, 0.69), UNDECIDED), ((1.0, 0.7, 0.6), HOLDS)]
)
def test_responses_fall_at_every_step_of_depth(levels, verdict):
    named = dict(zip(("resnet20", "resnet56", "resnet110"), levels, strict=True))
    runs = fake_runs({"resnet20": (1, 9)})
    assert judge("deeper-responses", runs, responses=responses(**named))[0] == verdict


def test_responses_are_compared_by_their_mean_over_layers():
    layers = {"plain20": (1.0, 1.0), "resnet20": (0.2, 1.5), "plain56": (1.0, 1.0), "resnet56": (0.2, 1.2)}
    frame = pd.DataFrame([{"model": m, "layer": i, "std": s} for m, v in layers.items() for i, s in enumerate(v)])
    verdict, evidence = judge("responses", fake_runs({"plain20": (1, 9), "resnet20": (1, 9)}), responses=frame)
    assert verdict == HOLDS and "20 layers 0.85, 56 layers 0.70" in evidence
    verdict, evidence = judge("deeper-responses", fake_runs({"resnet20": (1, 9)}), responses=frame)
    assert verdict == HOLDS and "ResNet-20 0.850, ResNet-56 0.700" in evidence


@pytest.mark.parametrize("shift, verdict", [(-0.10, HOLDS), (0.10, FAILS)])
def test_which_of_two_nets_with_seeds_converges_faster(shift, verdict):
    tests = [28.0, 28.1, 27.9]
    runs = fake_runs({"plain18": tests, "resnet18": tests}, dataset="imagenet", iterations=800, test_images=50_000)
    curves = fake_curves(runs)
    curves.loc[(curves["model"] == "resnet18") & (curves["iteration"] <= 400), "test_error"] += shift
    assert judge("imagenet-speed", runs, curves=curves)[0] == verdict


def test_shortcuts_cure_34_layers():
    good = {"plain18": (32, 28), "plain34": (36, 31), "resnet18": (31, 27.9), "resnet34": (26, 25)}
    kept = {"dataset": "imagenet", "iterations": 600_000, "test_images": 50_000}
    assert judge("imagenet-cured", fake_runs(good, **kept))[0] == HOLDS
    assert judge("imagenet-cured", fake_runs(good | {"resnet34": (40, 36)}, **kept))[0] == FAILS


def test_the_ratio_of_gradients_is_first_over_last():
    evidence = judge("gradients", fake_runs({"plain56": (9, 13)}), gradients=gradients(0.02))[1]
    ratio = float(evidence.split("quarter of the layers ")[1].split(" to ")[0])
    assert ratio == pytest.approx(0.43)  # e^(-0.02 x 42), a quarter being 13 of 55 layers


@pytest.mark.parametrize("test, verdict", [(7.80, HOLDS), (7.95, FAILS)])  # z of 2.2 and of 2.6
def test_a_row_of_table6_may_be_so_far_from_the_paper(test, verdict):
    near = {"resnet20": (3, 8.75), "resnet32": (1, 7.51), "resnet44": (0.5, 7.17)}
    far = fake_runs(near | {"resnet56": (0.2, test)})
    z = tables.paper_z("resnet56", far[far["model"] == "resnet56"])
    assert 2.0 < z < 3.0 and (z < 2.5) == (verdict == HOLDS)
    assert judge("table6", fake_runs({**GOOD, **near, "resnet56": (0.2, test)}))[0] == verdict


def test_seeds_that_are_all_equal_on_one_side_tell_nothing_of_their_spread():
    one, two = (fake_runs({m: v}) for m, v in (("plain20", [9.0, 9.0, 9.0]), ("plain56", [9.2, 9.3, 9.4])))
    assert comparison.difference(one, two).interval == comparison.BINOMIAL
    assert stats.welch([1, 1], [1, 2]).low < 0 < stats.welch([1, 1], [1, 2]).high


def test_what_is_trained_on_other_images_is_not_compared():
    runs = fake_runs({"plain20": (3, 9), "plain56": (9, 13)})
    for field in ("train_size", "val_size"):
        changed = runs.copy()
        changed.loc[1, field] = 5000
        verdict, evidence = judge("degradation", changed)
        assert verdict == UNDECIDED and f"differ in {field}" in evidence


def test_the_spread_is_pooled_over_plain_and_residual_nets_alone():
    one, two = (fake_runs({m: [9.0, 9.1]}) for m in ("plain20", "plain56"))
    others = fake_runs({"highway19": [7.5, 7.6], "resnet20": [8.0, 8.2], "plain20": [9.0, 9.1]})
    (pooled,) = comparison._alike(one, two, "test_error", others)
    assert pooled.tolist() == pytest.approx([8.0, 8.2])


def test_a_training_error_is_that_of_the_smallest_window():
    runs = fake_runs({"plain18": (50, 40)}, iterations=1000).assign(eval_every=300)  # the last has 100 iterations
    runs = pd.concat([runs, runs.assign(eval_every=250)], ignore_index=True)
    assert comparison.images_behind(runs, "train_error") == 100 * 128


def test_numbers_of_the_tables():
    runs = fake_runs({"resnet20": (3, 9)})
    assert tables.depth_table(runs)[tables.TRAINING].tolist() == ["3.00"]
    assert tables.paper_z("highway19", fake_runs({"highway19": (1, 8.22)})) == pytest.approx(1.57, abs=0.01)
    alone, twice = (fake_runs({"resnet56": errors}) for errors in ([7.97], [7.97, 7.97]))
    assert tables.paper_z("resnet56", twice) == tables.paper_z("resnet56", alone)
    partly = fake_runs({"resnet20": [8.0, 8.2]})
    partly.loc[0, "best_test_error"] = float("nan")
    assert tables._mean(partly, "best_test_error") == "" and tables._mean(partly, "test_error") == "8.10"
    one = stats.summarize([6.75])
    assert tables._against("resnet110", one, fake_runs({"resnet110": [6.75]})) == "+0.14, z = +0.5"


def test_drops_are_at_the_nearest_iteration():
    """As in the records of Imagenette."""
    assert drop_iterations(Recipe(iterations=1109)) == [554, 832]
