"""The fidelity table against scipy's own tests and hand-computed intervals."""

import math

import numpy as np
import pandas as pd
import pytest
from fake_frames import fake_curves
from scipy.stats import t, ttest_1samp, ttest_ind

from reslib import ablation, comparison, differences, evidence, exact_rows, figures, presets, studies
from reslib.recipe import Recipe


def record(recipe, error, status="finished", images=10_000):
    row = recipe.to_dict() | {
        "run": recipe.run_name, "recipe_hash": recipe.digest, "status": status, "family": "resnet", "depth": 20,
        "test_error": error, "test_images": images,
        "preset": "medium", "synthetic": False, "precision_asked": "auto", "data_fingerprint": "00ff",
        "device_name": "CPU", "precision": "fp32", "train_error": error,
    }  # fmt: skip
    return row


def groups_of(seeds=2, **changes):
    def runs(**fields):
        return [Recipe(seed=s, **fields) for s in range(seeds)]

    return {"paper": runs(), "Nesterov momentum": runs(nesterov=True)}


def frame(groups, errors, **fields):
    rows = [
        record(r, e, **fields) for name, recipes in groups.items() for r, e in zip(recipes, errors[name], strict=True)
    ]
    return pd.DataFrame(rows)


NOTHING = pd.DataFrame(columns=exact_rows.MEASURED)
ERRORS = {"paper": [0.087, 0.089, 0.0885], "Nesterov momentum": [0.0905, 0.0923, 0.0931]}


def test_what_a_group_changes_beside_its_own_reference():
    changed = ablation.changes(studies.fidelity(presets.preset_of("medium"), "cifar10"))["changed"]
    assert changed["no warm-up (ResNet-110)"] == {"warmup_lr": 0.0}
    assert changed["Nesterov momentum"] == {"nesterov": True}
    assert not any(name.startswith("paper") for name in changed.index) and all(changed)


def test_welch_interval_is_scipys():
    groups = groups_of(3)
    row = ablation.table(groups, frame(groups, ERRORS)).set_index("deviation").loc["Nesterov momentum"]
    first, second = (100 * np.array(ERRORS[n]) for n in groups)
    expected = ttest_ind(second, first, equal_var=False).confidence_interval()
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert row["difference"] == pytest.approx(second.mean() - first.mean())
    assert row["n"] == row["n reference"] == 3 and row["interval"] == comparison.WELCH
    assert row["finding"] == ("costs" if expected.low > 0 else "within the uncertainty") == "costs"


def measured_of(runs, exact, moving=90, spoiled=None):
    """What norm_statistics measures of runs: of 1000 images `exact` are wrong with exact statistics of crops."""
    rows = runs[["run", "model", "seed"]].assign(kind="crops", images=1000, moving_wrong=moving, exact_wrong=exact)
    mended = 3 if spoiled is None else spoiled - (rows["exact_wrong"] - moving)
    return rows.assign(mended=mended, spoiled=rows["exact_wrong"] - moving + mended, key="k")


def test_exact_statistics_are_compared_on_the_same_networks():
    groups = groups_of(3)
    runs = frame(groups, ERRORS)
    reference = runs[~runs["nesterov"]]
    exact = np.array([92, 95, 93])
    measured = measured_of(reference, exact)
    rows = ablation.table(groups, runs, measured).set_index("deviation")
    row, whole = (rows.loc[name] for name in exact_rows.EXACT.values())
    expected = ttest_1samp(exact / 10 - 9.0, 0).confidence_interval()
    assert row["interval"] == differences.PAIRED and row["finding"] == differences.WITHIN
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert (row["error"], row["reference error"], row["n"]) == pytest.approx((exact.mean() / 10, 9.0, 3))
    assert whole["finding"] == "not measured" and whole["n"] == 0
    assert not set(exact_rows.EXACT.values()) & set(ablation.table(groups, runs)["deviation"])


def test_exact_statistics_of_records_whose_weights_are_not_at_hand():
    """Of whole images, over seeds: one seed alone has no interval."""
    groups = groups_of(3)
    runs = frame(groups, ERRORS)
    known = runs.assign(exact_bn_test_error=runs["test_error"] + np.resize([0.002, 0.003, 0.004], len(runs)))
    others = measured_of(runs, 90).assign(run="of another network", kind="whole images")
    rows = ablation.table(groups, known, others).set_index("deviation")
    crops, whole = (rows.loc[name] for name in exact_rows.EXACT.values())
    expected = ttest_1samp([0.2, 0.3, 0.4], 0).confidence_interval()
    assert (whole["difference"], whole["low"], whole["high"]) == pytest.approx((0.3, expected.low, expected.high))
    assert whole["n"] == 3 and whole["interval"] == differences.PAIRED and whole["finding"] == "costs"
    assert crops["finding"] == "not measured"
    alone = known.assign(exact_bn_test_error=known["exact_bn_test_error"].where(known["seed"] == 0))
    whole = ablation.table(groups, alone, others).set_index("deviation").loc[exact_rows.EXACT["whole images"]]
    assert whole["finding"] == "not measured" and whole["n"] == 0


@pytest.mark.parametrize(
    "others, finding", [(1, "2 nets: not enough evidence"), (2, "costs"), (0, "one seed: not enough evidence")]
)
def test_networks_count_once_however_many_seeds(others, finding):
    """And fewer than three of them decide nothing."""
    groups = groups_of(3 if others else 1)
    runs = frame(groups, {k: v[: len(groups["paper"])] for k, v in ERRORS.items()})
    shallow = runs[~runs["nesterov"]]
    deeper = [shallow.head(1).assign(model=f"plain{d}", run=f"plain{d}") for d in (32, 44)[:others]]
    pool = pd.concat([shallow, *deeper])
    exact = pool["model"].map({"resnet20": 96, "plain32": 97, "plain44": 95}) + pool["seed"].map({0: 0, 1: 1, 2: -1})
    rows = ablation.table(groups, runs, measured_of(pool, exact), pool=pool).set_index("deviation")
    name = exact_rows.EXACT["crops"]
    if not others:
        row = rows.loc[name]
        half = 200 * math.sqrt((13 / 1000 - 0.006**2) / 1000)  # 9.5 spoiled, 3.5 mended of 1000
        assert (row["low"], row["high"]) == pytest.approx((0.6 - half, 0.6 + half))
        assert row["interval"] == differences.MCNEMAR and row["finding"] == differences.WITHIN
        wide = ablation.table(groups, runs, measured_of(pool, 190, spoiled=101)).iloc[0]
        assert wide["finding"] == finding
        return
    row = rows.loc[name + exact_rows.SEVERAL]
    assert row["model"] == "plain-32/44, ResNet-20".replace("/44", "/44" * (others == 2)) and row["n"] == others + 1
    assert row["finding"] == finding and math.isnan(row["error"])  # a mean over unlike networks says nothing
    if others == 2:
        expected = ttest_1samp([0.6, 0.7, 0.5], 0).confidence_interval()
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
        assert row["interval"] == differences.POOLED
    else:
        assert row["difference"] == pytest.approx(0.65) and math.isnan(row["low"])


def test_whole_images_of_several_networks_are_taken_from_their_records():
    groups = groups_of(3)
    runs = frame(groups, ERRORS)
    shallow = runs[~runs["nesterov"]].assign(exact_bn_test_error=lambda r: r["test_error"] + 0.003)
    deeper = [shallow.head(1).assign(model=f"plain{d}", run=f"plain{d}") for d in (32, 44)]
    deeper[1]["exact_bn_test_error"] += 0.001
    pool = pd.concat([shallow, *deeper])
    rows = ablation.table(groups, runs, measured_of(pool.head(1), 96), pool=pool).set_index("deviation")
    row = rows.loc[exact_rows.EXACT["whole images"] + exact_rows.SEVERAL]
    expected = ttest_1samp([0.3, 0.3, 0.4], 0).confidence_interval()
    assert row["difference"] == pytest.approx(1 / 3) and row["finding"] == "costs"
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    assert set(exact_rows.used(runs, measured_of(runs.head(0), 96), pool)["run"]) == {*runs["run"], *pool["run"]}


def test_single_seeds_need_twice_the_usual_distance():
    groups = groups_of(1)
    runs = frame(groups, {"paper": [0.5], "Nesterov momentum": [0.6]}, images=1000)
    row = ablation.table(groups, runs).set_index("deviation").loc["Nesterov momentum"]
    half = 400 * math.sqrt(0.25 / 1000 + 0.24 / 1000)
    assert (row["low"], row["high"]) == pytest.approx((10 - half, 10 + half))
    assert row["interval"] == comparison.BINOMIAL and row["finding"] == "costs, single seeds"
    close = ablation.table(groups, frame(groups, {"paper": [0.5], "Nesterov momentum": [0.55]}, images=1000)).iloc[0]
    assert close["finding"] == "within the uncertainty"


@pytest.mark.parametrize("single, finding", [(0.09, "within the uncertainty"), (0.12, "costs, if seeds spread alike")])
def test_one_seed_beside_several_is_taken_to_spread_as_they_do(single, finding):
    groups = groups_of(3)
    runs = frame(groups, ERRORS)
    alone = runs[runs["nesterov"]].head(1).assign(test_error=single)
    row = ablation.table(groups, pd.concat([runs[~runs["nesterov"]], alone])).iloc[0]
    several = 100 * np.array(ERRORS["paper"])
    half = t.ppf(0.975, 2) * several.std(ddof=1) * math.sqrt(1 + 1 / 3)  # the interval of a new value
    assert row["n"] == 1 and row["interval"] == comparison.ALIKE and row["finding"] == finding
    assert (row["low"], row["high"]) == pytest.approx((100 * single - several.mean() - half, row["difference"] + half))


def test_precision_and_hardware_stand_beside_a_difference():
    groups = groups_of(2)
    runs = frame(groups, {k: v[:2] for k, v in ERRORS.items()})
    text = ablation.printed(ablation.table(groups, runs))["precision, hardware"]
    assert text.tolist() == ["fp32 on CPU"]
    runs.loc[0, "precision"] = "bf16"
    text = ablation.printed(ablation.table(groups, runs))["precision, hardware"]
    assert text.tolist() == ["fp32 on CPU; reference bf16 on CPU, fp32 on CPU"]


def test_seeds_beyond_those_asked_for_count():
    asked = groups_of(1)
    row = ablation.table(asked, frame(groups_of(3), ERRORS)).iloc[0]
    assert row["n"] == 3


def test_diverged_and_missing_runs_are_named_and_never_counted():
    groups = groups_of(3)
    runs = frame(groups, ERRORS)
    runs.loc[runs["nesterov"], ["status", "test_error"]] = ["diverged", np.nan]
    row = ablation.table(groups, runs).iloc[0]
    assert math.isnan(row["difference"]) and row["finding"] == "diverged in all 3 runs" and row["n"] == 0
    runs.loc[runs.index[-1], ["status", "test_error"]] = ["finished", 0.09]
    assert ablation.table(groups, runs, NOTHING)["finding"].iloc[0] == "not measured"
    text = ablation.printed(ablation.table(groups, runs)).iloc[0]
    assert "2 diverged" in text["finding"] and text["n"] == "1 / 3"
    nothing = ablation.table(groups, runs.iloc[:0])
    assert set(nothing["finding"]) == {"not yet trained"} and nothing["difference"].isna().all()
    assert ablation.printed(nothing)["test error (%)"].eq("").all()


def test_a_group_with_its_own_reference():
    groups = groups_of(2)
    groups["no warm-up (ResNet-110)"] = [Recipe(model="resnet110", seed=s) for s in range(2)]
    groups["paper (ResNet-110)"] = [Recipe(model="resnet110", seed=s, warmup_lr=0.01) for s in range(2)]
    errors = {k: v[:2] for k, v in ERRORS.items()}
    errors |= {"no warm-up (ResNet-110)": [0.07, 0.071], "paper (ResNet-110)": [0.065, 0.066]}
    rows = ablation.table(groups, frame(groups, errors)).set_index("deviation")
    assert rows.loc["no warm-up (ResNet-110)", "difference"] == pytest.approx(0.5)
    assert rows.loc["no warm-up (ResNet-110)", "model"] == "ResNet-110" and "paper (ResNet-110)" not in rows.index


def test_the_studies_own_groups_are_read():
    preset = presets.PRESETS["medium"]
    groups = studies.fidelity(preset, "cifar10", 2)
    errors = {name: [0.08 + 0.001 * i for i, _ in enumerate(recipes)] for name, recipes in groups.items()}
    rows = ablation.table(groups, frame(groups, errors))
    assert len(rows) == len(studies.deviations(preset)) + len(studies.DEEP_DEVIATIONS)
    assert (rows["n"] == 2).all() and (rows["n reference"] == 2).all()
    np.testing.assert_allclose(rows["difference"], 0, atol=1e-9)


def test_a_deviation_that_the_preset_does_not_have_says_so():
    groups = studies.fidelity(presets.PRESETS["quick"], "cifar10", 1)
    runs = frame(groups, {name: [0.5] * len(recipes) for name, recipes in groups.items()})
    row = ablation.printed(ablation.table(groups, runs)).set_index("deviation").loc["no warm-up (ResNet-110)"]
    assert row["finding"] == "not part of this preset" and row["n"] == "0" and row["test error (%)"] == ""
    said = " ".join(figures.forest(ablation.table(groups, runs), runs).texts[-1].get_text().split())
    assert "not part of this preset: no warm-up (ResNet-110); warm-up judged" in said


def test_captions_carry_the_evidence():
    groups = groups_of(3)
    runs = frame(groups, ERRORS)
    for caption in (ablation.fidelity_caption(runs), ablation.future_work_caption(110, runs)):
        for part in ("preset medium", "cifar10 (00ff)", "3 seeds each", "64,000 iterations", "CPU"):
            assert part in caption
    assert ablation.fidelity_caption(runs.assign(dataset="synthetic")).startswith("SYNTHETIC DATA. ")


def test_forest_draws_each_interval_and_says_what_it_cannot():
    groups = groups_of(3) | {"black padding": [Recipe(padding="black", seed=0)]}
    runs = frame(groups, ERRORS | {"black padding": [0.0]})
    runs.loc[runs["padding"] == "black", ["status", "test_error"]] = ["diverged", np.nan]
    rows = ablation.table(groups, runs)
    ax = figures.forest(rows, runs).axes[0]
    intervals = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2][1:]  # the first is zero
    np.testing.assert_allclose(intervals, rows[["low", "high"]].dropna())
    assert [t.get_color() for t in ax.texts if t.get_text().strip() == "diverged"] == ["#CC0000"]
    fig = figures.forest(ablation.table(groups, runs[runs["padding"] != "black"]), runs)
    assert "black padding" not in [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert "not yet trained: black padding" in " ".join(fig.texts[-1].get_text().split())
    none = figures.forest(ablation.table(groups, runs.iloc[:0]), runs.iloc[:0]).axes[0]
    waiting = [t for t in none.texts if t.get_text().strip() == "not yet trained"]
    assert len(waiting) == len(rows) and {t.get_color() for t in waiting} == {"#777777"}
    assert [t.get_text().replace("\n", " ") for t in ax.get_yticklabels()] == rows["deviation"].tolist()
    assert figures.forest(rows.iloc[:0], runs).axes


def test_footer_says_once_what_all_runs_have():
    changes = [{}, {"nesterov": True}, {"padding": "black"}, {"train_size": 231, "val_size": 25}]
    runs = pd.DataFrame(record(Recipe(**{"train_size": 256, **c}), 0.5) for c in changes)
    line = evidence.evidence_line(runs)
    assert "all with train_size=256 unless named; some with nesterov=true; padding=black; train_size=231, " in line
    assert line.count("train_size=256") == 1 and line.count("with ") == 2
    whole = pd.DataFrame(record(Recipe(**c), 0.5) for c in changes[:3])
    assert " · some with nesterov=true; padding=black · " in evidence.evidence_line(whole)
    one = pd.DataFrame([record(Recipe(padding="black", val_size=5000), 0.5)])
    assert " · with val_size=5000, padding=black · " in evidence.evidence_line(one)
    assert "with" not in evidence.evidence_line(whole[:1])


def test_learning_curves_draw_a_line_per_group():
    groups = groups_of(3)
    runs = frame(groups, ERRORS)
    curves = fake_curves(runs)
    fig = figures.learning_curves(groups, runs, curves)
    for ax, column in zip(fig.axes, ("train_error", "test_error"), strict=True):
        assert [line.get_label() for line in ax.lines] == list(groups)
        own = curves[curves["run"].isin(runs.loc[runs["nesterov"], "run"])]
        np.testing.assert_allclose(ax.lines[1].get_ydata(), 100 * own.groupby("iteration")[column].mean())
    text = figures.learning_curves(groups, runs.iloc[:0], curves).axes[0].texts[0].get_text()
    assert all(f"not yet trained: {name}" in " ".join(text.split()) for name in groups)
    first, (second, recipes) = groups.items()
    fig = figures.learning_curves(groups, runs[~runs.run.isin([r.run_name for r in recipes])], curves)
    assert f"not yet trained: {second}" in [t.get_text() for t in fig.axes[1].texts]
    runs.loc[runs.run.isin([r.run_name for r in recipes]), "status"] = "diverged"
    fig = figures.learning_curves(groups, runs, curves)
    assert f"diverged: {second}" in [t.get_text() for t in fig.axes[1].texts]


def test_learning_curves_label_lines_where_they_end():
    groups = groups_of(3)
    runs = frame(groups, ERRORS)
    curves = fake_curves(runs)
    curves["test_error"] /= 4  # the panels share their limits, which the second one moves
    fig = figures.learning_curves(groups, runs, curves)
    low, high = fig.axes[0].get_ylim()
    for ax in fig.axes:
        ends = sorted(line.get_ydata()[-1] for line in ax.lines)
        places = sorted(low + text.xy[1] * (high - low) for text in ax.texts)
        assert len(places) == len(ends) == 2
        assert np.mean(places) == pytest.approx(np.mean(ends), abs=(high - low) / 100)  # moved apart symmetrically
