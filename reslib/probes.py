"""What the layers do: responses of trained networks (Figure 7), and the norms of the signals at the start of training.

A layer's response is its output after batch norm and before the nonlinearity or the addition, as in Figure 7. Layers
are the 3x3 ones in order from the image: the stem and both convolutions of every block, not the shortcuts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import data, evidence, provenance
from .engine import Step, make_optimizer, set_learning_rate
from .errors import UserError
from .files import sha256
from .gradient_plan import budget_of, nets
from .measure import exact_statistics
from .names import family_and_depth
from .networks import load_network, make_model
from .numerics import in_double
from .presets import Preset
from .recipe import Recipe, parse_options
from .schedule import learning_rate

STATISTICS_IMAGES = 1000
RESPONSES = ["run", "model", "family", "depth", "seed", "synthetic", "layer", "std", "key"]  # columns
KINDS = ("activation", "gradient", "backward")
COLUMNS = [
    "kind", "model", "family", "depth", "seed", "init", "batch_norm", "iteration", "layer", "norm", "synthetic",
    "evidence",  # preset, data and hardware in words: the figure is drawn from this table alone
    "key",  # of the measurement, see measurement_key
]  # fmt: skip


def measurement_key(*what) -> str:
    """Sixteen hexadecimal digits over what is measured, this code and this PyTorch: the same is not measured again."""
    return hashlib.sha256(
        json.dumps([provenance.source(), str(torch.__version__), *map(str, what)]).encode()
    ).hexdigest()[:16]


def layers(model: nn.Module) -> list[tuple[nn.Conv2d, nn.Module]]:
    """(3x3 convolution, the module whose output is its response) in order from the image.

    With pre-activation no batch norm follows a convolution, whose own output is then the response.
    """
    if not hasattr(model, "stages"):
        raise UserError(f"responses of a {type(model).__name__} are not defined: allowed are plain and residual nets")
    pairs = [(model.conv1, model.bn1)]
    for stage in model.stages:
        for block in getattr(model, stage):
            pairs += [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if model.preactivation:
        pairs = [(conv, conv) for conv, _ in pairs]
    return [(conv, response) for conv, response in pairs if conv.kernel_size == (3, 3)]


@torch.no_grad()
def layer_responses(model: nn.Module, batches: Iterable, name: str = "") -> pd.DataFrame:
    """Standard deviation of each layer's response over all images, channels and positions, in eval mode.

    batches: images (N, 3, H, W), or pairs of them with labels. Columns model (`name`), layer (from 1), std.
    """
    watched = [response for _, response in layers(model)]
    moments = [Moments() for _ in watched]
    was_training = model.training
    model.eval()
    hooks = [(module, _forward_hook(m.add)) for module, m in zip(watched, moments, strict=True)]
    try:
        with _hooked(hooks):
            for batch in batches:
                model(batch if isinstance(batch, Tensor) else batch[0])
    finally:
        model.train(was_training)
    if not moments[0].count:
        raise UserError("layer responses need at least one batch of images")
    return pd.DataFrame({"model": name, "layer": range(1, len(moments) + 1), "std": [m.std for m in moments]})


class Moments:
    """Mean and variance of numbers that come in batches, in float64 (Chan et al. 1979)."""

    def __init__(self):
        self.count, self.mean, self.squares = 0, 0.0, 0.0

    def add(self, x: Tensor) -> None:
        """Take more values into account."""
        x = in_double(x.detach())
        count, mean = x.numel(), x.mean().item()
        squares = (x - mean).square().sum().item()
        delta, total = mean - self.mean, self.count + count
        self.squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The standard deviation of all values so far (ddof = 0)."""
        return (self.squares / self.count) ** 0.5


def responses_of_runs(
    runs: pd.DataFrame, data_root=None, device="cpu", known: pd.DataFrame | None = None, measure: bool = True
):
    """Layer responses of the finished runs over their test images: (frame, names of runs that could not be measured).

    Batch norm holds exact statistics, of STATISTICS_IMAGES training images, as the ImageNet models that the authors
    released do: moving averages would mix a short run's responses with those of its first steps.
    As `of_runs`. Columns: RESPONSES.
    """
    prepared = {}

    def measured(model: nn.Module, recipe: Recipe) -> pd.DataFrame:
        return _responses(model, images_of(recipe, data_root, device, prepared), torch.device(device))

    frame, missing = of_runs(runs, measured, RESPONSES, device, known, measure)
    return frame.astype({"std": float}), missing


def of_runs(
    runs: pd.DataFrame, measured: Callable, columns: list[str], device="cpu", known: pd.DataFrame | None = None,
    measure: bool = True,
):  # fmt: skip
    """What `measured(network, recipe)` gives of each finished run: (frame, names of runs without weights here).

    What `known`, an earlier frame, has of the same weights by the same code is not measured again; of a run without
    weights here, as in a clone that holds the records only, it is taken as it is, and of all where nothing is to be
    measured (measure=False). columns: of the frame; those that
    a run's record has are its, the last is the key of the measurement.
    """
    frames, missing = [], []
    known = pd.DataFrame(columns=columns) if known is None else known.reindex(columns=columns)
    for row in evidence.finished(runs).sort_values(["family", "depth", "seed"]).to_dict("records"):
        weights, before = Path(row["path"]) / "weights.safetensors", known[known["run"] == row["run"]]
        key = measurement_key(sha256(weights), device) if measure and weights.exists() else ""
        if len(before) and (not key or before["key"].eq(key).all()):
            frames.append(before)
        elif key:
            model, recipe = load_network(Path(row["path"]))
            model.to(device, memory_format=torch.channels_last)
            frame = measured(model, recipe)
            named = {name: row[name] for name in columns[:-1] if name in row}
            frames.append(frame.assign(**named, key=key))
        else:
            missing.append(row["run"])
    if not frames:
        return pd.DataFrame(columns=columns), missing
    return pd.concat(frames, ignore_index=True)[columns], missing


def images_of(recipe: Recipe, data_root, device, prepared: dict):
    """The batches that a run of this recipe tests on; runs that differ in the network alone share those `prepared`."""
    images = recipe.replace(model="resnet20", seed=0, options="", shortcut="A", warmup_lr=0.0, teacher="")
    if images.digest not in prepared:
        source = data.load(recipe.dataset, data_root)
        prepared[images.digest] = data.batches_for(images, source, torch.device(device))
    return prepared[images.digest]


def _responses(model: nn.Module, batches, device: torch.device) -> pd.DataFrame:
    wanted = min(STATISTICS_IMAGES, len(batches))
    with exact_statistics(model, batches.sample(wanted // 2 * 2, wanted // 2), device):
        return layer_responses(model, batches.eval_batches("test"))


# --- Signals at the start of training --------------------------------------------------------------------------------


def gradient_norms(model: nn.Module, x: Tensor, y: Tensor) -> pd.DataFrame:
    """Norms of one forward and backward pass in training mode: columns kind, layer (from 1), norm.

    kind "activation": root mean square of the layer's response; "gradient": L2 norm of the gradient of the mean loss
    with respect to the layer's weights; "backward": L2 norm of the gradient with respect to the response, the signal
    propagated backward. Zero stays zero, an overflow inf or NaN. The model is left as it was.
    """
    pairs = layers(model)
    activation, backward = [float("nan")] * len(pairs), [0.0] * len(pairs)

    def watch(index):
        def look(response):
            activation[index] = _norm(response) / response.numel() ** 0.5
            # A hook of the tensor and not of the module: the ReLU that follows works in place.
            response.register_hook(lambda gradient: backward.__setitem__(index, _norm(gradient)))

        return _forward_hook(look)

    was_training, buffers = model.training, [b.clone() for b in model.buffers()]
    model.train()
    try:
        with _hooked([(response, watch(i)) for i, (_, response) in enumerate(pairs)]):
            loss = F.cross_entropy(model(x), y)
            gradients = torch.autograd.grad(loss, [conv.weight for conv, _ in pairs])
    finally:
        model.train(was_training)
        with torch.no_grad():
            for buffer, old in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(old)
    norms = {"activation": activation, "gradient": [_norm(g) for g in gradients], "backward": backward}
    rows = [(kind, layer, norm) for kind in KINDS for layer, norm in enumerate(norms[kind], start=1)]
    return pd.DataFrame(rows, columns=["kind", "layer", "norm"])


def norms_along_training(recipe: Recipe, source, device, at: Iterable[int], batches=None) -> pd.DataFrame:
    """`gradient_norms` at the iterations `at` of training by `recipe`, in fp32; columns iteration, kind, layer, norm.

    Measured on the first training batch, always the same. Training stops where the loss is no longer a number: what
    follows is NaN.
    """
    batches = batches or data.batches_for(recipe, source, device)
    model = make_model(recipe, len(source.classes), Path()).to(device, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(recipe, model, device)
    step = Step(recipe, model, optimizer, device, "fp32")
    x, y = batches.batch(0)
    frames, rate, alive, done = [], recipe.lr, True, 0
    for target in sorted(set(at)):
        while alive and done < target:
            lr = learning_rate(recipe, done, False, [])
            set_learning_rate(optimizer, lr, rate)
            rate = lr
            loss, _ = step(*batches.batch(done), done)
            alive = bool(torch.isfinite(loss))
            done += 1
        frame = gradient_norms(model, x, y) if alive else frames[-1].assign(norm=float("nan"))
        frames.append(frame.assign(iteration=target))
    return pd.concat(frames, ignore_index=True)


def gradient_study(
    preset: Preset,
    dataset: str,
    data_root=None,
    device="cpu",
    seeds: int = 0,
    known: pd.DataFrame | None = None,
    on_net: Callable | None = None,
) -> pd.DataFrame:
    """The nets of `gradient_plan`, as they start and along the first iterations of training by the study's recipe.

    seeds: of initial weights and images; 0 is the preset's number. known: an earlier measurement, returned if it is
    this one. on_net(recipe) is called before each net. Columns: COLUMNS.
    """
    budget, device, source = budget_of(preset), torch.device(device), data.load(dataset, data_root)
    measured_on = f"preset {preset.name} · data {dataset} ({source.fingerprint}) · {provenance.device_name(device)}"
    key = measurement_key(preset, budget, measured_on, preset.seeds_of("", seeds))
    if known is not None and "key" in known and known["key"].eq(key).all():
        return known[COLUMNS]
    frames, batches = [], {}
    for recipe in nets(preset, dataset, seeds):
        if on_net:
            on_net(recipe)
        if recipe.seed not in batches:  # the same images for every net of a seed
            batches[recipe.seed] = data.batches_for(recipe, source, device)
        frame = norms_along_training(recipe, source, device, budget.at, batches=batches[recipe.seed])
        options, (family, depth) = parse_options(recipe.options), family_and_depth(recipe.model)
        net = {"model": recipe.model, "family": family, "depth": depth, "seed": recipe.seed, "init": options["init"]}
        frames.append(frame.assign(**net, batch_norm=options.get("batch_norm", True), synthetic=source.synthetic))
    return pd.concat(frames, ignore_index=True).assign(evidence=measured_on, key=key)[COLUMNS]


def _norm(x: Tensor) -> float:
    """L2 norm; squared in float64, where the squares of float32 neither vanish nor overflow."""
    return torch.linalg.vector_norm(in_double(x.detach())).item()


def _forward_hook(look: Callable[[Tensor], None]):
    return lambda module, inputs, output: look(output)


@contextlib.contextmanager
def _hooked(hooks: list):
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
