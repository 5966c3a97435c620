"""What the notebook `explore` shows: a network to choose, what its layers do with an image, and where it is wrong.

`panel` draws its output as ordinary cell output, so that it is there under papermill and nbval and in a saved notebook;
where ipywidgets is installed and a front end is listening, its controls draw the same output anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

from . import complexity, data, figures, paper
from .data.draws import few_of
from .errors import UserError
from .evidence import evidence_line, finished, loud, main_runs
from .figures.style import SYNTHETIC_NOTE, new_figure
from .models import build_model, is_imagenet
from .networks import load_network, make_model
from .presets import cifar_recipe
from .recipe import Recipe
from .records import load_curves, load_runs

CHANNELS = 8  # feature maps drawn per stage
IMAGES = 500  # test images among which the most confused are looked for
BOTTLENECK = (50, 101, 152)
UNTRAINED = "UNTRAINED resnet20"


def panel(show: Callable, **choices: Sequence) -> None:
    """Display what `show(**values)` returns (a tuple of things to display), with a control for each of `choices`.

    Starts with the first value of each. A UserError of `show` is displayed as its message.
    """
    from IPython.display import display

    values = {name: options[0] for name, options in choices.items()}
    controls = _controls(choices)
    if controls:
        from ipywidgets import HBox, Layout

        display(HBox(list(controls.values()), layout=Layout(flex_flow="row wrap")))
    handles = [display(part, display_id=True) for part in _shown(show, values)]

    def redraw(change=None):
        chosen = {name: control.value for name, control in controls.items()}
        for handle, part in zip(handles, _shown(show, chosen), strict=False):
            handle.update(part)

    for control in controls.values():
        control.observe(redraw, names="value")


def _controls(choices: dict) -> dict:
    try:
        from ipywidgets import Dropdown
    except ImportError:
        return {}
    return {n: Dropdown(options=list(o), value=o[0], description=n.replace("_", " ")) for n, o in choices.items()}


def _shown(show: Callable, values: dict) -> tuple:
    from IPython.display import Markdown

    try:
        return show(**values)
    except UserError as error:
        return (Markdown(f"**{error}**"), Markdown(""))


def network(family: str, depth: int, shortcut: str = "A") -> tuple[Figure, pd.DataFrame]:
    """The block diagram of a network, and its layers, parameters and multiply-adds beside the paper's."""
    name = f"{family}{depth}"
    imagenet = is_imagenet(name)
    model = build_model(name, 1000 if imagenet else 10, shortcut)
    size = 224 if imagenet else 32
    quoted, printed = paper.TABLE6.get(name), paper.MULTIPLY_ADDS.get(name)
    facts = {
        "network": f"{name}, option {shortcut}" if family == "resnet" else f"{name} (no shortcuts)",
        "image": f"{size} x {size}",
        "weighted layers": f"{complexity.weighted_layers(model)}",
        "parameters": f"{complexity.parameters(model):,}",
        "multiply-adds": f"{complexity.multiply_adds(model, size):,}",
    }
    if quoted and quoted.parameters:
        facts["parameters (paper)"] = f"{quoted.parameters / 1e6:g}M"
    if printed:
        facts["multiply-adds (paper)"] = f"{printed / 1e9:g} billion"
    diagram = figures.block_diagram(family, depth in BOTTLENECK, shortcut)
    return diagram, pd.DataFrame({"": facts})


@dataclass
class Net:
    """A network to look into, with the data that it was trained for."""

    model: nn.Module
    recipe: Recipe
    source: data.DataSource
    note: str  # whether it is trained, and the synthetic data: stands in every figure

    def images(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Test images, the first or of a set sorted by class a mixture, always the same: pixels uint8 (N, H, W, 3),
        what the network sees (N, 3, H, W), labels (N,)."""
        test = self.source.test
        some = test.take(few_of(test.labels, len(test))[:count])
        batches = data.batches_for(self.recipe.replace(test_size=0), self.source, torch.device("cpu"))
        return some.images, batches.whole(some.images), some.labels

    def responses(self, image: int = 0) -> tuple[Figure, str]:
        """What the stages make of one test image."""
        pixels, x, labels = self.images(image + 1)
        name = self.source.classes[int(labels[image])]
        maps = stage_responses(self.model, x[image : image + 1])
        with torch.no_grad():
            chances = self.model(x[image : image + 1]).softmax(1)[0]
        best = ", ".join(f"{self.source.classes[i]} {chances[i]:.0%}" for i in chances.topk(3).indices.tolist())
        return response_figure(pixels[image], maps, f"{name}; {self.note}"), f"{name}: the network says {best}"

    def confused(self, count: int = 16) -> tuple[Figure, pd.DataFrame]:
        """The test images whose wrong class gets the highest probability."""
        pixels, x, labels = self.images(IMAGES)
        worst = most_confused(self.model, x, labels, count)
        names = self.source.classes
        worst = worst.assign(truth=[names[i] for i in worst.label], answer=[names[i] for i in worst.predicted])
        titles = [
            f"{a}\nnot {t}, {p:.0%}" for a, t, p in zip(worst.answer, worst.truth, worst.probability, strict=True)
        ]
        shown = pixels[torch.tensor(worst.image.to_numpy())].permute(0, 3, 1, 2)
        figure = figures.image_grid(shown, titles) if len(worst) else new_figure(4, 1)[0]
        figure.suptitle(f"Most confident mistakes among {len(labels)} test images\n{self.note}", fontsize=9)
        return figure, worst[["image", "truth", "answer", "probability"]]

    @torch.no_grad()
    def confusion(self, count: int = 2000) -> tuple[Figure, str]:
        """Which classes it takes for which: a heat map in % of each class's test images, and the commonest mistake."""
        import seaborn  # half a second that nothing else here needs

        _, x, labels = self.images(count)
        answers = torch.cat([self.model.eval()(part).argmax(1) for part in x.split(IMAGES)])
        names = self.source.classes
        pairs = (pd.Categorical.from_codes(codes.tolist(), names) for codes in (labels, answers))
        shares = 100 * pd.crosstab(*pairs, rownames=["truth"], colnames=["answer"], normalize="index", dropna=False)
        figure, axes = new_figure(6.4, 5.6)
        seaborn.heatmap(shares, ax=axes[0][0], annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, cbar=False,
                        square=True, linewidths=0.5, annot_kws={"size": 8})  # fmt: skip
        axes[0][0].grid(False)
        figure.suptitle(f"Answers in % of each class, {len(labels)} test images\n{self.note}", fontsize=9)
        wrong = shares.mask(np.eye(len(names), dtype=bool)).stack()
        truth, answer = wrong.idxmax()
        return figure, f"most often: {wrong.max():.0f} % of {truth} are taken for {answer}"


def records(folder) -> pd.DataFrame:
    """The curves of a `reslib.notebook` folder as a tidy frame, a row per run, evaluation and kind of error.

    Of the finished runs on CIFAR-10 or its stand-in, of each network those by the recipe nearest the paper's.
    Columns: network, depth, seed, run, iteration, "of" (training images or test images), "error (%)". The line of
    evidence is in `attrs["evidence"]`.
    """
    runs = load_runs(folder.runs_dir)
    runs = main_runs(finished(runs[runs["dataset"] == folder.dataset("cifar")]))
    curves = load_curves(runs).sort_values(["family", "depth", "seed", "iteration"])
    curves = curves.assign(network=curves["model"].map(paper.label))
    kinds = {"train_error": "training images", "test_error": "test images"}
    rows = curves.rename(columns=kinds).melt(
        ["network", "depth", "seed", "run", "iteration"], list(kinds.values()), "of", "error (%)"
    )
    rows = rows.assign(**{"error (%)": 100 * rows["error (%)"]})
    rows.attrs["evidence"] = loud(runs) + evidence_line(runs)
    return rows


class Nets:
    """The finished plain and residual nets of a `reslib.notebook` folder whose weights are there, the lowest test error
    first (of a network trained by several recipes those nearest the paper's); without one an untrained ResNet-20, which
    says so. A network is loaded when it is looked at."""

    def __init__(self, folder):
        self.folder, self.dataset = folder, folder.dataset("cifar")
        runs = load_runs(folder.runs_dir)
        weights = runs["path"].map(lambda path: (Path(path) / "weights.safetensors").exists()).astype(bool)
        mine = runs[(runs["status"] == "finished") & (runs["dataset"] == self.dataset)]
        mine = main_runs(mine[mine["family"].isin(("plain", "resnet"))]).sort_values(["test_error", "run"])
        mine = mine[weights[mine.index]]
        rows = mine.to_dict("records")
        self.runs = {f"{paper.label(r['model'])}, seed {r['seed']}, {100 * r['test_error']:.2f} %": r for r in rows}
        self.source = data.load(self.dataset, folder.data_root)
        self.loaded: dict[str, Net] = {}

    @property
    def names(self) -> list[str]:
        """Network, seed and test error of the runs, best first."""
        return list(self.runs) or [UNTRAINED]

    @property
    def best(self) -> Net:
        """The network with the lowest test error."""
        return self[self.names[0]]

    def __getitem__(self, name: str) -> Net:
        if name not in self.loaded:
            self.loaded[name] = self._load(name)
        return self.loaded[name]

    def responses(self, net: str, image: int = 0) -> tuple[Figure, str]:
        """What the stages of a network make of one test image."""
        return self[net].responses(image)

    def confused(self, net: str, count: int = 16) -> tuple[Figure, pd.DataFrame]:
        """The test images that a network is surest about and wrong."""
        return self[net].confused(count)

    def confusion(self, net: str) -> tuple[Figure, str]:
        """Which classes a network takes for which."""
        return self[net].confusion()

    def _load(self, name: str) -> Net:
        if name in self.runs:
            run = self.runs[name]
            model, recipe = load_network(Path(run["path"]))
            note = f"{run['run']}, test error {100 * run['test_error']:.2f} %"
        else:
            recipe = cifar_recipe(UNTRAINED.split()[-1], self.folder.preset, self.dataset)
            model = make_model(recipe, len(self.source.classes), self.folder.runs_dir).eval()
            note = f"{UNTRAINED}: no finished run with weights in {self.folder.runs_dir.name}/"
        return Net(model, recipe, self.source, note + (f"\n{SYNTHETIC_NOTE}" if self.source.synthetic else ""))


@torch.no_grad()
def stage_responses(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output of the first layer and of every stage for one image x (1, 3, H, W): maps (C, h, w) by name."""
    maps = {}

    def keep(name, output):  # a hook that returned something would replace the layer's output
        maps[name] = output[0].clone()

    stages = {"conv1": model.relu, **{name: getattr(model, name)[-1] for name in model.stages}}
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: keep(name, output))
        for name, module in stages.items()
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


def response_figure(pixels: torch.Tensor, maps: dict[str, torch.Tensor], note: str) -> Figure:
    """The image (H, W, 3) and, per stage, the feature maps that vary most over it, each in its own range."""
    figure, axes = new_figure(1.05 * (CHANNELS + 1), 1.15 * len(maps) + 0.8, len(maps), CHANNELS + 1)
    for axis in axes.flat:
        axis.axis("off")
    axes[0][0].imshow(pixels.numpy(), interpolation="nearest")
    axes[0][0].set_title("image", fontsize=8)
    for row, (name, stage) in zip(axes, maps.items(), strict=True):
        chosen = stage.flatten(1).std(1).topk(min(CHANNELS, len(stage))).indices.tolist()
        row[1].set_title(f"{name}: {len(stage)} maps, {stage.shape[1]} x {stage.shape[2]}", fontsize=8, loc="left")
        for axis, channel in zip(row[1:], chosen, strict=False):
            axis.imshow(stage[channel].numpy(), cmap="magma", interpolation="nearest")
    figure.suptitle(note, fontsize=9)
    return figure


@torch.no_grad()
def most_confused(model: nn.Module, x: torch.Tensor, labels: torch.Tensor, count: int) -> pd.DataFrame:
    """Columns image, label, predicted, probability (of the wrong answer): the surest mistakes first; no others."""
    chances = model.eval()(x).float().softmax(1)
    probability, predicted = chances.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[probability[wrong].argsort(descending=True, stable=True)][:count]
    return pd.DataFrame(
        {
            "image": order.tolist(),
            "label": labels[order].tolist(),
            "predicted": predicted[order].tolist(),
            "probability": [round(p, 4) for p in probability[order].tolist()],
        }
    )
