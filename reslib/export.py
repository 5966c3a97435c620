"""A run's network for others: `python -m reslib.export RUN_FOLDER OUT_FOLDER` writes config.json and model.safetensors.

That is the layout that timm and the Hugging Face hub read. timm makes the network, with its weights, by

    model = timm.create_model("local-dir:OUT_FOLDER", pretrained=True)

after `import reslib.timm_models`, unless the network is torchvision's and timm's own: an ImageNet network with
shortcuts of option B (and the stride on the 3x3 layer of a bottleneck). config.json names its architecture, and the
command says which of the two it is. Parameter names are torchvision's. Without timm:
`reslib.export.load("OUT_FOLDER")`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from . import data, sources
from .cli import name_given
from .errors import UserError
from .files import folder_of, make_folder, sha256, whole_file, write_json, write_text
from .models import build_model, family_and_depth, is_imagenet
from .networks import load_network, why_no_weights
from .recipe import Recipe, parse_options
from .runs import read_json, read_weights, write_weights

LIBRARY = "reslib"
CARD = "README.md"
WRITTEN = (CARD, "config.json", "model.safetensors", "normalisation.safetensors")
OWN = "reslib"  # the architecture that timm_models.py registers
LICENSE = "MIT"


def export(run: str | Path, out: str | Path, data_root: str | Path | None = None) -> Path:
    """Write config.json, model.safetensors, normalisation.safetensors and README.md of a finished run into `out`.

    normalisation.safetensors holds `mean` (3, H, W) or (3, 1, 1) and `std` (3, 1, 1) of values in 0..1, exactly as in
    training; they are measured again on its training images, which must be at hand (`data_root`).
    Raises UserError when the run has no weights here or the data are not those it was trained on.
    """
    run, out = Path(run), folder_of("folder", out)
    if not _exported(out):
        for name in WRITTEN:
            if (out / name).exists():
                raise UserError(f"{str(out)!r} has a {name} that is none of an export: name a folder of its own")
    model, recipe = load_network(run)
    summary = sources.resolved(read_json(run / "summary.json"), sources.beside(run.resolve()))
    source = data.load(recipe.dataset, data_root)
    if summary.get("data_fingerprint") != source.fingerprint:
        raise UserError(f"{run}: trained on data {summary.get('data_fingerprint')}, here is {source.fingerprint}")
    mean, std = normalisation(recipe, source)
    make_folder(out)
    write_weights(out / "model.safetensors", model)
    with whole_file(out / "normalisation.safetensors", "wb") as file:
        file.write(safetensors.torch.save({"mean": mean, "std": std}))
    config = _config(model, recipe, summary, source.classes, mean.mean((1, 2)).tolist(), std.flatten().tolist())
    write_json(out / "config.json", config | {"weights_sha256": sha256(out / "model.safetensors")})
    write_text(out / CARD, _card(config))
    return out


def _exported(out: Path) -> bool:
    """Whether a folder is that of an earlier export."""
    try:
        return "weights_sha256" in read_json(out / "config.json")
    except UserError:
        return False


def normalisation(recipe: Recipe, source: data.DataSource) -> tuple[torch.Tensor, torch.Tensor]:
    """mean (3, H, W) or (3, 1, 1) and std (3, 1, 1) of a recipe: the input is (image in 0..1 - mean) / std."""
    batches = data.batches_for(recipe, source, torch.device("cpu"))
    if isinstance(batches, data.MemoryBatches):  # mean (H, W, 3) in grey levels and a factor (3,)
        return (batches.mean / 255).permute(2, 0, 1).contiguous(), (1 / (255 * batches.scale)).view(3, 1, 1)
    std = batches.std if recipe.preprocessing == "channel-std" else torch.ones(3)
    return batches.mean.view(3, 1, 1), std.view(3, 1, 1)


def _config(model: nn.Module, recipe: Recipe, summary: dict, classes: list[str], mean: list, std: list) -> dict:
    """config.json: the keys that timm reads, then what reslib needs to build the network, then the evidence."""
    size, known = recipe.crop_size, family_and_depth(recipe.model)[1] > 0
    elsewhere = is_torchvision(model, recipe)
    own = {"model": recipe.model, "shortcut": recipe.shortcut if known else None, "options": recipe.options}
    evidence = ("test_error", "precision", "device_name", "torch", "commit", "dirty", "started", "finished",
                "data_fingerprint", "data_origin", "synthetic", "metrics_sha256")  # fmt: skip
    return {
        "architecture": recipe.model if elsewhere else OWN,
        **({} if elsewhere else {"model_args": own}),
        "num_classes": len(classes),
        "num_features": model.fc.in_features if known else None,
        "global_pool": "avg",
        "label_names": classes,
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 224 / 256 if is_imagenet(recipe.model) else 1.0,
            "mean": mean,  # per channel; exactly in normalisation.safetensors
            "std": std,
            "num_classes": len(classes),
            "first_conv": "conv1" if known else None,
            "classifier": "fc" if known else None,
        },
        "library_name": LIBRARY,
        "reslib": {**own, "recipe": recipe.to_dict(), "recipe_hash": recipe.digest},
        "evidence": {key: summary.get(key) for key in evidence},
    }


def is_torchvision(model: nn.Module, recipe: Recipe) -> bool:
    """Whether torchvision's and timm's network of this name computes the same from the same weights.

    Not so with option A, for plain nets, or with a bottleneck's stride on its 1x1 layer, as the paper has it.
    """
    if not is_imagenet(recipe.model) or not model.residual or recipe.shortcut != "B":
        return False
    return recipe.options in ("", "stride_on=3x3") and (model.layer1[0].conv3 is None or recipe.options != "")


def load(folder: str | Path) -> nn.Module:
    """The network of an exported folder, in evaluation mode: normalised images (N, 3, H, W) -> logits (N, classes)."""
    config = read_json(Path(folder) / "config.json")
    try:
        own = config["reslib"]
        model = build_model(own["model"], config["num_classes"], own["shortcut"], **parse_options(own["options"]))
    except KeyError as error:
        raise UserError(f"{Path(folder) / 'config.json'} has no {error}: it was not exported by reslib") from error
    load_weights(model, folder, own["model"])
    return model.eval()


def load_weights(model: nn.Module, path: str | Path, name: str = "") -> None:
    """Load a safetensors file, or the one in a run's or an exported folder. UserError names what does not fit.

    name: of the network. Plain and residual nets have the same parameters, so shapes do not tell them apart: where a
    record or an export lies beside the weights it must be of this network.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = [path / file for file in ("model.safetensors", "weights.safetensors")]
        if not any(file.exists() for file in files):
            raise UserError(f"{path}: neither {' nor '.join(f.name for f in files)}: {why_no_weights(path)}")
        path = next(file for file in files if file.exists())
    if name and (theirs := _network_beside(path)) not in ("", name):
        raise UserError(f"{path} are the weights of {theirs}, not of {name}")
    state = read_weights(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise UserError(f"{path} does not fit this network: {'; '.join(lines[1:4])[:400]}") from error


def _network_beside(weights: Path) -> str:
    """The network that the record or export in the weights' folder is of; "" where there is none."""
    for file in (weights.parent / "recipe.json", weights.parent / "config.json"):
        if file.exists():
            values = read_json(file)
            own = values if file.name == "recipe.json" else values.get("reslib")  # others have a config.json too
            return str(own.get("model", "")) if isinstance(own, dict) else ""
    return ""


def in_timm(config: dict, folder: str | Path) -> str:
    """How timm makes the network of a config.json, in words."""
    call = f'timm.create_model("local-dir:{folder}", pretrained=True)'
    return f"{call}, after `import reslib.timm_models`" if config["architecture"] == OWN else call


def _card(config: dict) -> str:
    own, facts = config["reslib"], config["evidence"]
    loud = "**SYNTHETIC DATA: not a network for natural images.**\n\n" if facts["synthetic"] else ""
    return (
        f"---\nlicense: {LICENSE.lower()}\nlibrary_name: {LIBRARY}\ntags: [image-classification]\n---\n"
        f"# {own['model']} on {own['recipe']['dataset']}\n\n{loud}"
        f"Deep Residual Learning (He et al., 2015), trained by reslib: recipe {own['recipe_hash']}, seed "
        f"{own['recipe']['seed']}, test error {100 * facts['test_error']:.2f} % at the last iteration, commit "
        f"{facts['commit']}, {facts['device_name']}, torch {facts['torch']}, data {facts['data_fingerprint']}.\n\n"
        f"In timm: {in_timm(config, 'FOLDER')}.\n\n"
        "`reslib.export.load(folder)` builds the network. Its input is (image in 0..1 - mean) / std, with both from "
        "normalisation.safetensors.\n"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m reslib.export", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=name_given, help="folder of a finished run, with its weights.safetensors")
    parser.add_argument("out", type=name_given, help="folder to write")
    parser.add_argument(
        "--data-root", type=name_given, default=None, help="folder with the data sets (default: $RESLIB_DATA)"
    )
    arguments = parser.parse_args(argv)
    try:
        if not Path(arguments.run).is_dir():
            raise UserError(f"{arguments.run!r} is not the folder of a run")
        if Path(arguments.out).exists() and not Path(arguments.out).is_dir():
            raise UserError(f"{arguments.out!r} is a file: name a folder to write")
    except UserError as error:
        return _said(error, 2)
    try:
        out = export(arguments.run, arguments.out, arguments.data_root)
        print(f"{out}\nin timm: {in_timm(read_json(out / 'config.json'), out)}")
    except (UserError, OSError) as error:
        return _said(error, 1)
    return 0


def _said(error: Exception, code: int) -> int:
    print(f"reslib: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
