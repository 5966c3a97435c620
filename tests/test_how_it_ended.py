"""How a command ends: exit codes, one line for each failure, what is said of runs that ended badly."""

import pytest
from fake_records import change_summary, write_run
from one_line import one_line

from reslib.cli import main
from reslib.commands import reproduce
from reslib.commands import train as command
from reslib.recipe import Recipe
from reslib.stopping import Interrupted


def test_failures_give_one_line_and_code_one(tmp_path, capsys):
    base = ["train", "own_models:Small", "--preset=smoke", "--device=cpu", f"--results={tmp_path}"]
    assert main([*base, "--train-size=1000000"]) == 1
    assert "train_size 1000000" in one_line(capsys)
    assert main([*base, "--teacher=nobody"]) == 1
    assert "nobody" in one_line(capsys)
    (tmp_path / "file").write_text("")
    assert main([*base, f"--results={tmp_path / 'file'}"]) == 1
    assert "cannot write to" in one_line(capsys)


def test_traceback_on_request(tmp_path):
    base = [
        "train",
        "own_models:Small",
        "--preset=smoke",
        "--device=cpu",
        f"--results={tmp_path}",
        "--train-size=1000000",
    ]
    for arguments in (["--traceback", *base], [*base, "--traceback"]):
        with pytest.raises(ValueError, match="train_size"):
            main(arguments)


@pytest.mark.parametrize(
    "error", [RuntimeError("first\nsecond"), KeyError("x"), KeyboardInterrupt(), OSError(28, "full")]
)
def test_errors_that_nobody_foresaw(monkeypatch, capsys, error):
    def broken(*arguments, **more):
        raise error

    monkeypatch.setattr(command, "train", broken)
    code = 75 if isinstance(error, KeyboardInterrupt) else 1
    assert main(["train", "resnet8", "--preset=smoke", "--device=cpu"]) == code
    line = one_line(capsys)
    if isinstance(error, RuntimeError):
        assert "RuntimeError: first second (test_how_it_ended.py:" in line
    if isinstance(error, KeyboardInterrupt):
        assert "interrupted; the same command continues" in line


def test_trained_diverged_and_dead(tmp_path, capsys):
    base = ["--preset=smoke", "--device=cpu", f"--results={tmp_path}", "--precision=fp32"]
    assert main(["train", "own_models:Small", *base]) == 0
    assert "test error" in capsys.readouterr().out.splitlines()[-1]
    assert main(["train", "own_models:NaNAfter", *base]) == 1
    assert "diverged: the loss of iteration 5 is not finite" in capsys.readouterr().out.splitlines()[-1]
    assert main(["train", "own_models:NaNAfter", *base]) == 1  # not trained again, not forgotten


@pytest.mark.parametrize("launcher, code", [("", 75), ("TORCHELASTIC_RUN_ID", 0)])
def test_exit_code_of_a_training_that_goes_on_later(monkeypatch, capsys, launcher, code):
    """torchrun would start the job again, with a whole time limit, for anything but 0."""

    def stopped(*arguments, **more):
        raise Interrupted("time limit of 1 s reached; checkpoint at iteration 3 of 9; the same command continues")

    monkeypatch.setattr(command, "train", stopped)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launcher:
        monkeypatch.setenv(launcher, "1")
    assert main(["train", "resnet8", "--preset=smoke", "--device=cpu"]) == code
    assert capsys.readouterr().err == (
        "reslib: time limit of 1 s reached; checkpoint at iteration 3 of 9; the same command continues\n"
    )


def test_an_imagenet_net_on_small_images_is_named(tmp_path, capsys):
    command = ["train", "resnet18", "--dataset=synthetic", "--preset=smoke", "--device=cpu", f"--results={tmp_path}"]
    assert main([*command, "--iterations=1", "--eval-every=1", "--test-size=20"]) == 0
    assert "note: resnet18 is a network for ImageNet" in capsys.readouterr().out
    assert main(["train", "resnet20", "--preset=smoke", "--batch-size=65536", f"--results={tmp_path}"]) == 1
    assert "batch_size 65536 is more than the 256 images to train on" in capsys.readouterr().err
    assert main(["train", "resnet20", "--preset=smoke+batch-size=8", "--iterations=x"]) == 2  # as options are written
    assert "iterations" in capsys.readouterr().err


def test_diverged_runs_are_named_at_the_end_of_reproduce(tmp_path):
    recipes = [Recipe("resnet20", seed=seed) for seed in range(3)]
    write_run(tmp_path, recipes[0])
    change_summary(write_run(tmp_path, recipes[1]), status="diverged", message="the loss of iteration 5 is not finite")
    (line,) = reproduce.diverged(recipes, tmp_path)
    assert line.startswith(recipes[1].run_name) and "the loss of iteration 5 is not finite; it is not trained" in line
    (tmp_path / recipes[0].run_name / "summary.json").write_text("{")
    assert reproduce.diverged(recipes, tmp_path) == [line]
