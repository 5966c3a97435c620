"""The table of CIFAR-10 errors: rows, statistics, comparison with the paper, notes, files."""

import pandas as pd
import pytest
from fake_frames import fake_runs

from reslib import evidence, paper, stats, table_text, tables
from reslib.models import build_model

FIVE = [6.45, 6.60, 6.55, 6.80, 6.70]


def row(table, model):
    (found,) = table[table["model"] == model].to_dict("records")
    return found


def test_every_row_of_table_6_is_there_without_runs():
    table = tables.cifar10_table(fake_runs({"resnet20": (3, 8.8)}).iloc[:0])
    assert list(table["model"]) == [r.label for r in paper.TABLE6.values()]
    assert set(table["source"]) == {"quoted"}
    assert (table[["n", tables.LAST, "parameters", "data set", tables.BEST_ON_TEST]] == "").all(axis=None)
    assert row(table, "ResNet-110")["test error (paper, %)"] == "6.43 (6.61 ± 0.16)"
    assert row(table, "ResNet-1202")["parameters (paper)"] == "19.4M"


def test_a_trained_row():
    runs = fake_runs({"resnet110": FIVE})
    cells = row(tables.cifar10_table(runs), "ResNet-110")
    s = stats.summarize(FIVE)
    assert cells["source"] == "trained here" and cells["n"] == "5" and cells["iterations"] == "64,000"
    assert cells["multiply-adds"] == "40,551,040"
    assert cells[tables.LAST] == "6.62 ± 0.14" == f"{s.mean:.2f} ± {s.std:.2f}"
    assert cells[tables.INTERVAL] == f"{s.low:.2f} to {s.high:.2f}"
    assert cells["best of n seeds (%)"] == "6.45"
    assert cells[tables.BEST_ON_TEST] == "6.32" and cells[tables.BEST_BIAS] == "-0.30"
    assert "selected on the test set" in tables.BEST_ON_TEST
    assert cells[tables.EXACT_BN] == "6.72" and cells[tables.SELECTED] == cells[tables.SELECTED_BIAS] == ""
    assert cells["parameters"] == "269,722" and cells["precision"] == "bf16"
    assert cells["against the paper"].startswith("+0.01 (-0.2") and "from the mean 6.61" in cells["against the paper"]


def test_one_seed_has_a_binomial_interval_and_no_deviation():
    cells = row(tables.cifar10_table(fake_runs({"resnet56": (1, 7.0)})), "ResNet-56")
    assert cells[tables.LAST] == "7.00" and cells[tables.INTERVAL] == "6.50 to 7.50 (binomial)"
    assert cells["against the paper"] == "+0.03, z = +0.1" and cells["best of n seeds (%)"] == ""


def test_the_three_views_of_a_run_with_validation_images():
    runs = fake_runs({"resnet20": [8.7, 8.9]}, val_size=5000)
    runs["selected_test_error"] = [0.0890, 0.0888]
    cells = row(tables.cifar10_table(runs), "ResNet-20 [val_size=5000]")
    assert cells[tables.LAST].startswith("8.80") and cells[tables.SELECTED] == "8.89 (n = 2, 5,000 held out)"
    assert cells[tables.SELECTED_BIAS] == "+0.09 (of those runs)"  # (8.90 - 8.70 + 8.88 - 8.90) / 2
    assert cells[tables.BEST_ON_TEST] == "8.50" and cells[tables.BEST_BIAS] == "-0.30"


@pytest.mark.parametrize("model", ["resnet20", "my.nets:Wide"])
def test_a_row_has_the_validation_selected_view_of_its_split_runs(model):
    """The difference is within the split runs: their smaller training set is no bias of the selection."""
    whole, other = fake_runs({model: [8.0, 8.2]}), fake_runs({model: [9.9]}, shortcut="B")
    split = fake_runs({model: [8.7, 8.9]}, val_size=5000).assign(selected_test_error=[0.0890, 0.0888])
    table = tables.cifar10_table(pd.concat([whole, split, other], ignore_index=True))
    label = paper.label(model)
    cells, own = row(table, label), row(table, f"{label} [val_size=5000]")
    assert cells["n"] == "2" and cells[tables.LAST].startswith("8.10")
    assert cells[tables.SELECTED] == own[tables.SELECTED] == "8.89 (n = 2, 5,000 held out)"
    assert cells[tables.SELECTED_BIAS] == own[tables.SELECTED_BIAS] == "+0.09 (of those runs)"
    assert row(table, f"{label} [shortcut=B]")[tables.SELECTED] == ""  # of another recipe


def test_a_departure_from_the_preset_is_named_also_below_the_papers_scale():
    usual = {"preset": "smoke", "iterations": 6, "batch_size": 16, "train_size": 256, "test_size": 64}
    runs = fake_runs({"my.nets:Wide": (80, 85)}, **usual)
    assert "my.nets:Wide" in set(tables.cifar10_table(runs)["model"])  # a preset's scale is no departure
    for field, value in {"batch_size": 128, "accumulation": 2, "crop_size": 24, "train_size": 128}.items():
        table = tables.cifar10_table(runs.assign(**{field: value}))
        assert f"my.nets:Wide [{field}={value}]" in set(table["model"]), field
    assert "my.nets:Wide" in set(tables.cifar10_table(runs.assign(preset="of another version"))["model"])


def test_errors_that_say_nothing_say_so():
    runs = fake_runs({"resnet20": (88, 61.0), "nin": (90, 89.5), "dsn": (88, 88.0)}, iterations=200)
    runs["train_images"] = 50_000
    runs.loc[runs["model"] != "resnet20", "iterations"] = 30
    table = tables.cifar10_table(runs)
    assert row(table, "NIN")[tables.LAST] == "89.50 (no better than guessing)"  # within 2 x 0.3 points of 90
    assert row(table, "DSN")[tables.LAST] == "88.00" and row(table, "DSN")["iterations"] == "30"
    for text in (" ".join(tables.notes(runs)), tables.caption(runs)):
        assert "do not compare with each other (30 iterations: NIN, DSN; 200 iterations: ResNet-20)" in text
        assert "Not one pass over the training images: every row" in text
    runs.loc[runs["model"] != "resnet20", "batch_size"] = 64
    assert "(30 iterations of 64 images: NIN, DSN; 200 iterations of 128 images: ResNet-20)" in tables.caption(runs)
    long = fake_runs({"resnet20": (3, 8.8), "resnet32": (3, 7.5)}).assign(train_images=50_000)
    assert not table_text.lengths(long) and "compare" not in tables.caption(long)
    long.loc[1, "iterations"] = 300
    assert "Not one pass over the training images: ResNet-32." in tables.caption(long)


def test_z_by_hand():
    one = fake_runs({"resnet56": (1, 7.97)})
    error = (6.97 * (100 - 6.97) / 1e4 + 7.97 * (100 - 7.97) / 1e4) ** 0.5
    assert tables.paper_z("resnet56", one) == pytest.approx(1 / error)
    five = fake_runs({"resnet110": FIVE})
    error = (0.16**2 / 5 + stats.summarize(FIVE).std ** 2 / 5) ** 0.5
    assert tables.paper_z("resnet110", five) == pytest.approx(0.01 / error)


@pytest.mark.parametrize(
    "fields",
    [{"iterations": 6400}, {"dataset": "synthetic", "synthetic": True}, {"test_size": 1000}, {"train_size": 5000},
     {"batch_size": 32}, {"accumulation": 8}],
)  # fmt: skip
def test_nothing_is_compared_with_the_paper_below_its_scale(fields):
    runs = fake_runs({"resnet20": (3, 8.8)}, **fields)
    table = tables.cifar10_table(runs)
    (cells,) = table[table["n"] == "1"].to_dict("records")
    assert cells["model"].startswith("ResNet-20") and cells["against the paper"] == ""
    assert any("Not at the paper's scale" in line for line in tables.notes(runs))


OTHERS = [
    ("lr", 0.01, "lr=0.01"), ("lr_drops", [0.9], "lr_drops=0.9"), ("schedule", "plateau", "schedule=plateau"),
    ("augmentation", "none", "augmentation=none"), ("warmup_lr", 0.01, "warmup_lr=0.01"),
    ("nesterov", True, "nesterov"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "named"), OTHERS)
def test_another_recipe_is_named_and_not_compared_with_the_paper(field, value, named):
    """Also where every run of the network departs alike, so that nothing varies between them."""
    for model in ("resnet20", "my.nets:Wide"):
        runs = fake_runs({model: (3, 8.8)})
        runs[field] = [value] * len(runs)
        found = tables.cifar10_table(runs).set_index("model")
        (label,) = [name for name in found.index if named in name]
        assert found.loc[label, "n"] and found.loc[label, "against the paper"] == ""


def test_own_networks_and_plain_nets_are_appended():
    runs = fake_runs({"my.nets:Wide": (1, 5), "plain20": (4, 9), "resnet14": (4, 9.5), "resnet20": (3, 8.8)})
    table = tables.cifar10_table(runs)
    assert list(table["model"])[-3:] == ["plain-20", "ResNet-14", "my.nets:Wide"]
    assert list(table["source"])[-3:] == ["trained here", "trained here", "added"]


def test_recipes_are_never_averaged():
    runs = pd.concat(
        [fake_runs({"resnet20": [8.7, 8.8]}), fake_runs({"resnet20": [9.5]}, val_size=5000),
         fake_runs({"resnet32": [6.0]}, options="preactivation=true")], ignore_index=True,
    )  # fmt: skip
    table = tables.cifar10_table(runs)
    assert row(table, "ResNet-20")[tables.LAST].startswith("8.75")
    assert row(table, "ResNet-20 [val_size=5000]")[tables.LAST] == "9.50"
    assert row(table, "ResNet-32 [options=preactivation=true]")["n"] == "1"  # another network says so, alone or not


def test_the_warm_up_is_the_papers_recipe_for_110_layers():
    runs = pd.concat(
        [fake_runs({"resnet110": FIVE}), fake_runs({"resnet110": [7.5]}, warmup_lr=0.0)], ignore_index=True
    )
    table = tables.cifar10_table(runs)
    assert row(table, "ResNet-110")["n"] == "5" and row(table, "ResNet-110 [warmup_lr=0]")["n"] == "1"


def test_imagenet_and_unfinished_runs_stay_out():
    runs = pd.concat([fake_runs({"resnet18": (30, 28)}, dataset="imagenet"), fake_runs({"resnet20": [8.7, 8.8]})])
    runs = runs.reset_index(drop=True)
    runs.loc[2, "status"] = "diverged"
    table = tables.cifar10_table(runs)
    assert row(table, "ResNet-20")["n"] == "1" and "ResNet-18" not in set(table["model"])
    assert "ResNet-20: 1 run diverged, not in the table." in tables.notes(runs)


def test_notes_on_mixed_data_equal_seeds_and_synthetic_images():
    runs = fake_runs({"resnet20": [8.7, 8.7, 8.7], "resnet32": [7.5, 7.6]})
    clean = " ".join(tables.notes(fake_runs({"resnet32": [7.5, 7.6]})))
    assert not any(word in clean for word in ("Mixed", "SYNTHETIC", "same error", "Not at"))
    assert "ResNet-32 7.37" in clean and "the best of 200 evaluations" in clean  # the peers, apart
    assert any(line.startswith("ResNet-20: all 3 seeds have the same error") for line in tables.notes(runs))
    runs.loc[0, "data_fingerprint"], runs.loc[3, "precision"] = "abcd", "fp32"
    said = " ".join(tables.notes(runs))
    assert "Mixed data" in said and "00ff, abcd" in said and "seeds of different precision: bf16, fp32" in said
    synthetic = fake_runs({"resnet20": (50, 55)}, dataset="synthetic", synthetic=True)
    assert any("SYNTHETIC DATA" in line for line in tables.notes(synthetic))
    assert row(tables.cifar10_table(synthetic), "ResNet-20")["data set"] == "synthetic (SYNTHETIC)"


def test_a_caption_names_networks_that_are_not_their_papers():
    runs = fake_runs({"resnet20": (1, 8.5), "fitnet19": (1, 8.4)})
    for text in (" ".join(tables.notes(runs)), tables.caption(runs)):
        assert "Not as in their own papers, beside the recipes: FitNet-19, batch norm added, no hints." in text
    alone = tables.caption(runs.iloc[:1])
    assert "Not as in" not in alone and "Released peers: README of github.com/akamaster" in alone


def test_a_caption_says_that_data_are_mixed():
    runs = fake_runs({"plain20": [0.2, 0.21], "resnet20": [0.1, 0.11]})
    assert "MIXED" not in tables.caption(runs) and evidence.mixed(runs) == ""
    prints = ["aaaa"] * (len(runs) - 1) + ["bbbb"]
    mixed = runs.assign(data_fingerprint=prints)
    assert tables.caption(mixed).startswith("MIXED DATA, rows do not compare: aaaa, bbbb. ")
    assert "MIXED DATA: " in evidence.evidence_line(mixed)
    assert evidence.mixed(mixed.assign(status=["finished"] * (len(runs) - 1) + ["diverged"])) == ""


def test_architecture_table():
    nets = [("resnet20", build_model("resnet20"), 32), ("resnet18", build_model("resnet18", num_classes=1000), 224)]
    table = tables.architecture_table(nets)
    small, large = table.to_dict("records")
    assert small["parameters"] == "269,722" and small["parameters (paper)"] == "0.27M" and small["layers"] == "20"
    assert small["multiply-adds"] == "40,551,040" and small["multiply-adds (paper)"] == ""
    assert large["multiply-adds (paper)"] == "1.8 billion" and large["multiply-adds"].startswith("1,81")
    alone = tables.architecture_table([("resnet34 C", build_model("resnet34", 1000, "C"), 224)])
    assert alone.model.tolist() == ["ResNet-34 C"] and alone["multiply-adds (paper)"].tolist() == ["3.6 billion"]
    assert "parameters (paper)" not in alone


def test_saved_files(tmp_path):
    table = tables.cifar10_table(fake_runs({"resnet20": [8.70, 8.80]}))
    paths = tables.save_table(table, tmp_path / "deep" / "table6", "Errors in % of cifar10_table")
    assert [p.name for p in paths] == ["table6.csv", "table6.md", "table6.tex"]
    read = pd.read_csv(paths[0], dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(read, table.astype(read.dtypes))
    markdown, tex = paths[1].read_text(), paths[2].read_text()
    assert markdown.startswith("Errors in % of cifar10_table\n\n| model") and "8.80" in markdown  # not 8.8
    assert r"Errors in \% of cifar10\_table" in tex and r"\label{tab:table6}" in tex and r"(\%)" in tex
    before = [p.read_bytes() for p in paths]
    tables.save_table(table, tmp_path / "deep" / "table6", "Errors in % of cifar10_table")
    assert before == [p.read_bytes() for p in paths] and len(list((tmp_path / "deep").iterdir())) == 3
