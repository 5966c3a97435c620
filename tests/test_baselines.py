"""Table 6's other networks: counts by hand, building blocks against slow references, losses, learning."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import QUIET, silent, train_in_pieces, weights_of

from reslib.errors import UserError
from reslib.models import fitnet, highway, initial, losses, maxout, nin
from reslib.models.baselines import BASELINE_RECIPES, BASELINES
from reslib.networks import load_network
from reslib.recipe import Recipe
from reslib.train import train

NAMES = list(BASELINES)


def conv(k, a, b):  # parameters of a k x k convolution, or of a linear layer with k = 1
    return (k * k * a + 1) * b


NIN = (
    conv(5, 3, 192) + conv(1, 192, 160) + conv(1, 160, 96)
    + conv(5, 96, 192) + 2 * conv(1, 192, 192)
    + conv(3, 192, 192) + conv(1, 192, 192) + conv(1, 192, 10)
)  # fmt: skip
COUNTS = {  # name: (by hand, pinned)
    "maxout": (
        conv(8, 3, 192) + conv(8, 96, 384) + conv(5, 192, 384) + conv(1, 192 * 5 * 5, 2500) + conv(1, 500, 10),
        16_247_830,
    ),
    "nin": (NIN, 966_986),
    "dsn": (NIN + conv(1, 192 * 1024, 10) + conv(1, 192 * 256, 10) + conv(1, 192 * 64, 10), 3_547_496),
    "fitnet19": (  # maxout of two: twice the channels come out
        conv(3, 3, 64) + 2 * conv(3, 32, 64) + conv(3, 32, 96) + conv(3, 48, 96)
        + conv(3, 48, 160) + 5 * conv(3, 80, 160) + conv(3, 80, 256) + 5 * conv(3, 128, 256)
        + conv(1, 128, 1000) + conv(1, 500, 10),
        2_548_602,
    ),
    "highway19": (  # a highway layer has H and T
        conv(3, 3, 32) + 8 * conv(3, 32, 32) + conv(3, 32, 80) + 10 * conv(3, 80, 80) + conv(3, 80, 128)
        + 10 * conv(3, 128, 128) + conv(1, 128, 100) + conv(1, 100, 10),
        2_256_838,
    ),
    "highway32": (
        conv(3, 3, 32) + 18 * conv(3, 32, 32) + conv(3, 32, 48) + 18 * conv(3, 48, 48) + conv(3, 48, 64)
        + 18 * conv(3, 64, 64) + conv(1, 64, 64) + conv(1, 64, 10),
        1_252_570,
    ),
}  # fmt: skip


def count(model):
    return sum(p.numel() for p in model.parameters())


def batch(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last)
    return x, torch.arange(n) % 10


@pytest.fixture
def teacher():
    torch.manual_seed(5)
    return BASELINES["maxout"](dense_pieces=1)


def loss_of(model, x, y, progress=0.0):
    if hasattr(model, "training_loss"):
        return model.training_loss(x, y, torch.tensor(progress))[0]
    return F.cross_entropy(model(x).float(), y)


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts(name):
    by_hand, pinned = COUNTS[name]
    assert count(BASELINES[name]()) == by_hand == pinned


def test_parameter_counts_of_the_papers():
    rounded = {n: (round(COUNTS[n][1] / 1e6, 1), round(COUNTS[n][1] / 1e6, 2)) for n in NAMES}
    assert rounded["fitnet19"][0] == 2.5 and rounded["highway19"][0] == 2.3 and rounded["highway32"][1] == 1.25
    assert count(BASELINES["fitnet19"](batch_norm=False)) == COUNTS["fitnet19"][1]
    assert round(count(BASELINES["maxout"](dense_pieces=2)) / 1e6) == 9  # FitNets on its teacher


@pytest.mark.parametrize(("name", "layers"), [("maxout", 5), ("nin", 9), ("fitnet19", 19), ("highway19", 19),
                                              ("highway32", 32)])  # fmt: skip
def test_layers_in_sequence(name, layers):
    model, seen = BASELINES[name]().eval(), []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, maxout.MaxoutConv, maxout.MaxoutLinear)):
            module.register_forward_hook(lambda m, i, o: seen.append(m))
    model(batch(1)[0])
    assert len(seen) == len(set(seen)) == layers  # H and T of a highway layer are one convolution side by side


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_shapes(name):
    assert BASELINES[name](num_classes=7).eval()(batch(2)[0]).shape == (2, 7)


def test_maxout_against_loop():
    x = torch.randn(2, 6, 3, 2)
    expected = torch.empty(2, 2, 3, 2)
    for n in range(2):
        for c in range(2):
            for i in range(3):
                for j in range(2):
                    expected[n, c, i, j] = max(x[n, p * 2 + c, i, j].item() for p in range(3))
    assert torch.equal(maxout.maxout(x, 3), expected)
    layer = maxout.MaxoutLinear(4, 3, pieces=5, variance=1.0)
    row = torch.randn(1, 4)
    responses = row @ layer.linear.weight.T + layer.linear.bias
    torch.testing.assert_close(layer(row)[0], responses.view(5, 3).max(0).values)


def test_max_norm_limit():
    weight = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(maxout.limited(weight, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert torch.equal(maxout.limited(weight, 0.0), weight)
    model = BASELINES["maxout"](dense_pieces=1)
    layers = [*model.convs, model.dense, model.classifier]
    assert [layer.limit for layer in layers] == [0.9, 1.9365, 1.9365, 1.9, 1.9365]
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        model.convs[0].conv.weight *= 1e6
    kernels = model.convs[0].conv.weight
    unit = kernels / kernels.flatten(1).norm(dim=1)[:, None, None, None]
    expected = maxout.maxout(F.conv2d(x, 0.9 * unit, padding=4), 2)
    torch.testing.assert_close(model.convs[0](x), expected)


def test_maxout_keeps_channels_last():
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert maxout.maxout(x, 2).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("pieces", "area", "drop"), [(0, 1, 0.0), (2, 1, 0.0), (5, 1, 0.0), (2, 4, 0.5), (0, 9, 0.5)])
def test_signal_against_simulation(pieces, area, drop):
    z = torch.randn(200_000, max(pieces, 1) * area, generator=torch.Generator().manual_seed(1)).amax(1)
    y = z if pieces else z.relu()
    square = y.square().mean().item() / (1 - drop)
    assert initial.signal(pieces, area, drop) == pytest.approx((square, square - y.mean().item() ** 2), rel=0.03)


def test_initial_signal_survives_the_depth():
    torch.manual_seed(0)
    model, spread = BASELINES["fitnet19"](batch_norm=False), []
    for layer in model.convs:
        layer.register_forward_hook(lambda m, i, o: spread.append(o.std(0).mean().item()))  # between images
    model(F.avg_pool2d(torch.randn(16, 3, 64, 64), 2) * 2)
    assert len(spread) == 17 and 0.3 < min(spread) and max(spread) < 2


def test_mlpconv_is_an_mlp_at_every_pixel():
    block = nin.MLPConv(3, (5, 4, 2), kernel=3)
    x = torch.randn(1, 3, 4, 4)
    hidden, out = block(x)
    padded = F.pad(x, (1, 1, 1, 1))
    for i in range(4):
        for j in range(4):
            v = block.conv.weight.flatten(1) @ padded[0, :, i : i + 3, j : j + 3].flatten() + block.conv.bias
            torch.testing.assert_close(hidden[0, :, i, j], v)
            for layer in block.mlp:
                v = layer.weight[:, :, 0, 0] @ v.clamp(min=0) + layer.bias
            torch.testing.assert_close(out[0, :, i, j], v.clamp(min=0))


def test_highway_layer_by_formula():
    layer = highway.HighwayConv(4, gate_bias=-2.0)
    x = torch.randn(2, 4, 5, 5)
    weight, bias = layer.conv.weight, layer.conv.bias
    assert torch.equal(bias[4:], torch.full((4,), -2.0)) and torch.equal(bias[:4], torch.zeros(4))
    h = F.conv2d(x, weight[:4], bias[:4], padding=1).clamp(min=0)
    t = 1 / (1 + torch.exp(-F.conv2d(x, weight[4:], bias[4:], padding=1)))
    torch.testing.assert_close(layer(x), h * t + x * (1 - t))
    with torch.no_grad():
        layer.conv.bias[4:] = -1e4
    torch.testing.assert_close(layer(x), x)  # a closed gate carries


def test_squared_hinge_by_hand():
    scores, y = torch.tensor([[0.5, -2.0, 0.0], [3.0, 0.0, -0.5]]), torch.tensor([0, 1])
    # image 0: (1 - 0.5)^2 + 0 + 1; image 1: (1 + 3)^2 + 1 + (1 - 0.5)^2
    assert losses.squared_hinge(scores, y).item() == pytest.approx((1.25 + 17.25) / 2)


@pytest.mark.parametrize("loss", ["hinge", "softmax"])
def test_dsn_companions_fade_and_vanish(loss):
    torch.manual_seed(0)
    model, (x, y) = BASELINES["dsn"](loss=loss, dropout=0.0), batch()
    criterion = losses.squared_hinge if loss == "hinge" else F.cross_entropy
    maps = []
    for block in model.blocks:
        block.conv.register_forward_hook(lambda m, i, o: maps.append(o))
    out = criterion(model(x), y)
    extra = 0.0
    for layer, hidden in zip(model.companions, maps, strict=True):
        weights = layer.weight.view(10, *hidden.shape[2:], 192)  # per class and position
        scores = torch.einsum("nchw,khwc->nk", hidden, weights) / math.sqrt(hidden[0].numel()) + layer.bias
        extra += criterion(scores, y)
    for progress in (0.0, 0.25, 1.0):
        total, logits = model.training_loss(x, y, torch.tensor(progress))
        torch.testing.assert_close(total, out + 0.1 * (1 - progress) * extra)
        torch.testing.assert_close(logits, model(x))
    model.gamma = 1e6  # every companion is good enough
    torch.testing.assert_close(model.training_loss(x, y, torch.tensor(0.0))[0], out)


def test_dsn_refuses_other_losses():
    with pytest.raises(UserError, match="loss 'hnge' is unknown.*hinge"):
        BASELINES["dsn"](loss="hnge")


def test_fitnet_stages(teacher):
    model, (x, y) = BASELINES["fitnet19"](teacher=teacher, hint_fraction=0.2, batch_norm=False), batch()
    hint, soft = teacher.guide(x)
    guided, logits = model.guided_and_logits(x)
    assert hint.shape == (4, 192, 7, 7) and guided.shape == (4, 80, 8, 8)
    guess = F.conv2d(guided, model.regressor.conv.weight, model.regressor.conv.bias)
    guess = torch.stack([guess[:, :192], guess[:, 192:]]).max(0).values
    torch.testing.assert_close(model.training_loss(x, y, torch.tensor(0.1))[0], 0.5 * (guess - hint).square().mean())
    distillation = -((soft / 3).softmax(1) * (logits / 3).log_softmax(1)).sum(1).mean()
    for progress, weight in ((0.2, 4.0), (0.6, 2.5), (1.0, 1.0)):
        loss = model.training_loss(x, y, torch.tensor(progress))[0]
        torch.testing.assert_close(loss, F.cross_entropy(logits, y) + weight * distillation)


def test_fitnet_teacher_stays_frozen_and_apart(teacher):
    model, (x, y) = BASELINES["fitnet19"](teacher=teacher), batch()
    assert count(model) == COUNTS["fitnet19"][1] + conv(2, 80, 384)  # the regressor alone is added
    assert not any("teacher" in key for key in model.state_dict())
    model.train()
    assert not teacher.training
    reached = set()
    for progress in (0.0, 0.9):
        model.zero_grad()
        model.training_loss(x, y, torch.tensor(progress))[0].backward()
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        if progress == 0.0:  # stage 1 trains up to the guided layer
            tops = {n.split(".")[1] for n in reached if n.startswith("convs")}
            assert tops == {str(i) for i in range(11)} and not any(n.startswith("classifier") for n in reached)
    assert reached == {n for n, _ in model.named_parameters()}
    assert all(p.grad is None for p in teacher.parameters())
    model.to(torch.float64)
    assert next(teacher.parameters()).dtype == torch.float64
    with pytest.raises(UserError, match="HighwayNet gives no hints"):
        BASELINES["fitnet19"](teacher=BASELINES["highway19"]())


def test_hints_of_a_teacher_trained_here(tmp_path, monkeypatch):
    """From the teacher's own run to the student's record, both stages, across an interruption."""
    short = {"iterations": 4, "eval_every": 2, "batch_size": 4, "train_size": 8, "test_size": 4, "precision": "fp32"}
    master = Recipe("maxout", "synthetic", options="dense_pieces=1", **BASELINE_RECIPES["maxout"], **short)
    train(master, tmp_path, execution=QUIET, say=silent)
    recipe = Recipe("fitnet19", "synthetic", teacher=master.run_name, options="hint_fraction=0.5", **short)
    recipe = recipe.replace(**BASELINE_RECIPES["fitnet19"])
    steps = []
    loss = fitnet.FitNet19.training_loss

    def seen(self, x, y, progress):
        steps.append((float(progress), self._teacher[0].training))
        return loss(self, x, y, progress)

    monkeypatch.setattr(fitnet.FitNet19, "training_loss", seen)
    summary = train(recipe, tmp_path, execution=QUIET, say=silent)
    assert summary["status"] == "finished" and steps == [(p, False) for p in (0.0, 0.25, 0.5, 0.75)]
    whole = weights_of(tmp_path, recipe)
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / master.run_name).symlink_to(tmp_path / master.run_name)
    train_in_pieces(monkeypatch, recipe, tmp_path / "pieces", 1)
    assert weights_of(tmp_path / "pieces", recipe) == whole
    network, _ = load_network(tmp_path / recipe.run_name)
    x, _ = batch(2)
    taught = load_network(tmp_path / master.run_name)[0].guide(x)
    for mine, given in zip(network._teacher[0].guide(x), taught, strict=True):
        assert torch.equal(mine, given)  # the teacher is that run's network
    assert network(x).shape == (2, 10)
    with pytest.raises(UserError, match="has preprocessing channel-std, this run pixel-mean: both must see the same"):
        train(recipe.replace(preprocessing="pixel-mean"), tmp_path, execution=QUIET, say=silent)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    model, (x, y) = BASELINES[name](), batch(4)
    loss_of(model, x, y).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_tells_of_dropout(name):
    torch.manual_seed(0)
    model, (x, _) = BASELINES[name](), batch(2)
    state = torch.get_rng_state()
    model.train()(x)
    assert model.stochastic == (not torch.equal(torch.get_rng_state(), state))
    model.eval()
    assert torch.equal(model(x), model(x))  # dropout is off
    if model.stochastic:
        assert not BASELINES[name](dropout=0.0).stochastic


@pytest.mark.timeout(900)  # bf16 without instructions for it is a hundred times slower: two minutes on such a processor
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NAMES)
def test_learns_a_tiny_batch(name, bf16):
    torch.manual_seed(0)
    options = {"dense_pieces": 2} if name == "maxout" else {}  # 7 million fewer weights to wait for
    model, fields = BASELINES[name](**options).to(memory_format=torch.channels_last), BASELINE_RECIPES[name]
    x, y = batch(4)
    x = x * 0.5 + torch.randn(10, 3, 1, 1)[y]  # a colour for each class
    optimiser = torch.optim.SGD(model.parameters(), fields["lr"], 0.9, weight_decay=fields["weight_decay"],
                                nesterov=fields.get("nesterov", False))  # fmt: skip
    losses = []
    for _ in range(14):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(model, x, y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert sum(losses[-4:]) / 4 < 0.97 * losses[0]
