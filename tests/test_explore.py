"""What the notebook `explore` shows, with and without widgets."""

import sys
from types import SimpleNamespace

import pytest
import torch
from fake_records import write_run
from torch import nn

from reslib import explore
from reslib.errors import UserError
from reslib.job import Execution
from reslib.models import build_model
from reslib.presets import PRESETS
from reslib.recipe import Recipe
from reslib.train import train


@pytest.fixture
def folder(tmp_path):
    """What a notebook's folder offers here: synthetic data, no runs yet."""
    (tmp_path / "runs").mkdir()
    kinds = {"cifar": "synthetic"}
    return SimpleNamespace(
        runs_dir=tmp_path / "runs", data_root=None, preset=PRESETS["smoke"], dataset=kinds.__getitem__
    )


def texts(figure):
    found = [figure._suptitle.get_text()] if figure._suptitle else []
    return " ".join(found + [ax.get_title(loc) for ax in figure.axes for loc in ("left", "center")])


@pytest.mark.parametrize(
    "family, depth, shortcut, expected",
    [("resnet", 20, "A", "269,722"), ("plain", 20, "A", "269,722"), ("resnet", 50, "B", "25,557,032"),
     ("resnet", 110, "A", "1,727,962")],
)  # fmt: skip
def test_parameters_of_the_chosen_network(family, depth, shortcut, expected):
    """25,557,032 is torchvision's resnet50."""
    figure, table = explore.network(family, depth, shortcut)
    facts = table[""]
    assert facts["parameters"] == expected and facts["weighted layers"] == str(depth)
    assert ("bottleneck" in texts(figure)) == (depth == 50)
    assert ("Residual" in texts(figure)) == (family == "resnet")
    assert ("multiply-adds (paper)" in facts) == (depth == 50) and ("parameters (paper)" in facts) == (
        family == "resnet" and depth != 50
    )


class Table(nn.Module):
    """A network whose answer is its input."""

    def forward(self, x):
        return x


def test_most_confused_by_hand():
    log = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.05, 0.15, 0.8], [0.4, 0.5, 0.1]]).log()
    labels = torch.tensor([1, 0, 2, 0])  # image 2 is right; 0 is wrong by 0.9, 1 by 0.7, 3 by 0.5
    worst = explore.most_confused(Table(), log, labels, 2)
    assert worst.image.tolist() == [0, 1] and worst.label.tolist() == [1, 0] and worst.predicted.tolist() == [0, 1]
    assert worst.probability.tolist() == [0.9, 0.7]
    assert len(explore.most_confused(Table(), log, labels, 9)) == 3
    assert explore.most_confused(Table(), log, log.argmax(1), 9).empty


@pytest.mark.parametrize("options", [{}, {"preactivation": True}])
@pytest.mark.parametrize("name", ["resnet20", "plain20"])
def test_responses_are_the_stages_outputs(name, options):
    """Against a forward pass taken apart by hand; looking changes nothing."""
    torch.manual_seed(0)
    net = build_model(name, **options).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = net(x)
        maps = explore.stage_responses(net, x)
        out = net.relu(net.bn1(net.conv1(x)))
        assert torch.equal(maps["conv1"], out[0])
        for stage in ("layer1", "layer2", "layer3"):
            out = getattr(net, stage)(out)
            assert torch.equal(maps[stage], out[0])
        assert torch.equal(net(x), before)
    assert [tuple(m.shape) for m in maps.values()] == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert not any(m._forward_hooks for m in net.modules())


def test_without_runs_it_says_untrained(folder):
    nets = explore.Nets(folder)
    net = nets.best
    assert nets.names == ["UNTRAINED resnet20"]
    assert net.note.startswith("UNTRAINED resnet20") and "SYNTHETIC DATA" in net.note
    figure, words = net.responses(3)
    assert "UNTRAINED" in texts(figure) and len(figure.axes) == 4 * 9 and "the network says" in words
    figure, table = net.confused(10)
    assert len(table) == 10 and (table.truth != table.answer).all() and "UNTRAINED" in texts(figure)


def test_the_best_finished_net_with_weights_is_taken(folder):
    small = {"iterations": 4, "batch_size": 16, "eval_every": 4, "train_size": 64, "test_size": 50, "precision": "fp32"}
    execution = Execution(device="cpu")
    summaries = {}
    for model in ("plain8", "resnet8", "nin"):
        recipe = Recipe(model, "synthetic", **small, lr=0.01)
        summaries[recipe.run_name] = train(recipe, folder.runs_dir, execution=execution, say=lambda text: None)
    mine = {name: s["test_error"] for name, s in summaries.items() if not name.startswith("nin")}
    best = min(mine, key=lambda name: (mine[name], name))
    train(Recipe("plain8", "synthetic", **small, lr=0.01, nesterov=True), folder.runs_dir, execution=execution, say=str)
    nets = explore.Nets(folder)  # without the deviating run
    title = {name: f"{'ResNet' if name[0] == 'r' else 'plain'}-8, seed 0, {100 * mine[name]:.2f} %" for name in mine}
    assert nets.names == [title[name] for name in sorted(mine, key=lambda name: (mine[name], name))]
    net = nets.best
    assert net.note.startswith(f"{best}, test error") and net.recipe.run_name == best
    _, x, labels = net.images(50)  # what it says of the run's own test images is what the run recorded
    with torch.no_grad():
        assert (net.model(x).argmax(1) != labels).double().mean().item() == pytest.approx(mine[best])
    for name in mine:  # each of them can be chosen
        figure, _ = nets.responses(title[name], 0)
        assert name in texts(figure)
        figure, table = nets.confused(title[name], 5)
        assert name in texts(figure) and len(table) == 5
    for name in mine:
        (folder.runs_dir / name / "weights.safetensors").unlink()
    assert explore.Nets(folder).best.note.startswith("UNTRAINED")


@pytest.fixture
def shown(monkeypatch):
    """What reaches the notebook: [thing, its later versions ...] per display, and controls."""
    display_module = pytest.importorskip("IPython.display", reason="IPython is not installed")
    things = []

    def display(thing, display_id=False, **more):
        versions = [thing]
        things.append(versions)
        return SimpleNamespace(update=versions.append)

    monkeypatch.setattr(display_module, "display", display)
    return things


def test_a_panel_without_widgets_shows_its_first_choice(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    explore.panel(lambda depth, kind: (depth, kind), depth=(20, 56), kind="ab")
    assert shown == [[20], ["a"]]


def test_a_panel_draws_anew_in_place(shown):
    pytest.importorskip("ipywidgets", reason="ipywidgets is not installed")

    def show(depth, kind):
        if depth == 21:
            raise UserError("no such depth")
        return depth, kind

    explore.panel(show, depth=(20, 56, 21), kind="ab")
    controls, depth, kind = shown
    controls[0].children[0].value = 56
    controls[0].children[1].value = "b"
    assert depth == [20, 56, 56] and kind == ["a", "a", "b"]
    controls[0].children[0].value = 21
    assert depth[-1].data == "**no such depth**" and len(shown) == 3


def test_confusion_by_hand(folder):
    """The untrained network is replaced by one that calls every image of class 0 a 1, and knows all others."""
    net = explore.Nets(folder).best
    labels = net.images(300)[2]
    answers = torch.nn.functional.one_hot(torch.where(labels == 0, 1, labels), 10).float()

    class Knows(nn.Module):
        asked = 0

        def forward(self, x):
            found = answers[self.asked : self.asked + len(x)]
            self.asked += len(x)
            return found

    net.model = Knows()
    figure, text = net.confusion(300)
    first, second = net.source.classes[:2]
    assert text == f"most often: 100 % of {first} are taken for {second}"
    shown = [t.get_text() for t in figure.axes[0].texts]
    assert len(shown) == 100 and shown[:3] == ["0", "100", "0"] and shown[11] == "100"
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == net.source.classes
    assert "300 test images" in texts(figure) and "SYNTHETIC" in texts(figure)


def test_records_are_tidy_and_in_percent(folder):
    for model, error in (("resnet20", 0.25), ("plain20", 0.5)):
        write_run(folder.runs_dir, Recipe(model, iterations=4, eval_every=2, dataset="synthetic"), error=error)
    write_run(folder.runs_dir, Recipe("plain20", iterations=4, eval_every=2, dataset="synthetic", nesterov=True))
    write_run(folder.runs_dir, Recipe("resnet18", iterations=4, eval_every=2, dataset="imagenette"))
    write_run(folder.runs_dir, Recipe("resnet32", iterations=4, eval_every=2, dataset="synthetic"), stop_at=2)
    rows = explore.records(folder)
    assert "synthetic" in rows.attrs["evidence"] and rows.attrs["evidence"].startswith("SYNTHETIC DATA")
    assert len(rows) == 2 * 2 * 2 and list(rows["network"].unique()) == ["plain-20", "ResNet-20"]
    last = rows[(rows["iteration"] == 4) & (rows["of"] == "test images")].set_index("network")["error (%)"]
    assert last.to_dict() == {"plain-20": 50.0, "ResNet-20": 25.0}
    train = rows[(rows["iteration"] == 2) & (rows["of"] == "training images")].set_index("network")["error (%)"]
    assert train.to_dict() == pytest.approx({"plain-20": 55.0, "ResNet-20": 30.0})


def test_without_records_there_are_none(folder):
    assert len(explore.records(folder)) == 0
