"""The recipes of Table 6's other networks: valid, and each network trains by that of quick."""

import pytest
import torch
from test_baselines import COUNTS, NAMES
from torch import nn
from training import QUIET, silent

from reslib.models.baselines import BASELINE_RECIPES
from reslib.networks import load_network, make_model
from reslib.presets import PRESETS, cifar_recipe
from reslib.recipe import Recipe
from reslib.train import train


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_valid_and_leave_the_budget_alone(name):
    recipe = Recipe(model=name, **BASELINE_RECIPES[name])
    assert (recipe.iterations, recipe.batch_size, recipe.momentum) == (64_000, 128, 0.9)
    assert set(BASELINE_RECIPES) == set(NAMES)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_trains_by_the_recipe_of_quick(name, tmp_path):
    """Its rate, batch and images as they are at quick, over fewer iterations: it moves and does not run away."""
    usual = cifar_recipe(name, PRESETS["quick"])
    recipe = usual.replace(dataset="synthetic", iterations=6, eval_every=3, test_size=64)
    rows = []
    summary = train(recipe, tmp_path, preset="quick", execution=QUIET, say=silent, on_row=rows.append)
    assert summary["status"] == "finished" and [row["iteration"] for row in rows] == [3, 6]
    assert rows[1]["train_loss"] < 1.2 * rows[0]["train_loss"]  # with dropout, on other images: it need not fall yet
    assert summary["parameters"] == COUNTS[name][1]
    network, _ = load_network(tmp_path / recipe.run_name)
    has_statistics = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert (summary["exact_bn_test_error"] is not None) == has_statistics
    before = dict(make_model(recipe, 10, tmp_path).named_parameters())
    assert not [n for n, p in network.named_parameters() if p.dim() > 1 and torch.equal(p.cpu(), before[n])]
