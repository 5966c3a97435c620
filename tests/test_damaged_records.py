"""One damaged record among sound ones: the others give their table, status and report, the damaged one is named."""

import json
import os

import pytest
from fake_records import change_summary, write_run

from reslib import artefacts, errors, runs, schedule_plan
from reslib.cli import main
from reslib.commands import status
from reslib.executor import execute
from reslib.presets import PRESETS
from reslib.recipe import Recipe
from reslib.record_checks import Findings, check_records
from reslib.records import load_curves, load_runs
from reslib.results_index import section
from reslib.studies import figure1

QUICK = PRESETS["quick"]


@pytest.fixture
def results(tmp_path):
    for i, recipe in enumerate(figure1(QUICK, "cifar10", 1)):
        write_run(tmp_path / "quick" / "runs", recipe, error=0.2 + i / 100)
    return tmp_path


def all_runs(results):
    return [runs.Run(results / "quick" / "runs", recipe) for recipe in figure1(QUICK, "cifar10", 1)]


def change_recipe(run, **fields):
    recipe = json.loads(run.recipe_file.read_text())
    run.recipe_file.write_text(json.dumps(recipe | fields))


def copy(run):
    other = run.path.with_name("a copy")
    other.mkdir()
    for file in run.path.iterdir():
        (other / file.name).write_bytes(file.read_bytes())


RECORD = {  # damage: what must be said of it
    "truncated summary": (lambda run: run.summary_file.write_text('{"status": '), "summary.json cannot be read"),
    "empty summary": (lambda run: run.summary_file.write_text(""), "summary.json cannot be read"),
    "bytes": (lambda run: run.summary_file.write_bytes(b"\xff\x00"), "summary.json cannot be read"),
    "brackets": (lambda run: run.summary_file.write_text("[" * 100_000), "summary.json cannot be read"),
    "digits": (lambda run: run.summary_file.write_text('{"a": ' + "1" * 5000 + "}"), "summary.json cannot be read"),
    "a list": (lambda run: run.summary_file.write_text("[]"), "does not hold a JSON object"),
    "text for a number": (lambda run: change_summary(run, test_error="low"), "test_error 'low' is not a number"),
    "NaN": (lambda run: run.summary_file.write_text(
        run.summary_file.read_text().replace('"test_error": 0.2', '"test_error": NaN')
    ), "test_error nan is not a fraction"),
    "above 1": (lambda run: change_summary(run, train_error=20.5), "train_error 20.5 is not a fraction from 0 to 1"),
    "no error": (lambda run: change_summary(run, test_error=None), "finished without a test_error"),
    "other recipe": (lambda run: change_summary(run, recipe_hash="00000000"), "recorded for recipe 00000000"),
    "status": (lambda run: change_summary(run, status="perfect"), "status 'perfect' is unknown"),
    "unknown field": (lambda run: change_recipe(run, learning_rate=0.2), "recipe field 'learning_rate' is unknown"),
    "other field": (lambda run: change_recipe(run, lr=0.2), "holds the record of plain20"),
    "truncated recipe": (lambda run: run.recipe_file.write_text("{"), "recipe.json cannot be read"),
    "no recipe": (lambda run: run.recipe_file.unlink(), "recipe.json is missing"),
}  # fmt: skip


@pytest.mark.parametrize("damage", RECORD)
def test_the_others_are_read_and_the_damaged_one_is_named(results, damage):
    first, *others = all_runs(results)
    RECORD[damage][0](first)
    said = []
    frame = load_runs(results / "quick" / "runs", said.append)
    assert sorted(frame.run) == sorted(run.path.name for run in others)
    assert set(load_curves(frame).run) == set(frame.run)
    (line,) = said
    assert line.startswith("DAMAGED RECORD, left out: ") and str(first.path) in line and RECORD[damage][1] in line
    assert "\n" not in line


def test_a_copy_of_a_record_does_not_count_twice(results):
    copy(all_runs(results)[0])
    said = []
    assert load_runs(results / "quick" / "runs", said.append).run.is_unique
    assert "a copy holds the record of plain20" in said[0] and len(said) == 1


CURVE = {
    "half": lambda run: run.metrics_file.write_bytes(run.metrics_file.read_bytes()[:-20]),
    "one digit": lambda run: run.metrics_file.write_text(run.metrics_file.read_text().replace("1.5", "1.4", 1)),
    "bytes": lambda run: run.metrics_file.write_bytes(b"\xff\xfe"),
    "empty": lambda run: run.metrics_file.write_text(""),
    "text": lambda run: run.metrics_file.write_text("iteration,error\n1,small\n"),
}


@pytest.mark.parametrize("damage", CURVE)
def test_a_damaged_curve_is_left_out_and_named(results, damage):
    first, *others = all_runs(results)
    CURVE[damage](first)
    said = []
    curves = load_curves(load_runs(results / "quick" / "runs"), said.append)
    assert set(curves.run) == {run.path.name for run in others}
    assert len(said) == 1 and "DAMAGED CURVE, left out: " in said[0] and str(first.metrics_file) in said[0]


def test_a_curve_of_a_run_that_has_not_ended_must_be_a_table(tmp_path):
    recipe = figure1(QUICK, "cifar10", 1)[0]
    run = write_run(tmp_path, recipe, stop_at=recipe.eval_every)
    run.metrics_file.write_text(run.metrics_file.read_text().replace(",1.5,", ",,,"))
    said = []
    assert load_curves(load_runs(tmp_path), said.append).empty
    assert "is not a table of iteration, epoch" in said[0]


def test_table_status_report_and_index_of_the_rest(results, capsys, monkeypatch):
    monkeypatch.setattr(errors, "_told", set())
    monkeypatch.setattr(artefacts, "ARTEFACTS", {n: artefacts.ARTEFACTS[n] for n in ("figure1", "cifar10")})
    first, *others = all_runs(results)
    first.summary_file.write_text("{")
    monkeypatch.setenv("RESLIB_DOWNLOAD", "off")
    arguments = ["--results", str(results)]
    assert main(["verify", *arguments, "--redraw"]) == 1
    out, err = capsys.readouterr()
    assert err.count("DAMAGED RECORD") == 1 and str(first.path) in err  # once, though many figures read the records
    assert str(first.summary_file) in out and "1 problem," in out
    assert (results / "quick/figures/figure1.png").exists()
    table = (results / "quick/tables/cifar10.csv").read_text()
    assert "ResNet-20" in table and "trained here" in table
    text = "\n".join(status.report([run.recipe for run in [first, *others]], QUICK, results))
    assert "3 done" in text and "1 damaged" in text and f"DAMAGED: {first.path}" in text
    assert main(["report", *arguments]) == 1
    assert str(first.path) in capsys.readouterr().out
    page = (results / "report.html").read_text()
    assert first.summary_file.name in page and others[0].path.name in page
    assert "DAMAGED RECORD" in section(results / "quick")


def test_a_sound_folder_says_nothing(results, capsys):
    said = []
    frame = load_runs(results / "quick" / "runs", said.append)
    (results / "quick" / "runs" / "notes").mkdir()
    load_curves(load_runs(results / "quick" / "runs", said.append), said.append)
    assert len(frame) == 4 and not said and capsys.readouterr().err == ""


def test_a_run_that_has_not_ended_and_is_damaged_is_not_interrupted(results):
    run = write_run(results / "quick" / "runs", figure1(QUICK, "cifar10", 2)[1], stop_at=20)
    assert "interrupted" in "\n".join(status.report([run.recipe], QUICK, results))
    os.truncate(run.recipe_file, 10)
    assert "1 damaged" in "\n".join(status.report([run.recipe], QUICK, results))


@pytest.mark.parametrize("damage", ["altered", "missing", "half"])
def test_an_ended_run_whose_recipe_is_not_its_own_is_not_taken(damage, tmp_path, capsys):
    arguments = ["train", "resnet8", "--preset=smoke", "--device=cpu", f"--results={tmp_path}"]
    with pytest.MonkeyPatch.context() as patch:
        asked = []
        patch.setattr("reslib.commands.train.train", lambda recipe, *rest: asked.append(recipe) or 1 / 0)
        main(arguments)
    run = write_run(tmp_path / "smoke" / "runs", asked[0])
    capsys.readouterr()
    assert main(arguments) == 0 and "nothing is trained" in capsys.readouterr().out
    text = run.recipe_file.read_text()
    if damage == "missing":
        run.recipe_file.unlink()
    else:
        run.recipe_file.write_text(
            text[: len(text) // 2] if damage == "half" else text.replace("pixel-mean", "channel-mean")
        )
    assert main(arguments) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(run.path) in line
    assert {"altered": "move it away", "missing": "No such file", "half": "recipe.json cannot be read"}[damage] in line
    said = []
    (failure,) = execute([run.recipe], run.path.parent, say=said.append)  # a batch names it too
    assert failure.startswith(f"{run.recipe.run_name} failed: ") and str(run.path) in failure


def test_any_value_anywhere_in_a_record_is_told_and_stops_nothing(tmp_path):
    """Text, lists, nothing, huge numbers where others belong: a finding or a line, never an error of another kind."""
    run = write_run(tmp_path / "smoke" / "runs", Recipe(dataset="synthetic", iterations=500))
    summary, recipe = run.summary(), run.recipe.to_dict()
    for file, whole in ((run.summary_file, summary), (run.recipe_file, recipe)):
        for key in whole:
            for value in (None, "x", -1, 1e400, True, [], {"a": 1}, 10**400):
                file.write_text(json.dumps(whole | {key: value}))
                said, findings = [], Findings()
                load_curves(load_runs(run.path.parent, said.append), said.append)
                check_records(tmp_path / "smoke", findings)
                schedule_plan.state_of(run)
                if file == run.recipe_file and value != whole[key]:
                    assert said and findings.problems, (key, value)
        file.write_text(json.dumps(whole))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a,b\n1\n2,3,4\n", b"\0\0"])
def test_a_damaged_measurement_or_table_is_named(content, tmp_path, capsys):
    write_run(tmp_path / "smoke" / "runs", Recipe(dataset="synthetic", iterations=500))
    for name in ("measurements/figure7.csv", "tables/mine.csv"):
        file = tmp_path / "smoke" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        code, said = main(["report", "--results", str(tmp_path)]), capsys.readouterr()
        told = said.err or said.out  # of a measurement beside the page, which is made without it
        assert (code == 1 and told.count(f"{file} cannot be read") == 1) or content == b"\0\0"
        assert said.err.count("\n") <= 1
        assert main(["verify", str(tmp_path)]) in (0, 1) and not capsys.readouterr().err
        file.unlink()
