"""Any text in any field: either the recipe holds its value, or exit code 2 and one line that names field and value."""

import contextlib
import io
import math
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reslib import networks
from reslib.cli import main
from reslib.commands import train as command
from reslib.errors import UserError
from reslib.recipe import field_types, parse_field

FIELDS = sorted(set(field_types()) - {"model"})
texts = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["", " ", "true", "nan", "-inf", "1e999", "0x10", "1_0", "٣", "0.5,0.25", "a=1", "=", "a", "--lr", "A\n", "[]"]
    ),
    st.lists(st.floats(), max_size=3).map(lambda v: ",".join(map(str, v))),
)


def run(arguments, model=None):
    """Exit code, recipes that would have been trained, and what was said on standard error.

    model: ["--", name] builds that network's layers for real; without, networks are not built.
    """
    asked, errors = [], io.StringIO()

    def instead(recipe, *rest, **more):
        asked.append(recipe)
        return {"status": "finished", "test_error": 0.5, "message": ""}

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setattr(command, "train", instead)
        if not model:
            patch.setattr(networks, "build_model", lambda *a, **o: None)  # networks have tests of their own
        with contextlib.redirect_stdout(io.StringIO()):
            code = main(["train", "--preset=smoke", "--device=cpu", *arguments, *(model or ["resnet8"])])
    return code, asked, errors.getvalue()


IMPOSSIBLE = {  # together with the data or other runs, found before anything is recorded: what must be said
    "--train-size=1000000": "train_size 1000000",
    "--val-size=100000": "val_size 100000",
    "--test-size=100000000": "test_size 100000000 is more than the 2000 test images",
    "--crop-size=64": "crop_size 64 does not suit synthetic: allowed is 32",
    "--crop-size=8": "crop_size 8 does not suit synthetic: allowed is 32",
    "--augmentation=scale-crop-flip-color": "augmentation 'scale-crop-flip-color' is that of ImageNet: allowed",
    "--teacher=nobody": "teacher 'nobody' cannot be used",
    "--model-that-is-not": "--model-that-is-not",
}


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_what_the_data_do_not_allow_is_never_half_trained(option, tmp_path, capsys):
    arguments = ["train", "own_models:Small", "--preset=smoke", "--device=cpu", "--deterministic"]
    told_by_data = option.startswith(("--train-size", "--val-size", "--test-size", "--teacher"))  # once they are read
    assert main([*arguments, f"--results={tmp_path}", option]) == (1 if told_by_data else 2)
    error = capsys.readouterr().err
    assert error.startswith("reslib: ") and error.count("\n") == 1 and IMPOSSIBLE[option] in error
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example("resnet21")
@example("resnet")
@example("os:mkdir")
@example("a.b:")
@example("plain99999999999999999999")
@example("resnet1202000000002")
@given(st.one_of(st.text(max_size=20), st.from_regex(r"\A(resnet|plain|nin|dsn|maxout)[0-9]{0,6}\Z")))
def test_any_text_as_the_model(text):
    code, asked, errors = run([], model=["--", text])
    if code == 0:
        assert asked[0].model == text and not errors
        return
    assert code == 2 and not asked
    assert errors.startswith("reslib: ") and errors.count("\n") == 1
    assert "model" in errors, errors


OPTIONS = (
    "preset",
    "device",
    "time-limit",
    "checkpoint-every",
    "data-root",
    "results",
)  # of `reslib train`, beside fields
WORDS = r"allowed (is|are)|must be|of the form|is not a folder|cannot be a folder|do not suit"  # they say what may be


def refused(code, errors, *names):
    """Whether this was refused as misuse: exit code 2, one line that has all of these and says what is allowed."""
    one_line = errors.startswith("reslib: ") and errors.count("\n") == 1 and errors.endswith("\n")
    return code == 2 and one_line and bool(re.search(WORDS, errors)) and all(name in errors for name in names)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(OPTIONS), texts)
def test_any_text_in_any_option_of_execution(option, text):
    code, asked, errors = run([f"--{option}={text}"])
    assert (code == 0 and asked) or (not asked and refused(code, errors, option.replace("-", "")[:4])), (code, errors)


@pytest.mark.parametrize("name", FIELDS)
def test_what_no_field_can_be(name, tmp_path):
    """Wrong types, signs and sizes of every field, with nothing replaced: no run folder is made."""
    for text in WRONG_FOR.get(name, WRONG):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            code = main(
                ["train", "resnet8", "--preset=smoke", f"--results={tmp_path}", f"--{name.replace('_', '-')}={text}"]
            )
        assert refused(code, errors.getvalue(), name), (text, code, errors.getvalue())
        assert not list(tmp_path.iterdir())
    for wrong in (f"--{name.replace('_', '-')}x=1", f"--{name[:-1]}".replace("_", "-") + "=1"):  # misspelled
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            code = main(["train", "resnet8", "--preset=smoke", f"--results={tmp_path}", wrong])
        assert code == 2 and errors.getvalue().startswith(f"reslib: unrecognized arguments: {wrong}; did you mean --")


WRONG = ("banana", "-1", "nan", "-inf", "1e400", "9" * 30, "[1]", "0.5;0.2", "1,x", "\n")
WRONG_FOR = {  # text is right for these, but not any; no numbers at all are numbers too
    "lr_drops": WRONG[:-1],
    "options": ("a", "a=", "=1", "a=1,a=2", "num_classes=3", "teacher=x", "x" * 201, "a=\n"),
    "teacher": ("../x", "a/b", ".hidden", "a\\b", "\n", "x" * 201),
}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FIELDS), texts)
@example("crop_size", "10")
def test_any_text_in_any_field(name, text):
    code, asked, errors = run([f"--{name.replace('_', '-')}={text}"])
    if code == 0:
        assert asked and not errors
        value = getattr(asked[0], name)
        assert value == parse_field(name, text)
        numbers = value if isinstance(value, tuple) else [value]
        assert all(math.isfinite(v) for v in numbers if isinstance(v, float))
        return
    assert not asked and refused(code, errors, name), errors
    shown = {" ".join(repr(text).split())}
    try:
        value = parse_field(name, text)
        shown |= {repr(value), repr(list(value)) if isinstance(value, tuple) else str(value)}
        shown |= {repr(part.strip()) for part in text.split(",")} if name == "options" else set()
    except UserError:
        pass
    assert any(" ".join(s.split()) in errors for s in shown), (errors, shown)
