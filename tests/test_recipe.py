"""Recipe: the paper's values, hashes that do not move, and one clear line for everything that is wrong."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reslib.errors import UserError, choose, shown
from reslib.presets import PRESETS, cifar_recipe
from reslib.recipe import CHOICES, RANGES, Recipe, field_types, parse_field, parse_options

FIELDS = sorted(field_types())


def refused(**values) -> str:
    with pytest.raises(UserError) as caught:
        Recipe(**values)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


def test_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.iterations, recipe.batch_size, recipe.lr) == (64_000, 128, 0.1)
    assert (recipe.momentum, recipe.nesterov, recipe.weight_decay) == (0.9, False, 1e-4)
    assert [f * recipe.iterations for f in recipe.lr_drops] == [32_000, 48_000] and recipe.lr_gamma == 0.1
    assert (recipe.preprocessing, recipe.padding, recipe.crops) == ("pixel-mean", "mean", "sample")
    assert (recipe.augmentation, recipe.shortcut, recipe.val_size) == ("crop-flip", "A", 0)
    assert recipe.warmup_lr == 0 and recipe.warmup_error == 0.8
    deep = cifar_recipe("resnet110", PRESETS["paper"])
    assert deep.warmup_lr == 0.01 and deep == Recipe(model="resnet110", warmup_lr=0.01, warmup_window=391)
    assert deep.warmup_window * deep.batch_size >= 50_000 > (deep.warmup_window - 1) * deep.batch_size  # an epoch
    assert cifar_recipe("resnet56", PRESETS["paper"]) == Recipe(model="resnet56")


def test_hashes_are_pinned():
    """These digests name directories of finished runs: they may never change."""
    assert Recipe().digest == "5db3f94b"
    other = Recipe(model="resnet110", seed=3, warmup_lr=0.01, lr_drops=[0.4, 0.8], options="preactivation=true")
    assert other.digest == "da765e7a"
    assert Recipe().run_name == "resnet20-cifar10-s0-5db3f94b"


def test_hash_covers_every_field_and_nothing_else():
    changed = {"model": "nin", "options": "a=1", "teacher": "run", "lr_drops": (0.5,), "scale_range": (40, 480)}
    digests = {Recipe().digest}
    for name, kind in field_types().items():
        default = getattr(Recipe(), name)
        if name in CHOICES:
            value = next(c for c in CHOICES[name] if c != default)
        elif kind is bool:
            value = not default
        elif kind in (int, float):
            value = next(v for v in (kind(2), kind(64), 0.05, 0.5) if RANGES[name][0] <= v <= RANGES[name][1])
            value = 0.05 if name == "warmup_lr" else value
        else:
            value = changed[name]
        digests.add(Recipe(**{name: value}).digest)
    assert len(digests) == 1 + len(FIELDS)


def test_equal_values_in_other_spelling_have_one_hash():
    assert Recipe(scale_range=[64.0, 120], lr_drops=[0.5, 0.75], lr=0.1).digest == Recipe(scale_range=(64, 120)).digest
    assert Recipe(lr=1).digest == Recipe(lr=1.0).digest
    assert Recipe(dataset="cifar10").digest == Recipe().digest


def test_older_records_load_to_the_same_hash():
    recipe = Recipe(model="plain56", seed=2, val_size=5000)
    written = json.loads(json.dumps(recipe.to_dict()))
    assert Recipe.from_dict(written) == recipe
    older = {k: v for k, v in written.items() if k in ("model", "dataset", "seed", "iterations", "val_size")}
    assert Recipe.from_dict(older).digest == recipe.digest


def test_unknown_fields_are_refused_with_the_nearest_name():
    for make in (lambda: Recipe.from_dict({"iteration": 3}), lambda: Recipe().replace(iteration=3)):
        with pytest.raises(UserError, match="recipe field 'iteration' is unknown.*did you mean 'iterations'"):
            make()
    for bad in ([], None, "resnet20", {3: 4}, {None: 1}):
        with pytest.raises(UserError):
            Recipe.from_dict(bad)


def test_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().lr = 1.0


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),
    st.just(10**5000),
    st.just(-(10**5000)),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=300),
    st.binary(max_size=5),
    st.lists(st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.builds(object),
    st.builds(complex, st.floats(allow_nan=False)),
)


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(FIELDS), value=JUNK)
def test_any_value_is_accepted_or_refused_in_one_line(name, value):
    try:
        recipe = Recipe(**{name: value})
    except UserError as error:
        text = str(error)
        assert name in text and len(text) < 1000
        if not isinstance(value, (list, str)):  # lists are shown as tuples, options by their faulty part
            assert shown(value) in text or shown(float(value)) in text
    else:
        stored = getattr(recipe, name)
        assert type(stored) is field_types()[name] and len(recipe.run_name.encode()) < 200
        assert recipe.run_name.isascii() and "/" not in recipe.run_name
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))).digest == recipe.digest


@pytest.mark.parametrize("name", sorted(RANGES))
def test_numbers_out_of_range_name_field_value_and_limits(name):
    low, high = RANGES[name]
    kind = field_types()[name]
    for value in (kind(low - 1), kind(high + 1)):
        text = refused(**{name: value})
        assert text.startswith(f"{name} {value!r} is out of range: allowed is {low} to {high}")
    for value in (math.nan, math.inf, -math.inf, "0.1", None, True, [1]):
        text = refused(**{name: value})
        assert text.startswith(f"{name} {value!r}")


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_words_outside_the_choices_list_what_is_allowed(name):
    text = refused(**{name: "nonsense"})
    assert text.startswith(f"{name} 'nonsense' is unknown: allowed are ") and all(c in text for c in CHOICES[name])


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"warmup_lr": 0.2}, ("warmup_lr 0.2", "lr 0.1")),
        ({"lr_drops": (0.75, 0.5)}, ("lr_drops (0.75, 0.5)",)),
        ({"lr_drops": (0.5, 0.5)}, ("lr_drops (0.5, 0.5)",)),
        ({"lr_drops": (0.5, 1.0)}, ("lr_drops",)),
        ({"lr_drops": 0.5}, ("lr_drops 0.5",)),
        ({"lr_drops": (math.nan,)}, ("lr_drops (nan,)",)),
        ({"lr_drops": (10**400,)}, ("lr_drops",)),
        ({"scale_range": (256, 200)}, ("scale_range (256, 200)",)),
        ({"scale_range": (20, 40)}, ("scale_range (20, 40)", "crop_size 32")),
        ({"scale_range": (40.5, 50)}, ("scale_range (40.5, 50)", "whole numbers")),
        ({"batch_size": 128, "accumulation": 3}, ("accumulation 3", "batch_size 128")),
        ({"nesterov": True, "momentum": 0}, ("nesterov", "momentum is 0.0")),
        ({"lr": "1e-1"}, ("lr '1e-1'", "YAML", "1.0e-1")),
        ({"iterations": 64e3}, ("iterations 64000.0", "int")),
        ({"model": ""}, ("model ''",)),
        ({"model": "a\nb"}, ("model 'a\\nb'",)),
        ({"model": "x" * 10_000}, ("model 'xxx",)),
        ({"teacher": "../other"}, ("teacher '../other'",)),
        ({"options": "preactivation"}, ("options 'preactivation'", "name=value")),
        ({"options": "width=1,width=2"}, ("width is given twice",)),
        ({"options": "shortcut=B"}, ("shortcut is a field of the recipe", "allowed")),
        ({"options": "num_classes=3"}, ("num_classes is a field of the recipe", "allowed")),
    ],
)
def test_fields_that_contradict_each_other(values, named):
    text = refused(**values)
    assert all(part in text for part in named), text


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-1", 0.1),
        ("iterations", "64000", 64_000),
        ("nesterov", "True", True),
        ("nesterov", "no", False),
        ("lr_drops", "0.4,0.8", (0.4, 0.8)),
        ("lr_drops", "", ()),
        ("scale_range", "64, 120", (64, 120)),
        ("model", "plain20", "plain20"),
    ],
)
def test_parse_field(name, text, value):
    parsed = parse_field(name, text)
    assert parsed == value and type(parsed) is type(value)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(FIELDS), text=st.text(max_size=20))
def test_parse_field_never_fails_otherwise(name, text):
    try:
        assert type(parse_field(name, text)) is field_types()[name]
    except UserError as error:
        assert name in str(error) and shown(text) in str(error)


def test_parse_field_says_what_is_wanted():
    wrong = [
        ("lr", "fast", "a number"),
        ("seed", "1.5", "a whole number"),
        ("nesterov", "maybe", "true or false"),
        ("lr_drops", "a,b", "numbers joined by commas"),
    ]
    for name, text, wanted in wrong:
        with pytest.raises(UserError, match=f"{name} '{text}' is not {wanted}"):
            parse_field(name, text)
    with pytest.raises(UserError, match="did you mean 'momentum'"):
        parse_field("momentun", "1")


def test_parse_options():
    text = "preactivation=true, init=xavier,width=8,dropout=0.25,x=false"
    options = {"preactivation": True, "init": "xavier", "width": 8, "dropout": 0.25, "x": False}
    assert parse_options(text) == options and type(parse_options(text)["width"]) is int
    assert parse_options("") == {} and parse_options(" , ") == {}
    assert parse_options("a=1;b") == {"a": "1;b"}
    for bad in ("a", "=3", "a=", "1a=3", "a b=3", "a=1,b"):
        with pytest.raises(UserError, match="not of the form name=value"):
            parse_options(bad)


def test_choose_survives_any_value():
    for value in (None, 10**5000, [1], float("nan"), "x" * 10**6):
        with pytest.raises(UserError) as caught:
            choose("thing", value, ("a", "b"))
        assert "allowed are a, b" in str(caught.value) and len(str(caught.value)) < 300


def test_another_seed_has_another_digest():
    recipe = Recipe()
    assert recipe.digest and recipe.with_seed(1).digest == Recipe(seed=1).digest != recipe.digest
