"""One step: velocity, micro-batches, moving averages, randomness."""

import pytest
import torch
from own_models import OwnLoss, Small
from torch import nn
from training import tiny

from reslib.engine import Objective, Step, make_optimizer, make_step, set_learning_rate
from reslib.window import Window

CPU = torch.device("cpu")


def batch(seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.randint(10, (size,), generator=generator)


def stepper(model, **changes):
    recipe = tiny(**changes)
    optimizer = make_optimizer(recipe, model, CPU)
    set_learning_rate(optimizer, recipe.lr, recipe.lr)
    return make_step(recipe, model, optimizer, CPU, "fp32"), optimizer


def test_a_new_rate_keeps_the_velocity():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    holder = nn.Module()
    holder.weight = weight
    optimizer = make_optimizer(tiny(momentum=0.5, weight_decay=0.0), holder, CPU)
    by_hand, velocity, previous = weight.detach().clone(), torch.zeros(2), 0.05
    for i, rate in enumerate([0.4, 0.4, 0.04, 0.04, 0.4, 0.01]):
        gradient = torch.tensor([float(i + 1), -0.5])
        set_learning_rate(optimizer, rate, previous)
        previous = rate
        weight.grad = gradient.clone()
        optimizer.step()
        velocity = 0.5 * velocity + rate * gradient
        by_hand = by_hand - velocity
        assert weight.detach().tolist() == pytest.approx(by_hand.tolist(), rel=1e-5)


def test_nesterov_momentum_looks_ahead():
    holder = nn.Module()
    holder.weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = make_optimizer(tiny(nesterov=True, momentum=0.5, weight_decay=0.0, lr=0.1), holder, CPU)
    holder.weight.grad = torch.ones(1)
    optimizer.step()
    assert holder.weight.item() == pytest.approx(1 - 0.1 * (1 + 0.5))  # without: 1 - 0.1


def test_weight_decay_reaches_every_parameter_once():
    model = Small()
    step, optimizer = stepper(model, momentum=0.0, weight_decay=0.1, lr=1.0)
    names = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert names == {id(p) for p in model.parameters()}
    x, y = batch()
    before = [p.detach().clone() for p in model.parameters()]
    gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
    step(x, y, 0)
    for p, old, g in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(p.detach(), old - g - 0.1 * old, rtol=1e-4, atol=1e-6)


def test_frozen_parameters_stay():
    model = Small()
    model.conv.weight.requires_grad_(False)
    before = model.conv.weight.clone()
    step, _ = stepper(model)
    step(*batch(), 0)
    assert torch.equal(model.conv.weight, before)


def test_moving_averages_are_the_mean_over_micro_batches():
    torch.manual_seed(0)
    model = Small()
    x, y = batch()
    mean, var = model.norm.running_mean.clone(), model.norm.running_var.clone()
    with torch.no_grad():
        maps = [model.conv(part) for part in x.chunk(4)]
    means = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    variances = torch.stack([m.transpose(0, 1).flatten(1).var(1, unbiased=True) for m in maps]).mean(0)
    step, _ = stepper(model, accumulation=4)
    step(x, y, 0)
    torch.testing.assert_close(model.norm.running_mean, 0.9 * mean + 0.1 * means)
    torch.testing.assert_close(model.norm.running_var, 0.9 * var + 0.1 * variances)


def test_accumulation_equals_the_big_batch_where_nothing_depends_on_the_batch():
    """Without batch norm, whose statistics are per micro-batch, micro-batches change nothing but rounding."""
    ends = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = Small()
        model.norm = nn.Identity()
        step, _ = stepper(model, accumulation=parts)
        results = [step(*batch(i), i) for i in range(5)]
        ends.append((results, [p.detach() for p in model.parameters()]))
    for (loss, wrong), (loss4, wrong4) in zip(ends[0][0], ends[1][0], strict=True):
        torch.testing.assert_close(loss4, loss, rtol=1e-5, atol=1e-6)
        assert wrong4 == wrong
    for p, q in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6)


def test_returns_mean_loss_and_number_of_errors():
    torch.manual_seed(0)
    model = Small()
    x, y = batch()
    logits = model(x)
    loss, wrong = stepper(model)[0](x, y, 0)
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(logits, y).item())
    assert wrong.item() == (logits.argmax(1) != y).sum().item()


def test_dropout_depends_on_seed_iteration_and_micro_batch_only():
    def loss(seed=0, iteration=0, parts=1, disturb=0):
        torch.manual_seed(1)
        model = Small(dropout=0.5)
        step, _ = stepper(model, seed=seed, accumulation=parts)
        torch.manual_seed(disturb)
        return step(*batch(), iteration)[0].item()

    assert loss() == loss(disturb=9)
    assert len({loss(), loss(seed=1), loss(iteration=1), loss(parts=2)}) == 4


def test_own_loss_and_progress():
    torch.manual_seed(0)
    model = OwnLoss()
    step, _ = stepper(model, iterations=10)
    before = model.extra.weight.clone()
    step(*batch(), 4)
    assert torch.equal(model.extra.weight, before)  # no gradient: not even weight decay
    assert step.progress.item() == pytest.approx(0.4)
    step(*batch(), 5)
    assert not torch.equal(model.extra.weight, before)


def test_objective_matches_cross_entropy_in_fp32():
    model = Small().bfloat16()
    x, y = batch()
    loss, logits = Objective(model)(x.bfloat16(), y, None)
    assert loss.dtype == logits.dtype == torch.float32


def test_bf16_keeps_fp32_weights_and_learns():
    torch.manual_seed(0)
    model = Small()
    recipe = tiny()
    step = Step(recipe, model, make_optimizer(recipe, model, CPU), CPU, "bf16")
    losses = [step(*batch(), i)[0].item() for i in range(12)]
    assert losses[-1] < losses[0] / 2
    assert all(p.dtype == torch.float32 for p in model.parameters())


class Two:
    """Two processes seen from the first: sums double, as if both held the same."""

    world = 2

    def __init__(self, rank):
        self.rank = rank


def test_a_window_is_dealt_out_anew_to_another_number_of_processes():
    recipe = tiny(eval_every=5)
    states = [
        {"losses": torch.tensor([1.0, 2.0]), "wrong": 3, "warm": 5},
        {"losses": torch.tensor([3.0, 4.0]), "wrong": 4, "warm": 6},
    ]

    def loaded(states, rank, world):
        group = Two(rank)
        group.world = world
        window = Window(recipe, CPU)
        window.load(states, group)
        return window.losses[: window.filled].tolist(), int(window.wrong), int(window.wrong_warmup)

    assert loaded(states, 1, 2) == ([3.0, 4.0], 4, 6)
    assert loaded(states, 0, 1) == ([2.0, 3.0], 7, 11)
    shares = [loaded(states[:1], rank, 2) for rank in (0, 1)]
    assert [s[0] for s in shares] == [[1.0, 2.0]] * 2
    assert sum(s[1] for s in shares) == 3 and sum(s[2] for s in shares) == 5
