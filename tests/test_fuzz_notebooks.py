"""Any value for any notebook parameter, as papermill injects it: it is taken, or one line names parameter and value.

The cells are those of the real notebooks, up to the one that opens the study; papermill writes the injected cell. They
are executed here and not in a kernel, so that hundreds of values take seconds.
"""

import contextlib
import datetime
import io
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reslib import injected
from reslib.errors import UserError
from reslib.presets import FIXED
from reslib.recipe import field_types, parse_field
from reslib.runs import results_root

pytest.importorskip("papermill")
from papermill.cli import _resolve_type  # noqa: E402
from papermill.iorw import load_notebook_node  # noqa: E402
from papermill.parameterize import parameterize_notebook  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {path.stem: load_notebook_node(str(path)) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
OPENS = ("open_study(", "open_folder(")


def parameters_of(notebook) -> dict[str, str]:
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    return injected.annotated(cell.source)


CASES = [(name, parameter) for name, nb in NOTEBOOKS.items() for parameter in parameters_of(nb)]
USED_LATER = ("ensemble",)  # of imagenet_tables, looked at where the networks are evaluated


def opened(name: str, **parameters) -> dict:
    """The notebook's variables after it has opened its study with these parameters."""
    notebook = parameterize_notebook(NOTEBOOKS[name], {"preset": "smoke", **parameters})
    space, texts = {}, []
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setenv("RESLIB_DOWNLOAD", "off")
        patch.setattr(injected, "executed", lambda: (texts, space))
        for cell in notebook.cells:
            if cell.cell_type != "code":
                continue
            at_last = any(call in cell.source for call in OPENS)
            source = "\n".join(line for line in cell.source.splitlines() if not line.endswith(".describe()"))
            texts.append(cell.source)
            exec(compile(source, name, "exec"), space)
            if at_last:
                return space
    raise AssertionError(f"{name} opens neither a study nor a folder")


def refusal(name: str, **parameters) -> str:
    with pytest.raises(UserError) as caught:
        opened(name, **parameters)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 2000
    return line


yaml_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=30),
    st.text(max_size=12).map(_resolve_type),  # as `papermill -p` reads the command line
    st.sampled_from(["1e-1", "", " ", "~nobody", "a\0b", "no/such", "x" * 5000, "\ud800", "3", "nan", "cuda:99", "a:"]),
    st.sampled_from([-1, 1001, 10**400, float("nan"), float("inf"), datetime.date(2026, 1, 1)]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(("cifar10_table", "seeds"), "1e-1")
@example(("cifar10_table", "seeds"), True)
@example(("architecture", "seeds"), -1)
@example(("explore", "data_root"), "/no/such/folder")
@given(st.sampled_from(CASES), yaml_values)
def test_any_value_of_any_parameter(case, value):
    name, parameter = case
    kind = parameters_of(NOTEBOOKS[name])[parameter]
    try:
        space = opened(name, **{parameter: value})
    except UserError as error:
        line = str(error)
        assert "\n" not in line and len(line) < 2000
        assert parameter.rstrip("s") in line, line
        assert "allowed" in line or "not a folder" in line or "cannot be" in line or "is not here" in line, line
        return
    except UnicodeEncodeError:  # a lone surrogate is no text: papermill cannot write it, and Python cannot compile it
        assert isinstance(value, (str, dict)) and any("\ud800" <= c <= "\udfff" for c in str(value))
        return
    assert type(space[parameter]).__name__ == kind
    if parameter not in USED_LATER:
        taken = str(value) if isinstance(value, datetime.date) else value  # papermill writes dates as text
        assert space[parameter] == taken


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example("lr", "1e-1")
@example("iterations", "1e3")
@example("lr", "nan")
@example("batch_size", "0")
@example("padding", "../../x")
@example("augmentation", "0\n0")
@given(st.sampled_from(sorted(field_types())), st.text(max_size=12) | st.sampled_from(["-1", "1e400", "true", "0.5,2"]))
def test_any_value_of_any_recipe_field(field, text):
    try:
        space = opened("figure1", preset=f"smoke+{field}={text}")
    except UserError as error:
        line = str(error)
        assert "\n" not in line and len(line) < 2000
        assert field in line or "recipe field" in line or "field=value" in line, line
        assert re.search(r"allowed (is|are)|must be|of the form", line), line
        return
    except UnicodeEncodeError:
        return
    recipes = space["study"].recipes
    first = text.partition(",")[0] if not isinstance(getattr(recipes[0], field), tuple) else text
    assert {getattr(r, field) for r in recipes} == {parse_field(field, first.strip())}
    assert space["study"].folder.parent == results_root()  # no value leads out of it


@pytest.mark.parametrize("field", sorted(field_types()))
def test_what_no_recipe_field_can_be(field, tmp_path):
    """Wrong types, signs and sizes, as papermill injects them: refused before a run folder is made."""
    texts = {"teacher": ("../x", ".hidden"), "options": ("a", "a="), "model": ("resnet20",)}
    for text in texts.get(field, ("banana", "-1", "nan", "inf", "1e400", "9" * 30, "[1]", "True;")):
        line = refusal("figure1", preset=f"smoke+{field}={text}", results=str(tmp_path))
        assert field in line and re.search(r"allowed (is|are)|must be|of the form", line), line
    if field not in FIXED:
        assert "did you mean" in refusal("figure1", preset=f"smoke+{field}x=1", results=str(tmp_path))
    assert not list(tmp_path.iterdir())


INJECTIONS = [
    '"; open({0!r}, "w"); "',
    "'); open({0!r}, 'w'); ('",
    '"\nopen({0!r}, "w")\n"',
    "\nopen({0!r}, 'w')",
    '\\"; open({0!r}, "w") #',
    '"""; open({0!r}, "w"); """',
    "{{open({0!r}, 'w')}}",
    "$(touch {0})",
    "`touch {0}`",
    "!touch {0}",
    "%system touch {0}",
    "\r\nopen({0!r}, 'w')\r\n",
    "\u2028open({0!r}, 'w')",
]


@pytest.mark.parametrize(
    "case", [c for c in CASES if c[0] in ("cifar10_table", "architecture", "imagenet_tables")], ids="-".join
)
def test_a_parameter_is_never_code(case, tmp_path):
    name, parameter = case
    proof = tmp_path / "executed"
    for form in INJECTIONS:
        text = form.format(str(proof))
        for value in (text, [text], {text: text}):
            with contextlib.suppress(UserError):
                opened(name, **{parameter: value})
            assert not proof.exists(), value
    exec(INJECTIONS[3].format(str(proof)))  # the trap works
    assert proof.exists()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_unknown_and_misspelled_parameters(name):
    line = refusal(name, sedes=3)
    assert "notebook parameter 'sedes' is unknown: allowed are preset" in line and "did you mean 'seeds'" in line
    assert "'lr' is unknown" in refusal(name, lr=0.1)


def test_outside_a_notebook_nothing_is_checked():
    injected.check_injected()
    assert injected.executed() == ([], {})


def test_cells_without_injected_parameters(monkeypatch):
    cells = ["%matplotlib inline", "preset: str = 'auto'  # help", "preset = 3"]
    monkeypatch.setattr(injected, "executed", lambda: (cells, {"preset": 3}))
    injected.check_injected()  # the reader's own assignment; what it is used for is checked there
    cells.append("# Parameters\npreset = 3\n")
    with pytest.raises(UserError, match="preset 3 is of type int: allowed is str"):
        injected.check_injected()


def test_every_notebook_has_its_parameters_fuzzed():
    assert len(NOTEBOOKS) >= 10 and {p for _, p in CASES} >= {
        "preset",
        "data_root",
        "results",
        "seeds",
        "device",
        "models",
    }
