"""A run's network for others: `python -m reslib.export RUN_FOLDER OUT_FOLDER` writes config.json and model.safetensors.

That is the layout that timm and the Hugging Face hub read. Parameter names are torchvision's, so an ImageNet network
with shortcuts of option B loads into torchvision's and timm's resnets as it is. In timm:

    model = timm.create_model("resnet34", checkpoint_path="OUT_FOLDER/model.safetensors")

In reslib, whatever the network: `reslib.export.load("OUT_FOLDER")`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from . import data
from .data.memory import normalisation, split
from .errors import UserError
from .files import sha256, write_json, write_text
from .models import build_model, family_and_depth, is_imagenet
from .recipe import Recipe, parse_options
from .runs import read_json, read_weights, write_weights
from .train import load_network

LIBRARY = "reslib"
LICENSE = "MIT"


def export(run: str | Path, out: str | Path, data_root: str | Path | None = None) -> Path:
    """Write config.json, model.safetensors and README.md of a finished run into the folder `out`.

    The mean that training subtracted is measured on its training images, which must be at hand (`data_root`).
    Raises UserError when the run has no weights here or the data are not those it was trained on.
    """
    run, out = Path(run), Path(out)
    model, recipe = load_network(run)
    summary = read_json(run / "summary.json")
    source = data.load(recipe.dataset, data_root)
    if summary.get("data_fingerprint") != source.fingerprint:
        raise UserError(f"{run}: trained on data {summary.get('data_fingerprint')}, here is {source.fingerprint}")
    out.mkdir(parents=True, exist_ok=True)
    write_weights(out / "model.safetensors", model)
    config = config_of(recipe, summary, source) | {"weights_sha256": sha256(out / "model.safetensors")}
    write_json(out / "config.json", config)
    write_text(out / "README.md", _card(config))
    return out


def config_of(recipe: Recipe, summary: dict, source: data.DataSource) -> dict:
    """config.json: the keys that timm reads, then what reslib needs to build the network, then the evidence."""
    train = split(source, recipe)[0]
    mean, scale = _statistics(train.images, recipe)
    features = _features(recipe.model)
    size = recipe.crop_size
    pretrained = {
        "input_size": [3, size, size],
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": 1.0 if size == source.train.images.shape[1] else 0.875,
        "mean": mean,  # of values in 0..1, as torchvision's ToTensor gives them
        "std": scale,
        "num_classes": summary["classes"],
        "pool_size": [size // 32, size // 32] if is_imagenet(recipe.model) else [size // 4, size // 4],
        "first_conv": "conv1",
        "classifier": "fc",
        "label_names": source.classes,
    }
    return {
        "architecture": recipe.model,
        "num_classes": summary["classes"],
        "num_features": features,
        "global_pool": "avg",
        "pretrained_cfg": pretrained,
        "library_name": LIBRARY,
        "reslib": {
            "model": recipe.model,
            "shortcut": recipe.shortcut if family_and_depth(recipe.model)[1] else None,
            "options": recipe.options,
            "preprocessing": recipe.preprocessing,
            "recipe": recipe.to_dict(),
            "recipe_hash": recipe.digest,
        },
        "evidence": {
            key: summary.get(key)
            for key in ("test_error", "seconds", "precision", "device_name", "torch", "commit", "dirty", "started",
                        "finished", "data_fingerprint", "data_origin", "synthetic", "metrics_sha256")
        },
    }  # fmt: skip


def load(folder: str | Path) -> nn.Module:
    """The network of an exported folder, in evaluation mode: normalised images (N, 3, H, W) -> logits (N, classes)."""
    config = read_json(Path(folder) / "config.json")
    try:
        own = config["reslib"]
        model = build_model(own["model"], config["num_classes"], own["shortcut"], **parse_options(own["options"]))
    except KeyError as error:
        raise UserError(f"{Path(folder) / 'config.json'} has no {error}: it was not exported by reslib") from error
    load_weights(model, folder)
    return model.eval()


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a safetensors file, or the one in a run's or an exported folder. UserError names what does not fit."""
    path = Path(path).expanduser()
    if path.is_dir():
        names = ("model.safetensors", "weights.safetensors")
        path = next((path / name for name in names if (path / name).exists()), path / names[0])
    state = read_weights(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(f"{path} does not fit this network: {'; '.join(lines[1:4])[:400]}") from error


def _statistics(images: torch.Tensor, recipe: Recipe) -> tuple[list[float], list[float]]:
    """Per channel, the mean and the divisor of values in 0..1; the paper's pixel mean is averaged over the pixels."""
    size = 2000 if images.shape[1] <= 64 else 200
    if recipe.augmentation == "scale-crop-flip-color" or images.ndim != 4:
        sample = images[:size]
        return (sample.double().mean((0, 1, 2)) / 255).tolist(), [1.0, 1.0, 1.0]
    mean, scale = normalisation(images, recipe.preprocessing)
    return (mean.mean((0, 1)).double() / 255).tolist(), (1 / (scale.double() * 255)).tolist()


def _features(name: str) -> int | None:
    family, depth = family_and_depth(name)
    if not depth:
        return None
    return build_on_meta(name).fc.in_features


def build_on_meta(name: str) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return build_model(name)


def _card(config: dict) -> str:
    own, facts = config["reslib"], config["evidence"]
    loud = "**SYNTHETIC DATA: not a network for natural images.**\n\n" if facts["synthetic"] else ""
    return (
        f"---\nlicense: {LICENSE.lower()}\nlibrary_name: {LIBRARY}\ntags: [image-classification]\n---\n"
        f"# {own['model']} on {own['recipe']['dataset']}\n\n{loud}"
        f"Deep Residual Learning (He et al., 2015), trained by reslib: recipe {own['recipe_hash']}, seed "
        f"{own['recipe']['seed']}, test error {100 * facts['test_error']:.2f} % at the last iteration, commit "
        f"{facts['commit']}, {facts['device_name']}, torch {facts['torch']}, data {facts['data_fingerprint']}.\n\n"
        f"Images are {own['preprocessing']} normalised. `reslib.export.load(folder)` builds the network.\n"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reslib.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a finished run, with its weights.safetensors")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--data-root", default=None, help="folder with the data sets (default: $RESLIB_DATA)")
    arguments = parser.parse_args(argv)
    try:
        print(export(arguments.run, arguments.out, arguments.data_root))
    except UserError as error:
        print(f"reslib: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
