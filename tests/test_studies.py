"""Which runs the figures need: shared runs once, the paper's numbers in the paper preset."""

import pytest

from reslib.errors import UserError
from reslib.recipe import Recipe
from reslib.studies import PRESETS, STUDIES, cifar_recipe, fidelity, figure1, figure6, plan, preset_of

BOTH = {"cifar": "cifar10", "imagenet": "imagenet"}


def test_paper_preset_has_the_papers_numbers():
    recipe = cifar_recipe("resnet20", PRESETS["paper"])
    assert recipe == Recipe() and recipe.iterations == 64_000 and recipe.batch_size == 128
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.nesterov) == (0.1, 0.9, 1e-4, False)


def test_medium_is_a_tenth_with_milestones_at_the_same_fractions():
    medium, paper = (cifar_recipe("plain56", PRESETS[p]) for p in ("medium", "paper"))
    assert medium.iterations * 10 == paper.iterations and medium.lr_drops == paper.lr_drops


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_changes_scale_only(name):
    scale = {"iterations", "batch_size", "eval_every", "train_size", "test_size", "warmup_window"}
    recipe, paper = cifar_recipe("resnet20", PRESETS[name]), cifar_recipe("resnet20", PRESETS["paper"])
    assert {k for k, v in recipe.to_dict().items() if v != paper.to_dict()[k]} <= scale


def test_only_110_layers_and_more_warm_up():
    warmed = {d: cifar_recipe(f"resnet{d}", PRESETS["paper"]).warmup_lr for d in (20, 32, 44, 56, 110, 1202)}
    assert warmed == {20: 0, 32: 0, 44: 0, 56: 0, 110: 0.01, 1202: 0.01}


def test_shared_runs_are_planned_once():
    preset = PRESETS["medium"]
    whole = plan(preset, BOTH)
    assert len({r.digest for r in whole}) == len(whole)
    assert {r.digest for r in figure1(preset, "cifar10")} <= {r.digest for r in figure6(preset, "cifar10")}


def test_table_row_of_every_network():
    models = {r.model for r in STUDIES["cifar10_table"][0](PRESETS["paper"], "cifar10", 0)}
    assert models == {
        "maxout", "nin", "dsn", "fitnet19", "highway19", "highway32",
        "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202",
    }  # fmt: skip


def test_seeds_argument_overrides_the_preset():
    recipes = figure1(PRESETS["quick"], "synthetic", 3)
    assert sorted(r.seed for r in recipes if r.model == "plain20") == [0, 1, 2]


def test_each_deviation_differs_from_the_paper_in_one_respect():
    groups = fidelity(PRESETS["paper"], "cifar10", 1)
    reference = groups["paper"][0].to_dict()
    for name, (recipe,) in groups.items():
        if name != "paper" and "110" not in name:
            assert len({k for k, v in recipe.to_dict().items() if v != reference[k]}) == 1, name


def test_unknown_preset_is_named_with_what_is_allowed():
    with pytest.raises(UserError, match="'qick'.*smoke, quick, medium, paper.*did you mean 'quick'"):
        preset_of("qick")
