"""`reslib equivalence`: what it trains and where, and that its record and verdict follow from the errors."""

import json

import pytest
from matplotlib.text import Text

from reslib import artefacts, equivalence, equivalence_records, figures, results_index, verify
from reslib.compilation import cannot_compile
from reslib.equivalence_records import compare, markdown
from reslib.errors import UserError
from reslib.job import Execution
from reslib.presets import cifar_recipe, preset_of
from reslib.recipe import Recipe

pytestmark = pytest.mark.usefixtures("same_threads")
RECIPE = Recipe(model="resnet8", dataset="synthetic", batch_size=16, lr=0.001, train_size=512)


def summary(error, precision, status="finished", step="eager"):
    return {
        "sessions": [{"step": step}],
        "test_error": error,
        "precision": precision,
        "status": status,
        "device_name": "here",
        "torch": "2.14.1",
        "finished": "2026-01-02T00:00:00",
        "commit": "c" * 40,
        "data_fingerprint": "f" * 16,
        "images_per_second": 100.0,
    }


def pairs(fp32, fast):
    return [(summary(a, "fp32"), summary(b, "bf16")) for a, b in zip(fp32, fast, strict=True)]


def test_interval_is_welchs():
    from scipy.stats import ttest_ind

    fp32, fast = [0.080, 0.082, 0.081, 0.083], [0.081, 0.084, 0.080, 0.085]
    record = compare("resnet20", "medium", "cifar10", pairs(fp32, fast))
    interval = ttest_ind([100 * e for e in fast], [100 * e for e in fp32], equal_var=False).confidence_interval(0.95)
    assert (record["low"], record["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert record["difference"] == pytest.approx(0.1) and record["verdict"] == "no difference found"
    page = markdown(record | {"command": "reslib equivalence"})
    assert [record["sides"][name]["steps"] for name in ("fp32", "fast")] == [["eager"], ["eager"]]
    assert "| fp32 | fp32; eager | 4 |" in page and "| fast | bf16; eager | 4 |" in page
    assert "+0.10 points" in page and "no difference found" in page and "8.15 ± 0.13" in page
    json.dumps(record, allow_nan=False)


def test_a_difference_is_called_one():
    assert compare("m", "p", "d", pairs([0.08, 0.081, 0.082], [0.09, 0.091, 0.092]))["verdict"] == "different"
    equal = compare("m", "p", "d", pairs([0.08, 0.08], [0.08, 0.08]))
    assert equal["verdict"] == "no difference found" and equal["low"] == equal["high"] == 0


def test_one_seed_proves_nothing():
    record = compare("m", "p", "d", pairs([0.08], [0.09])) | {"command": "reslib equivalence"}
    assert record["verdict"] == "too few seeds" and "difference" not in record and "too few seeds" in markdown(record)


def test_an_eager_fast_path_in_fp32_is_compared_with_itself():
    same = [(summary(0.08, "fp32"), summary(0.08, "fp32"))] * 3
    assert compare("m", "p", "d", same)["verdict"] == "nothing compared"


def test_what_else_the_sides_differ_in_is_said():
    sides = [(a, b | {"commit": "d" * 40, "device_name": "there"}) for a, b in pairs([0.08, 0.09], [0.08, 0.09])]
    page = markdown(compare("m", "p", "d", sides) | {"command": "reslib equivalence"})
    assert "The sides differ in more than the path: in hardware, commit." in page


def test_divergence_of_one_side_is_a_difference():
    sides = pairs([0.08, 0.081, 0.082], [0.08, 0.081, 0.082])
    sides[2] = (sides[2][0], summary(None, "bf16", "diverged"))
    record = compare("m", "p", "d", sides)
    assert record["verdict"] == "different"
    assert [record["sides"][name]["diverged"] for name in ("fp32", "fast")] == [0, 1]
    assert all(len(record["sides"][name]["errors"]) == 2 for name in ("fp32", "fast"))
    assert "Diverged: 0 of 3 in fp32, 1 of 3 on the fast path." in markdown(record | {"command": "reslib equivalence"})


def test_command_trains_both_ways(tmp_path, monkeypatch, capsys):
    asked = []

    def train(recipe, runs_dir, root, preset, execution):
        asked.append((recipe.precision, recipe.seed, runs_dir))
        return summary(0.5 + 0.01 * recipe.seed, "bf16" if recipe.precision == "bf16" else "fp32")

    monkeypatch.setattr(equivalence, "train", train)
    from reslib.cli import main

    argv = f"equivalence --preset smoke --seeds 2 --fast bf16 --device cpu --results {tmp_path}"
    assert main(argv.split()) == 0
    assert [(p, s) for p, s, _ in asked] == [("fp32", 0), ("bf16", 0), ("fp32", 1), ("bf16", 1)]
    own, study = tmp_path / "equivalence" / "smoke" / "runs", tmp_path / "smoke" / "runs"
    assert [folder for *_, folder in asked] == [own, study, own, study]
    record = json.loads((tmp_path / "equivalence" / "smoke" / "resnet20-synthetic-bf16.json").read_text())
    assert record["sides"]["fp32"]["errors"] == record["sides"]["fast"]["errors"] == [50.0, 51.0]
    command = "reslib equivalence --model resnet20 --preset smoke --dataset synthetic --seeds 2 --fast bf16"
    assert record["command"].endswith(command)
    assert "no difference found" in capsys.readouterr().out


@pytest.mark.skipif(bool(cannot_compile()), reason="no C++ compiler")
def test_other_kernels_meet_the_same_references(tmp_path, monkeypatch, capsys):
    """`--apart`: the fast runs lie beside the references, the record beside the other, and verify reads them all."""
    from reslib.cli import main

    preset = "smoke+train_size=64"
    argv = f"equivalence --preset {preset} --model resnet8 --seeds 2 --fast bf16 --dataset synthetic --device cpu"
    argv = [*argv.split(), "--results", str(tmp_path)]
    assert main(argv) in (0, 1)
    root = tmp_path / "equivalence" / preset
    monkeypatch.delenv("RESLIB_TUNE", raising=False)
    assert main([*argv, "--apart", "fused"]) == 2
    assert "--apart fused is for kernels that RESLIB_TUNE names, which is not set" in capsys.readouterr().err
    tuned = "precision=bf16,threads=1,compile=false,winograd=false,fused=true,units=false"
    monkeypatch.setenv("RESLIB_TUNE", tuned)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.json")}
    assert main([*argv, "--apart", "fused"]) in (0, 1)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    first, second = (json.loads((root / f"resnet8-synthetic-bf16{name}.json").read_text()) for name in ("", "+fused"))
    assert first["runs"]["fp32"] == second["runs"]["fp32"] and first["sides"]["fp32"] == second["sides"]["fp32"]
    assert all(run.startswith(f"equivalence/{preset}/fused/runs/") for run in second["runs"]["fast"])
    assert [made["sides"]["fast"]["steps"] for made in (first, second)] == [["eager"], ["eager, fused norms"]]
    assert second["command"].startswith(f'RESLIB_TUNE="{tuned}" ') and second["apart"] == "fused"
    assert second["command"].endswith("--fast bf16 --apart fused")
    frame = equivalence_records.frame(tmp_path)
    assert list(frame["side"]) == ["fp32", "fast"] * 2 and list(frame["apart"]) == ["fused", "fused", "", ""]
    titles = {t.get_text() for t in figures.equivalence_figure(frame).findobj(Text)}
    assert {f"ResNet-8 on synthetic\n{preset}", f"ResNet-8 on synthetic\n{preset}, fused"} <= titles
    assert markdown(second).startswith(f"# Fast path beside fp32: resnet8 on synthetic, preset {preset}, fused\n")
    findings = verify.Findings()
    verify.check_equivalence(tmp_path, findings)
    assert (findings.problems, findings.records) == ([], 6)
    damaged = tmp_path / second["runs"]["fast"][0] / "metrics.csv"
    damaged.write_text(damaged.read_text().replace("0.1", "0.2"))
    verify.check_equivalence(tmp_path, findings)
    assert any(f"equivalence/{preset}/fused/runs/" in text for text in findings.problems)
    monkeypatch.setenv("RESLIB_TUNE", "precision=bf16,threads=1")
    assert main([*argv, "--apart", "fused"]) == 2
    assert "now RESLIB_TUNE is 'precision=bf16,threads=1': allowed is the same" in capsys.readouterr().err


def test_references_of_the_study_serve_other_kernels_too(tmp_path, monkeypatch):
    """At a preset's own settings fast runs lie among the study's; `--apart` puts them elsewhere, further seeds too."""
    from reslib.cli import main

    asked, looked, study = [], [], tmp_path / "smoke" / "runs"
    root = tmp_path / "equivalence" / "smoke"
    own, apart = root / "runs", root / "mine" / "runs"

    def train(recipe, runs_dir, root, preset, execution):
        asked.append((recipe.precision, recipe.seed, runs_dir))
        return summary(0.5, recipe.precision)

    monkeypatch.setattr(equivalence, "train", train)
    monkeypatch.setattr(equivalence, "_both_there", lambda recipe, fast, *at: looked.append(at) or len(looked) < 2)
    monkeypatch.setenv("RESLIB_TUNE", "precision=bf16,threads=1")
    reference = cifar_recipe("resnet20", preset_of("smoke"), "synthetic", 0).replace(precision="fp32")
    (study / reference.run_name).mkdir(parents=True)
    argv = f"equivalence --preset smoke --seeds 1 --fast bf16 --apart mine --device cpu --results {tmp_path}"
    assert main(argv.split()) == 0
    assert asked == [("fp32", 0, study), ("bf16", 0, apart), ("fp32", 1, own), ("bf16", 1, apart)]
    assert looked == [(apart, (study, own))] * 2


@pytest.mark.parametrize("steps", [["CUDA graph"], ["eager", "eager, winograd"], []])
def test_a_fast_run_in_fp32_is_no_reference(tmp_path, monkeypatch, steps):
    """It may lie among the preset's runs from `train --precision fp32`, or have been begun by it."""
    asked, study, own = [], tmp_path / "smoke" / "runs", tmp_path / "equivalence" / "smoke" / "runs"
    name = RECIPE.replace(precision="fp32").run_name
    (study / name).mkdir(parents=True)

    def train(recipe, runs_dir, root, preset, execution):
        asked.append((recipe.precision, execution.eager, runs_dir))
        return summary(0.5, "fp32") | {"sessions": [{"step": s} for s in (["eager"] if runs_dir == own else steps)]}

    monkeypatch.setattr(equivalence, "train", train)
    found, where = equivalence.reference_run(RECIPE, (study, own), None, "smoke", Execution())
    assert asked == [("fp32", True, study), ("fp32", True, own)]
    assert found["sessions"] == [{"step": "eager"}] and where == own / name
    asked.clear()
    with pytest.raises(UserError, match=f"remove .*{name}: the reference in it was trained by other than eager"):
        equivalence.reference_run(RECIPE, (study, study), None, "smoke", Execution())
    assert len(asked) == 1  # a changed preset has one folder for both


def test_a_record_is_that_of_its_runs(tmp_path, capsys):
    """Trained, drawn, indexed and verified; an edited record, page or run is found, and runs that are no pairs."""
    from reslib.cli import main

    preset = "smoke+train_size=64"
    argv = f"equivalence --preset {preset} --model resnet8 --seeds 2 --fast bf16 --dataset synthetic --device cpu"
    assert main([*argv.split(), "--results", str(tmp_path)]) in (0, 1)
    path = tmp_path / "equivalence" / preset / "resnet8-synthetic-bf16.json"
    record, where = json.loads(path.read_text()), f"equivalence/{preset}/resnet8-synthetic-bf16.json"
    assert main([*argv.replace("--seeds 2", "--seeds 1").split(), "--results", str(tmp_path)]) in (0, 1)
    assert json.loads(path.read_text()) == record  # of fewer seeds: those there count all the same
    assert "seeds trained both ways before count as well: 1" in capsys.readouterr().out
    assert all((tmp_path / run / "metrics.csv").exists() for side in record["runs"].values() for run in side)
    rows = equivalence_records.frame(tmp_path)
    assert list(rows["side"]) == ["fp32", "fast"] and rows["errors"].str.len().eq(2).all()
    drawn = artefacts.speed_figures(tmp_path)
    assert set(drawn) == {"speed_equivalence"} <= set(artefacts.SPEED_STEMS)
    texts = [t.get_text() for t in drawn["speed_equivalence"].findobj(Text)]
    title = f"{record['verdict']}\n{record['difference']:+.2f} ({record['low']:+.2f} to {record['high']:+.2f})"
    assert {title, "fp32; eager (reference)", "bf16; eager"} <= set(texts)
    link = f"[{preset}: {path.stem}](equivalence/{preset}/{path.stem}.md)"
    assert link in results_index.equivalence_section(tmp_path)

    def problems():
        findings = verify.Findings()
        verify.check_equivalence(tmp_path, findings)
        return findings.problems

    assert problems() == []
    page = path.with_suffix(".md")
    page.write_text(page.read_text().replace("Verdict", "verdict"))
    assert problems() == [f"{where}: {page.name} is not what the record gives"]
    page.write_text(page.read_text().replace("verdict", "Verdict"))
    sides = record["sides"]
    path.write_text(json.dumps(record | {"sides": sides | {"fast": sides["fast"] | {"errors": [0.0, 0.0]}}}))
    assert problems() == [f"{where} is not what the runs it names give"]
    crossed = record["runs"] | {"fast": record["runs"]["fast"][::-1]}
    path.write_text(json.dumps(record | {"runs": crossed}))
    assert "no pairs" in problems()[0]
    path.write_text(json.dumps(record | {"runs": {side: record["runs"]["fast"] for side in record["runs"]}}))
    assert "its reference is not fp32 in eager steps" in problems()[0]
    path.write_text(json.dumps({"model": "resnet8"}))
    assert "no record of `reslib equivalence`" in problems()[0]
    said = []
    assert equivalence_records.frame(tmp_path, said.append).empty and len(said) == 1
    path.write_text(json.dumps(record))
    summary_file = tmp_path / record["runs"]["fp32"][0] / "summary.json"
    summary_file.write_text(summary_file.read_text().replace('"test_error": ', '"test_error": 0.0'))
    assert any(f"equivalence/{preset}/runs/" in text for text in problems())


def test_without_a_record_the_figure_says_how_to_make_one(tmp_path):
    figure = figures.equivalence_figure(equivalence_records.frame(tmp_path))
    assert "not measured: reslib equivalence" in [t.get_text() for t in figure.findobj(Text)]


def test_wrong_arguments(capsys):
    from reslib.cli import main

    assert main(["equivalence", "--seeds", "0"]) == 2 and "--seeds: '0': allowed is" in capsys.readouterr().err
    assert main(["equivalence", "--model", "resnet21"]) == 2 and "unknown model 'resnet21'" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "nothing"), [("resnet20", True), ("nin", False)])
def test_without_a_compiler_there_is_something_to_compare_only_with_large_kernels(monkeypatch, model, nothing):
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1")
    monkeypatch.setattr(equivalence, "cannot_compile", lambda: "no C++ compiler")
    recipe = RECIPE.replace(model=model, batch_size=128, iterations=1000)
    assert bool(equivalence._never_other(recipe, Execution())) is nothing
    none = "such runs are neither compiled nor convolved otherwise, and nothing in them is fused"
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,compile=false,winograd=false,fused=false")
    assert (equivalence._never_other(recipe, Execution()) == none) is nothing
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,compile=false,winograd=false,fourier=false,fused=false")
    assert equivalence._never_other(recipe, Execution()) == none
