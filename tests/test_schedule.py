"""The whole learning-rate trace: drops, the warm-up latch, plateaus."""

import random
from itertools import pairwise

import pytest
import torch

from reslib.presets import PRESETS, cifar_recipe, imagenet_recipe
from reslib.recipe import Recipe
from reslib.schedule import drop_iterations, learning_rate, plateaus
from reslib.window import Window


class Alone:
    """The group of a single process."""

    world = 1

    def sum(self, tensor):
        return tensor


def trace(recipe, errors_of):
    """The rate of every step of the trainer's latch, with errors_of(iteration) wrong answers per batch."""
    window, warming_up, rates = Window(recipe, torch.device("cpu")), recipe.warmup_lr > 0, []
    for iteration in range(recipe.iterations):
        rates.append(learning_rate(recipe, iteration, warming_up, []))
        window.filled = 0
        window.add(torch.zeros(()), torch.tensor(errors_of(iteration)))
        if warming_up and (iteration + 1) % recipe.warmup_window == 0:
            warming_up = not window.warmup_error(Alone()) < recipe.warmup_error
    return rates


def runs_of(rates):
    """[(rate, number of steps)], in order."""
    out = []
    for rate in rates:
        if out and out[-1][0] == rate:
            out[-1][1] += 1
        else:
            out.append([rate, 1])
    return [(pytest.approx(rate), count) for rate, count in out]


def test_every_step_of_a_shallow_net():
    recipe = cifar_recipe("resnet56", PRESETS["paper"])
    rates = [learning_rate(recipe, i, False, []) for i in range(64_000)]
    assert runs_of(rates) == [(0.1, 32_000), (0.01, 16_000), (0.001, 16_000)]
    assert drop_iterations(recipe) == [32_000, 48_000]


def test_fixed_steps_on_imagenet_are_those_of_30_60_and_90_epochs():
    recipe = imagenet_recipe("resnet34", PRESETS["paper"])
    assert recipe.schedule == "plateau"
    drops = drop_iterations(recipe.replace(schedule="steps"))
    assert [d * 256 / 1_281_167 for d in drops] == pytest.approx([30, 60, 90], abs=0.1)
    rates = [learning_rate(recipe.replace(schedule="steps"), d + i, False, []) for d in drops for i in (-1, 0)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001, 0.0001])


def test_every_step_of_resnet110():
    """0.01 until the training error of a window is below 80% (103 of 128 wrong is 80.5%, 102 is 79.7%)."""
    recipe = cifar_recipe("resnet110", PRESETS["paper"])
    # The net learns slowly, is below 80% from iteration 600 on, and gets worse again after 5000.
    rates = trace(recipe, lambda i: 115 if i < 600 else 80 if i < 5000 else 120)
    # Second epoch, 391-781: 209 x 115 + 182 x 80 of 50,048 = 77%
    assert runs_of(rates) == [(0.01, 782), (0.1, 31_218), (0.01, 16_000), (0.001, 16_000)]


@pytest.mark.parametrize(("wrong", "ends"), [(103, False), (102, True)])
def test_warm_up_threshold(wrong, ends):
    recipe = Recipe(model="resnet110", warmup_lr=0.01, iterations=300, lr_drops=())
    rates = trace(recipe, lambda i: wrong)
    assert rates == ([0.01] * 100 + [0.1] * 200 if ends else [0.01] * 300)


def test_warm_up_measures_the_last_window_only():
    recipe = Recipe(model="resnet110", warmup_lr=0.01, warmup_window=10, iterations=100, lr_drops=())
    rates = trace(recipe, lambda i: 128 if i < 20 else 90)
    assert rates == [0.01] * 30 + [0.1] * 70


@pytest.mark.parametrize("preset", PRESETS)
def test_drops_are_at_the_same_fractions_in_every_preset(preset):
    recipe = cifar_recipe("resnet20", PRESETS[preset])
    rates = [learning_rate(recipe, i, False, []) for i in range(recipe.iterations)]
    first, second = drop_iterations(recipe)
    assert abs(first - recipe.iterations / 2) <= 0.5 and abs(second - recipe.iterations * 0.75) <= 0.5
    assert [rates.index(r) for r in sorted(set(rates), reverse=True)] == [0, first, second]


def slow_plateaus(errors, patience):
    """For each evaluation, count how long ago the best so far or the last drop was."""
    drops = []
    for now in range(1, len(errors) + 1):
        best_at = max(i for i in range(now) if errors[i] == min(errors[:now]) and errors[i] not in errors[:i])
        since = now - 1 - max(best_at, drops[-1] if drops else -1)
        if since == patience:
            drops.append(now - 1)
    return len(drops)


def test_plateaus_against_a_slow_reference():
    draw = random.Random(0)
    seen = set()
    for _ in range(300):
        errors = [
            draw.choice([0.1, 0.2, 0.3, 0.4, 0.5]) * draw.choice([1, 0.9, 0.8]) for _ in range(draw.randrange(40))
        ]
        patience = draw.choice([1, 2, 3, 5])
        assert plateaus(errors, patience) == slow_plateaus(errors, patience), (errors, patience)
        seen.add(plateaus(errors, patience))
    assert len(seen) > 8


def test_plateau_by_hand():
    errors = [0.5, 0.4, 0.4, 0.41, 0.39, 0.39, 0.39, 0.39, 0.39, 0.2]
    #         best best  1    2     best  1     2     3     1     best
    assert [plateaus(errors[:n], 3) for n in range(11)] == [0] * 8 + [1, 1, 1]
    recipe = Recipe(schedule="plateau", plateau_patience=3, lr_gamma=0.1)
    rates = [learning_rate(recipe, 1000 * n, False, errors[:n]) for n in range(11)]
    assert rates == pytest.approx([0.1] * 8 + [0.01] * 3)
    assert all(a >= b for a, b in pairwise(rates))


def test_drops_do_not_wait_for_a_plateau_and_plateaus_ignore_drops():
    steps, plateau = Recipe(), Recipe(schedule="plateau", plateau_patience=1)
    assert learning_rate(steps, 31_999, False, [0.5] * 50) == 0.1
    assert learning_rate(plateau, 63_999, False, []) == 0.1
