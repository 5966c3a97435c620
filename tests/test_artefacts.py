"""Figures and tables drawn again from records: which records, which data, the same bytes as in the notebooks."""

import re

import pandas as pd
import pytest
from fake_frames import texts
from fake_records import write_run

from reslib import artefacts, figures, results_index, studies, tables, verify
from reslib.errors import UserError
from reslib.frames import frames, save_measurement
from reslib.presets import PRESETS, cifar_recipe
from reslib.studies import figure1, figure4

QUICK = PRESETS["quick"]
FIGURE6 = ("figure6.png", "figure6.pdf")


def trained(folder, dataset="cifar10", study=figure1, seeds=1):
    recipes = study(QUICK, dataset, seeds)
    for i, recipe in enumerate(recipes):
        write_run(folder / "runs", recipe, error=0.2 + i / 100)
    return recipes


def test_files_and_bytes_are_those_of_the_notebooks_calls(tmp_path):
    folder = tmp_path / "quick"
    recipes = trained(folder, seeds=2)
    written = artefacts.write("figure1", folder, tmp_path / "out")
    assert [str(p.relative_to(tmp_path / "out")) for p in written] == [
        "figures/figure1.png", "figures/figure1.pdf",
    ]  # fmt: skip
    runs, curves = frames(folder / "runs", recipes)
    for path in figures.save_figure(figures.figure1(runs, curves), tmp_path / "notebook" / "figure1"):
        assert path.read_bytes() == (tmp_path / "out" / "figures" / path.name).read_bytes()


def test_only_the_study_s_own_runs_of_any_seed(tmp_path):
    folder = tmp_path / "quick"
    trained(folder)
    write_run(folder / "runs", cifar_recipe("plain20", QUICK, "cifar10", seed=17))
    write_run(folder / "runs", cifar_recipe("plain20", QUICK, "cifar10", seed=1, lr=0.05))
    write_run(folder / "runs", cifar_recipe("plain20", QUICK, "cifar10", seed=18), stop_at=20)
    write_run(folder / "runs", cifar_recipe("resnet32", QUICK, "cifar10"))
    runs, curves, dataset = artefacts.study_frames("figure1", folder)
    assert dataset == "cifar10"
    assert sorted(zip(runs["model"], runs["seed"], strict=True)) == [
        ("plain20", 0), ("plain20", 17), ("plain56", 0), ("resnet20", 0), ("resnet56", 0),
    ]  # fmt: skip
    assert set(curves["run"]) == set(runs["run"])


def test_real_data_goes_before_synthetic(tmp_path):
    folder = tmp_path / "quick"
    trained(folder, "synthetic")
    assert artefacts.study_frames("figure1", folder)[2] == "synthetic"
    write_run(folder / "runs", figure1(QUICK, "cifar10", 1)[0], status="diverged")
    assert artefacts.study_frames("figure1", folder)[2] == "synthetic"  # nothing has finished on the real one
    trained(folder, "cifar10")
    assert artefacts.study_frames("figure1", folder)[2] == "cifar10"
    assert set(artefacts.study_frames("figure1", folder, "synthetic")[0]["dataset"]) == {"synthetic"}
    trained(folder, "imagenette", figure4)
    assert artefacts.study_frames("figure4", folder)[2] == "imagenette"


def test_nothing_is_drawn_without_records(tmp_path):
    assert artefacts.write_all(tmp_path / "quick", tmp_path / "out") == []
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="allowed are figure1, depth, figure4"):
        artefacts.write("figure2", tmp_path / "quick")


def test_tables_and_networks_of_one_s_own(tmp_path):
    folder = tmp_path / "quick"
    trained(folder)
    write_run(folder / "runs", cifar_recipe("my.nets:Wide", QUICK, "cifar10"), error=0.125)
    write_run(folder / "runs", cifar_recipe("my.nets:Wide", QUICK, "cifar10", lr=0.05, seed=7), error=0.25)
    split = cifar_recipe("resnet20", QUICK, "cifar10", val_size=5000)
    write_run(folder / "runs", split, error=0.5, selected_test_error=0.52)
    write_run(folder / "runs", cifar_recipe("fitnet19", QUICK, "cifar10", teacher="maxout-run"), error=0.375)
    write_run(folder / "runs", cifar_recipe("resnet20", QUICK, "cifar10", lr=0.05), error=0.0)  # no row of the study
    names = [p.name for name in ("cifar10", "claims", "figure6") for p in artefacts.write(name, folder)]
    assert names == [*(f"{t}.{kind}" for t in ("cifar10", "claims") for kind in ("csv", "md", "tex")), *FIGURE6]
    table = pd.read_csv(folder / "tables" / "cifar10.csv", dtype=str).set_index("model")
    assert table.loc["my.nets:Wide", tables.LAST] == "12.50"
    assert table.loc["my.nets:Wide", "source"] == table.loc["my.nets:Wide [lr=0.05]", "source"] == "added"
    assert table.loc["ResNet-20 [val_size=5000]", tables.SELECTED] == "52.00 (n = 1, 5,000 held out)"
    assert table.loc["FitNet-19 [teacher=true]", tables.LAST] == "37.50"
    assert not table.index.str.contains(r"ResNet-20 \[lr").any()
    board = pd.read_csv(folder / "tables" / "claims.csv")
    assert len(board) and not board["source"].str.startswith("Figure 4").any()


def test_every_file_of_the_two_ablations_is_known_to_verify(tmp_path):
    folder = tmp_path / "quick"
    for study in (studies.future_work, lambda *a: [r for runs in studies.fidelity(*a).values() for r in runs]):
        trained(folder, study=study)
    written = [path for name in ("fidelity", "future_work") for path in artefacts.write(name, folder)]
    found = {(path.parent.name, path.stem) for path in written}
    assert found == {(kind, name) for kind in ("figures", "tables") for name in ("fidelity", "future_work")}
    assert found <= verify.OUTPUTS
    assert len(pd.read_csv(folder / "tables" / "future_work.csv")) == 1


def test_one_unit_alone_is_no_comparison(tmp_path):
    folder = tmp_path / "quick"
    recipes = studies.future_work(PRESETS["quick"], "cifar10", 1)
    for recipe in recipes[:-1]:
        write_run(folder / "runs", recipe, error=0.5)
    assert len(recipes) == 2 and artefacts.write("future_work", folder) == []
    write_run(folder / "runs", recipes[-1], error=0.5)
    assert artefacts.write("future_work", folder)


def test_probes_are_drawn_from_their_measurements(tmp_path):
    folder = tmp_path / "quick"
    responses = pd.DataFrame({"model": "plain20", "layer": [1, 2, 3], "std": [1 / 3, 0.5, 0.25]})
    assert artefacts.write("figure7", folder) == []
    save_measurement(responses, folder, "figure7")
    net = {"model": "plain8", "family": "plain", "depth": 8, "seed": 0, "init": "he", "batch_norm": True}
    net |= {"synthetic": True, "evidence": "preset quick", "layer": [1, 2]}
    norms = {"activation": ([4.0, 1.0], [1.0, 1.0]), "backward": ([1.0, 2.0], [1.0, 1.0])}
    norms |= {"gradient": ([0.5, 1e-9], [0.5, 0.5])}
    kinds = [
        pd.DataFrame(net | {"kind": kind, "iteration": iteration, "norm": values})
        for kind, both in norms.items()
        for iteration, values in zip((0, 12), both, strict=True)
    ]
    save_measurement(pd.concat(kinds), folder, "gradients")
    written = artefacts.write_all(folder)
    drawn = [f"{s}.{k}" for s in ("figure7", "gradients_start", "gradients_training") for k in ("png", "pdf")]
    tables = [f"{s}.{k}" for s in ("gradients", "gradients_cures") for k in ("csv", "md", "tex")]
    assert sorted(p.name for p in written) == sorted(drawn + tables)
    assert {(p.parent.name, p.stem) for p in written} <= verify.OUTPUTS
    start, cures = (pd.read_csv(folder / "tables" / f"{stem}.csv") for stem in ("gradients", "gradients_cures"))
    assert start[["activation, last / first", "backward, first / last"]].values.tolist() == [[0.25, 0.5]]
    assert start.gradients.item() == cures["gradients at the start"].item() == "vanish"
    assert cures["gradients at iteration 12"].item() == "healthy"
    for stem in ("gradients", "gradients_cures"):
        caption = (folder / "tables" / f"{stem}.md").read_text().splitlines()[0]
        assert caption.startswith("SYNTHETIC DATA. ") and caption.endswith("preset quick")
    save_measurement(pd.concat(kinds).drop(columns="evidence"), folder, "gradients")
    with pytest.raises(UserError, match="gradients lacks evidence"):
        artefacts.write("gradients", folder)


def test_figure7_says_which_runs_were_measured(tmp_path):
    folder = tmp_path / "medium"
    recipes = studies.figure7(PRESETS["medium"], "cifar10", 3)
    plain, first, second = (
        next(r for r in recipes if (r.model, r.seed) == net)
        for net in (("plain20", 0), ("resnet20", 0), ("resnet20", 1))
    )
    for recipe in (plain, first, second):
        write_run(folder / "runs", recipe, error=0.2)
    one = pd.DataFrame({"run": second.run_name, "model": "resnet20", "seed": 1, "layer": [1, 2], "std": [1.0, 0.5]})
    save_measurement(one, folder, "figure7")
    runs = artefacts.study_frames("figure7", folder)[0]
    words = " ".join(texts(figures.figure7(one, runs)).split())
    assert "not here to be measured: plain-20, 1 of 2 seeds of ResNet-20" in words
    assert "1 seed" in words and "2 seeds of ResNet-20," not in words and "means of the seeds" not in words
    both = pd.concat([one, one.assign(run=first.run_name, seed=0)])
    words = " ".join(texts(figures.figure7(both, runs)).split())
    assert "not here to be measured: plain-20" in words and "means of the seeds" in words and "of 2 seeds" not in words


def test_the_papers_errors_stand_beside_ours_at_its_scale_alone(tmp_path):
    for name in ("paper", "medium"):
        write_run(tmp_path / name / "runs", cifar_recipe("resnet20", PRESETS[name], "cifar10"), error=0.09)
        write_run(tmp_path / name / "runs", cifar_recipe("nin", PRESETS[name], "cifar10"), error=0.12)
    block = results_index.readme_block(tmp_path)
    paper, medium = block[: block.index("preset medium")], block[block.rindex("preset paper") :]
    assert "| ResNet-20 | 269,722 | 8.75 | 9.00 |" in paper and "| NIN |" in paper and "| 8.81 | 12.00 |" in paper
    assert "| ResNet-20 | 269,722 | 9.00 |" in medium and "8.75" not in medium and "8.81" not in medium
    assert re.search(r"\| NIN \| [\d,]+ \| 12.00 \| 1 \|", medium)


def test_claims_about_imagenet_are_a_table_and_stand_in_the_readme(tmp_path):
    folder = tmp_path / "results" / "medium"
    errors = {"plain18": 0.4, "plain34": 0.5, "resnet18": 0.4, "resnet34": 0.5}
    for recipe in figure4(PRESETS["medium"], "imagenette", 1):
        write_run(folder / "runs", recipe, error=errors[recipe.model])
    paths = artefacts.write("figure4_claims", folder) + artefacts.write("by_depth", folder)
    assert {p.stem for p in paths} == {"figure4_claims", "figure4"}
    board = pd.read_csv(paths[0]).set_index("claim")["verdict"]
    assert board["plain-34 is worse than plain-18, in training too"] == "holds"
    assert board["ResNet-34 is better than ResNet-18"] == "does not hold" and len(board) == 5
    assert board["ResNet-34 is better than plain-34"] == "not enough evidence"
    assert board["plain-18 and ResNet-18 are comparably accurate"] == "not enough evidence"  # 0 +- 1.4 points
    block = results_index.readme_block(folder.parent)
    assert "### `medium`: ImageNet by depth (a subset)\n" in block
    assert "that hold at this scale:\n\n- ImageNet: plain-34 is worse" in block
    assert "do not hold at this scale:\n\n- ImageNet: ResNet-34 is" in block
    assert "[ImageNet](results/medium/tables/figure4_claims.md)" in block and "[CIFAR-10]" not in block


def test_the_readme_names_the_claims_that_could_be_judged(tmp_path):
    claim = "Plain nets get worse with depth, in training too"
    for deeper, verdict in ((0.2, "Claims that hold"), (0.05, "Claims that do not hold")):
        for model, error in (("plain20", 0.1), ("plain56", deeper)):
            write_run(tmp_path / "medium" / "runs", cifar_recipe(model, PRESETS["medium"], "cifar10"), error=error)
        write_run(tmp_path / "medium" / "runs", cifar_recipe("resnet20", PRESETS["medium"], "cifar10"), error=0.1)
        block = results_index.readme_block(tmp_path)
        assert f"{verdict} at this scale:\n\n- CIFAR-10: {claim}" in block
        assert "Residual nets beat" not in block  # nothing to judge that on


def test_index_and_table_of_the_readme(tmp_path):
    results = tmp_path / "results"
    folder = results / "medium"
    recipe = cifar_recipe("resnet20", PRESETS["medium"], "cifar10")
    for seed in (0, 1):
        write_run(folder / "runs", recipe.replace(seed=seed), error=0.1 + seed / 1000)
    write_run(folder / "runs", recipe.replace(seed=2), stop_at=320)
    write_run(results / "smoke" / "runs", cifar_recipe("resnet20", PRESETS["smoke"], "synthetic"))
    for name in ("figure1", "cifar10"):
        artefacts.write(name, folder)
    (tmp_path / "README.md").write_text(f"before\n{results_index.START}\nold\n{results_index.END}\nafter\n")
    assert [p.name for p in results_index.write_index(results)] == ["README.md", "README.md"]
    index, readme = (results / "README.md").read_text(), (tmp_path / "README.md").read_text()
    assert "3 (2 finished, 1 unfinished)" in index and "00ff00ff00ff00ff" in index and "Some GPU" in index
    assert "`reslib reproduce figure1 --preset medium`" in index and "## smoke" in index
    assert "`reslib reproduce cifar10_table --preset medium`" in index
    assert readme.startswith("before\n") and readme.endswith("\nafter\n") and "old" not in readme
    assert "| ResNet-20 | 269,722 | 10.05 ± 0.07 | 10.05 ± 0.07 |" in readme and "8.75" not in readme
    assert "SYNTHETIC" not in readme  # smoke runs are no results
