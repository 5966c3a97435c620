"""Every option of every command but `train` (test_fuzz_cli.py): wrong types, signs, sizes, spellings are one line."""

import contextlib
import io
import re

import pytest

from reslib import bench, equivalence, notebooks
from reslib.cli import COMMANDS, main
from reslib.commands import reproduce, status

NUMBER = ("x", "-1", "nan", "inf", "-inf", "1e400", "", " ", "9" * 30, "9" * 5000, "1;2", "\n", "0x10")
WHOLE = (*NUMBER, "1.5")
LIST = ("x", "-1", "0", "nan", "inf", "1e400", "1.5", "1,,x", "9" * 30)
NAME = ("x", "-1", "0", "nan", "", " ", "[]", "9" * 30, "a\nb", "é±")
DURATION = ("x", "-1", "nan", "inf", "1e400", "", " ", "5 minutes", "\n")
FOLDER = ("x", "-1", "nan", " ", "~nobody-of-this-name", "a\0b", "9" * 5000)
PATH = ("~nobody-of-this-name/x", "a\0b", "9" * 5000)
MODELS = ("x", "-1", "resnet21", "os:mkdir", "9" * 30, "a\nb")
PRESET = (*NAME, "smoke+", "smoke+lr", "smoke+lr=x", "smoke+lr=nan", "smoke+sed=1", "quick+lr=1,lr=2")
COMMON = {"data-root": FOLDER, "results": PATH}
EXECUTION = {"device": (*NAME, "cuda:x", "cuda:999"), "time-limit": DURATION, "checkpoint-every": DURATION}
WRONG = {  # command: option ("": the argument without a name): texts that it cannot have
    "reproduce": COMMON | EXECUTION | {
        "": ("x", "-0", "nan", " ", "figur1"), "preset": PRESET, "seeds": WHOLE, "workers": WHOLE, "executor": NAME,
        "gpus-per-run": (*NUMBER, "0", "2"), "models": MODELS,
    },
    "status": COMMON | {"preset": PRESET, "seeds": WHOLE, "gpus": WHOLE, "speed": ("x", "resnet20", "resnet20=", "x=1",
        "resnet20=nan", "resnet20=inf", "resnet20=-1", "resnet20=0", "=1")},
    "bench": COMMON | {
        "models": MODELS, "batch-sizes": (*LIST, "", ","), "devices": NAME[:6], "contenders": NAME[:6], "dataset": NAME,
        "rounds": (*WHOLE, "0"), "seconds": (*NUMBER, "0"), "workers": WHOLE, "depths": LIST, "batches": LIST,
        "widths": LIST, "seeds-at-once": WHOLE, "seed-models": MODELS, "loader-model": MODELS, "loader-dataset": NAME,
        "loader-steps": (*WHOLE, "0"), "loader-preset": PRESET,
    },
    "equivalence": COMMON | EXECUTION | {
        "model": MODELS, "seeds": (*WHOLE, "0"), "dataset": NAME[:4], "fast": NAME, "preset": PRESET,
        "apart": ("-1", "0", "", " ", "[]", "9" * 30, "a" * 41, "a\nb", "é±", "A", "a/b", "..", "runs"),
    },
    "report": {"results": PATH, "preset": NAME[:4], "out": PATH},
    "verify": {"": PATH, "results": PATH, "preset": [p for p in PRESET if p]},
    "evaluate": COMMON | {
        "preset": PRESET, "device": EXECUTION["device"], "weights": ("x", *FOLDER), "ensemble": ("", " ", ",,,"),
    },
    "data": {"": NAME, "data-root": FOLDER},
    "list": {"": [n for n in NAME if n]},
}  # fmt: skip
ALLOWED = (
    r"allowed (is|are)|choose from|must be|of the form|is not a folder|cannot be a folder|invalid choice|are visible"
)


def test_every_command_is_here():
    assert set(WRONG) == set(COMMANDS) - {"train"}


@pytest.fixture
def idle(monkeypatch):
    """Nothing is trained, measured or executed; a call that gets so far is recorded."""
    reached = []
    for owner, name, result in (
        (reproduce, "execute", []),
        (notebooks, "run_notebooks", 0),
        (bench, "measure", {}),
        (status, "report", []),
        (equivalence, "train", None),
    ):
        monkeypatch.setattr(owner, name, lambda *a, owner=owner, result=result, **k: reached.append(owner) or result)
    for owner in (reproduce, status):
        monkeypatch.setattr(
            owner, "datasets_of", lambda *a, **k: {"cifar": "synthetic", "imagenet": "synthetic-imagenet"}
        )
    return reached


CASES = [(command, option) for command, options in WRONG.items() for option in options]


@pytest.mark.parametrize(("command", "option"), CASES)
def test_what_an_option_cannot_be(command, option, idle, tmp_path):
    for text in WRONG[command][option]:
        arguments = [command, f"--{option}={text}"] if option else [command, "--", text]
        if command in ("reproduce", "status", "equivalence") and option != "preset":
            arguments.insert(1, "--preset=smoke")
        if (command, option) == ("reproduce", "models"):
            arguments.insert(1, "--runs-only")  # without which it is refused whatever it says
        if option not in ("results", "") and "results" in WRONG[command]:
            arguments.insert(1, f"--results={tmp_path}")
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
            code = main(arguments)
        line = errors.getvalue()
        assert code == 2, (text, code, line)
        assert line.startswith("reslib: ") and line.count("\n") == 1 and len(line) < 1000, (text, line)
        assert re.search(ALLOWED, line), (text, line)
        if option and "+" not in text:  # of a changed preset the field is named
            assert option.rstrip("s").replace("-", "")[:4] in re.sub("[-_]", "", line), (text, line)
        assert not idle and not list(tmp_path.iterdir()), (text, idle)


@pytest.mark.parametrize(("command", "option"), [case for case in CASES if case[1]])
def test_a_misspelled_option(command, option, idle):
    wrong = f"--{option[:-1]}{'z' if option[-1] != 'z' else 'y'}"
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        assert main([command, f"{wrong}=1"]) == 2
    assert re.match(rf"reslib: unrecognized arguments: {wrong}=1; did you mean --[a-z-]+\?", errors.getvalue())
    assert not idle
