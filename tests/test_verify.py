"""`reslib verify`: a sound results folder passes; each kind of damage is found, once, and named."""

# ruff: noqa: F811 (pytest takes the imported fixtures by the names of arguments)

import json
import shutil

import pytest
from fake_records import change_summary, write_run
from PIL import Image
from verified import QUICK, ROOT, fast, figure, found, only, results, rewrite, runs_of, sound  # noqa: F401

from reslib import artefacts, verify
from reslib.cli import main
from reslib.measured_checks import write_pages
from reslib.presets import PRESETS
from reslib.results_index import END, START
from reslib.studies import figure1


def test_a_sound_folder_passes(results, capsys):
    assert main(["verify", str(results)]) == 0
    out = capsys.readouterr().out
    assert "8 records" in out and "no problems" in out and "0 warnings" in out and "PROBLEM" not in out


def test_one_preset_alone_is_not_held_to_the_numbers_of_another(results, fast, capsys):
    write_run(results / "smoke" / "runs", figure1(PRESETS["smoke"], "synthetic")[0], error=0.9)
    (results.parent / "README.md").write_text(f"{START}\n| ResNet-20 | 98.76 |\n{END}\n")
    main(["verify", str(results), "--preset", "quick"])
    out = capsys.readouterr().out
    assert "98.76" not in out and "README.md may show another preset: its numbers are not compared" in out
    assert main(["verify", str(results)]) == 1
    assert "98.76" in capsys.readouterr().out


def test_a_folder_without_results(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    assert "no results in" in capsys.readouterr().err


RECORD_DAMAGE = {
    "metrics.csv is missing": lambda run: run.metrics_file.unlink(),
    "recipe.json is missing": lambda run: run.recipe_file.unlink(),
    "summary.json is missing": lambda run: run.summary_file.unlink(),
    "summary.json cannot be read": lambda run: run.summary_file.write_text("{"),
    "metrics.csv is not the file": lambda run: run.metrics_file.write_text(run.metrics_file.read_text() + "\n"),
    "weights.safetensors is not the file": lambda run: run.weights_file.write_bytes(b"x"),
    "names recipe 00000000": lambda run: change_summary(run, recipe_hash="00000000"),
    "is that of plain20-cifar10-s0": lambda run: run.path.rename(run.path.with_name("plain20-cifar10-s0-00000000")),
    "summary.json has no commit": lambda run: change_summary(run, commit=None),
    "status 'good' is unknown": lambda run: change_summary(run, status="good"),
    "saw different data": lambda run: change_summary(run, data_fingerprint="beef"),
    "has an iteration twice": lambda run: rewrite(run, lambda rows: [rows[0], *rows]),
    "do not increase": lambda run: rewrite(run, lambda rows: [rows[1], rows[0], *rows[2:]]),
    "metrics.csv ends at iteration": lambda run: rewrite(run, lambda rows: rows[:-1]),
    "has columns": lambda run: run.metrics_file.write_text("iteration,error\n1,2\n"),
    "best_iteration 7 of summary.json is not": lambda run: change_summary(run, best_iteration=7),
    "test_error 0.19 of summary.json is not": lambda run: change_summary(run, test_error=0.19, best_test_error=0.19),
    "test_error 0.1001 of summary.json is not": lambda run: change_summary(
        run, test_error=0.1001, best_test_error=0.1001
    ),
    "train_error 0.2 of summary.json is not": lambda run: change_summary(run, train_error=0.2),
    "train_loss 9.0 of summary.json is not": lambda run: change_summary(run, train_loss=9.0),
    "lr_drops_at [1, 2] of summary.json are not": lambda run: change_summary(run, lr_drops_at=[1, 2]),
    "is not that of recipe.json": lambda run: rewrite(
        run, lambda rows: [*rows[:-1], rows[-1].replace(",0.001,", ",0.1,", 1)]
    ),
    "is not a fraction": lambda run: rewrite(run, lambda rows: [rows[0].replace(",1.5,0.", ",1.5,3."), *rows[1:]]),
}


@pytest.mark.parametrize("text", RECORD_DAMAGE)
def test_damaged_records(results, fast, text):
    RECORD_DAMAGE[text](runs_of(results)[0])
    problems = found(results).problems
    assert [p for p in problems if text in p], problems
    assert all("plain20-cifar10-s0" in p or "saw different data" in p or "README" in p for p in problems)


def test_what_is_no_folder_of_a_run(results, fast):
    runs = results / "quick" / "runs"
    (runs / "resnet20").write_text("a stray file")
    (runs / "elsewhere").symlink_to("nowhere")
    (results / "medium").symlink_to("nowhere")
    problems = verify.verify(results).problems
    for name in ("quick/runs/resnet20 is no folder", "quick/runs/elsewhere is no folder", "medium is no folder"):
        assert sum(name in problem for problem in problems) == 1, problems
    runs.rename(results / "moved")
    runs.symlink_to("nowhere")
    findings = verify.verify(results)
    assert findings.records == 0 and "quick/runs is no folder" in findings.problems


def test_other_recipe_in_a_directory(results, fast):
    run = runs_of(results)[0]
    recipe = json.loads(run.recipe_file.read_text())
    run.recipe_file.write_text(json.dumps(recipe | {"lr": 0.05}))
    text = "\n".join(found(results).problems)
    assert "recipe.json is that of plain20" in text and "summary.json names recipe" in text


def test_unfinished_dead_and_equal_runs_are_warnings(results, fast):
    recipe = figure1(QUICK, "cifar10", 2)[0]
    write_run(results / "quick" / "runs", recipe.replace(seed=7), stop_at=20)
    first, second, *_ = runs_of(results)
    change_summary(first, message="dead: test error at chance level to the end")
    write_run(results / "quick" / "runs", second.recipe, error=first.summary()["test_error"])
    (results / "README.md").unlink()
    (results.parent / "README.md").unlink()
    findings = found(results)
    assert not findings.problems
    text = "\n".join(findings.warnings)
    assert "s7" in text and "not finished" in text and "dead" in text and "all 2 seeds of plain20" in text


def test_an_edited_table_and_an_edited_figure(results):
    table, figure = results / "quick/tables/cifar10.csv", results / "quick/figures/figure1.png"
    table.write_text(table.read_text().replace("22.50", "12.50"))
    with Image.open(figure) as image:
        image = image.convert("RGBA")
    image.putpixel((5, 5), (255, 0, 0, 255))
    image.save(figure)
    (results / "quick/figures/depth.pdf").write_bytes(b"%PDF-1.4")
    (results / "quick/tables/claims.md").unlink()
    (results / "quick/figures/figure4.png").write_bytes(b"")  # no runs on ImageNet
    findings = found(results)
    text = "\n".join(findings.problems)
    assert len(findings.problems) == 5 and "README.md of the results is old on quick" in text  # names other files
    assert "tables/cifar10.csv is not what the records give" in text and "of the pixels differ" in text
    assert "figures/depth.pdf is not what" in text and "figures/figure4.png has no records behind it" in text
    assert any("but not there: " in w and "tables/claims" in w for w in findings.warnings)
    (results / "quick/figures/figure4.png").unlink()
    assert main(["verify", str(results), "--redraw"]) == 0


def test_a_png_encoded_otherwise_is_compared_by_pixels(results, figure):
    path = results / "quick/figures/figure1.png"
    with Image.open(path) as image:
        image.load()
    image.save(path, compress_level=1)
    findings = found(results)
    assert not findings.problems and any("its pixels are those" in note for note in findings.notes)


def test_another_matplotlib_is_a_warning_while_little_differs(results, figure):
    folder = results / "quick/figures"
    pdf = folder / "figure1.pdf"
    pdf.write_bytes(b"%PDF-1.4 Matplotlib v3.0.1, https://matplotlib.org")
    with Image.open(folder / "figure1.png") as image:
        image = image.convert("RGBA")
    image.putpixel((5, 5), (255, 0, 0, 255))
    image.save(folder / "figure1.png")
    findings = found(results)
    assert not findings.problems
    assert sum("drawn with matplotlib 3.0.1" in w for w in findings.warnings) == 2
    Image.new("RGB", image.size).save(folder / "figure1.png")
    assert "of the pixels differ" in only(found(results))


def test_a_damaged_record_is_named_and_the_rest_is_drawn(results, figure):
    runs_of(results)[0].summary_file.write_text("{")
    text = "\n".join(found(results).problems)
    assert "plain20-cifar10-s0" in text and "summary.json cannot be read" in text
    assert "figures/figure1.png is not what the records give" in text


def test_what_cannot_be_drawn_does_not_hide_the_rest(results, figure, monkeypatch):
    monkeypatch.setitem(artefacts.ARTEFACTS, "figure7", artefacts.figure7)
    (results / "quick" / "measurements").mkdir()
    (results / "quick" / "measurements" / "figure7.csv").write_text("nothing\n1\n")
    findings = found(results)
    assert "figure7 cannot be drawn from the records" in only(findings) and findings.files == 2


def test_a_run_with_uncommitted_changes_is_a_warning(results, fast):
    change_summary(runs_of(results)[0], dirty=True)
    for folder in (results, results.parent):
        (folder / "README.md").unlink()
    findings = found(results)
    assert not findings.problems
    assert "trained with uncommitted changes to cccccccccccc" in "\n".join(findings.warnings)


def test_an_edited_page_of_a_benchmark_and_one_that_the_index_lacks(results, fast):
    (results.parent / "README.md").unlink()
    record = next(iter(sorted((ROOT / "results" / "bench").glob("*.json"))))
    (results / "bench").mkdir()
    for path in (record, record.with_suffix(".md")):
        shutil.copy(path, results / "bench" / path.name)
    assert main(["verify", str(results), "--write-index"]) == 0
    index, page = results / "README.md", results / "bench" / record.with_suffix(".md").name
    assert f"bench/{page.name}" in index.read_text()
    page.write_text(page.read_text().replace("images/s", "images/h", 1))
    assert f"bench/{page.name} is not what bench/{record.name} gives" in only(found(results))
    assert write_pages(results) == [page] and not found(results).problems
    assert page.read_bytes() == record.with_suffix(".md").read_bytes()
    shutil.copy(record, record_2 := results / "bench" / "another.json")
    shutil.copy(page, record_2.with_suffix(".md"))
    assert "is old on the benchmarks" in only(found(results))
    record_2.write_text("{")
    assert any("another.json" in problem for problem in found(results).problems)


def test_the_results_of_this_repository():
    findings = verify.verify(ROOT / "results")
    assert not findings.problems
    # another matplotlib than theirs may be installed here, and a clone may lack old commits; nothing else
    rest = [text for text in findings.warnings if "drawn with matplotlib" not in text]
    assert not rest and findings.records > 10
