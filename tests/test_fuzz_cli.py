"""Any text in any field: either the recipe holds its value, or exit code 2 and one line that names field and value."""

import contextlib
import io
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def run(arguments):
    asked, errors = [], io.StringIO()

    def instead(recipe, *rest, **more):
        asked.append(recipe)
        return {"status": "finished", "test_error": 0.5, "message": ""}

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setattr(command, "train", instead)
        patch.setattr(command, "build_model", lambda *a, **o: None)  # networks have tests of their own
        with contextlib.redirect_stdout(io.StringIO()):
            code = main(["train", "resnet8", "--preset=smoke", "--device=cpu", *arguments])
    return code, asked, errors.getvalue()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FIELDS), texts)
def test_any_text_in_any_field(name, text):
    code, asked, errors = run([f"--{name.replace('_', '-')}={text}"])
    if code == 0:
        assert asked and not errors
        value = getattr(asked[0], name)
        assert value == parse_field(name, text)
        numbers = value if isinstance(value, tuple) else [value]
        assert all(math.isfinite(v) for v in numbers if isinstance(v, float))
        return
    assert code == 2 and not asked
    assert errors.startswith("reslib: ") and errors.count("\n") == 1 and errors.endswith("\n")
    assert name in errors
    shown = {" ".join(repr(text).split())}
    try:
        value = parse_field(name, text)
        shown |= {repr(value), repr(list(value)) if isinstance(value, tuple) else str(value)}
        shown |= {repr(part.strip()) for part in text.split(",")} if name == "options" else set()
    except UserError:
        pass
    assert any(" ".join(s.split()) in errors for s in shown), (errors, shown)
