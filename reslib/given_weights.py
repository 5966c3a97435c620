"""ImageNet weights from elsewhere, named as torchvision names its own: resnet34-b627a593.pth, resnet50.safetensors.

Only tensors are read (`weights_only`): a file that wants to run code is refused. The networks are torchvision's, with
the stride of a bottleneck on its 3x3 convolution ("v1.5"); input is normalised by ImageNet's mean and deviation.
"""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import UserError
from .files import folder_of
from .models import build_model
from .runs import read_weights

NAME = re.compile(r"((?:plain|resnet)(?:18|34|50|101|152))(?!\d)")
SUFFIXES = (".pth", ".pt", ".safetensors")
CLASSES = 1000
IMAGENETTE = {  # its classes (torchvision.datasets.Imagenette): place among ImageNet's 1000, which are in wnid order
    "n01440764": 0,  # tench
    "n02102040": 217,  # English springer
    "n02979186": 482,  # cassette player
    "n03000684": 491,  # chain saw
    "n03028079": 497,  # church
    "n03394916": 566,  # French horn
    "n03417042": 569,  # garbage truck
    "n03425413": 571,  # gas pump
    "n03445777": 574,  # golf ball
    "n03888257": 701,  # parachute
}


def find_weights(weights: str | Path) -> list[Path]:
    """The files of a folder that are named after a network of Table 1, or the one file given.

    "torchvision" downloads its ResNets, or takes them from torch's cache. Raises UserError when there is nothing.
    """
    if str(weights) == "torchvision":
        return download()
    path = folder_of("weights", weights)
    allowed = f"allowed are files named like resnet34*{'|'.join(SUFFIXES)}"
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix in SUFFIXES and NAME.match(f.name))
        if not files:
            raise UserError(f"weights {str(weights)!r}: no network's weights in this folder; {allowed}")
        return files
    if not path.is_file():
        raise UserError(f"weights {str(weights)!r} is neither a file nor a folder; {allowed}")
    if path.suffix not in SUFFIXES or not NAME.match(path.name):
        raise UserError(f"weights {str(weights)!r} is not named after a network; {allowed}")
    return [path]


def download() -> list[Path]:
    """torchvision's first weights of ResNet-18 to 152 in torch's cache, checked by the hash in their names."""
    from torchvision.models import get_model_weights

    folder, files = Path(torch.hub.get_dir()) / "checkpoints", []
    folder.mkdir(parents=True, exist_ok=True)
    for depth in (18, 34, 50, 101, 152):
        url = get_model_weights(f"resnet{depth}").IMAGENET1K_V1.url
        files.append(folder / url.rsplit("/", 1)[1])
        if files[-1].exists():
            continue
        try:
            mark = files[-1].stem.rsplit("-", 1)[1]
            torch.hub.download_url_to_file(url, str(files[-1]), hash_prefix=mark, progress=False)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise UserError(f"weights 'torchvision': {url} cannot be downloaded: {error}") from error
    return files


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dictionary by name. Raises UserError for anything else, without running it."""
    if path.suffix == ".safetensors":
        return read_weights(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes the unpickler raise
        raise UserError(f"{path.name} refused: not a file of tensors alone ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path.name} refused: a {type(state).__name__}, not a dictionary of tensors by name")
    return state


def load_given(path: Path) -> tuple[nn.Module, str, str]:
    """(network in evaluation mode with 1000 classes, model, shortcut option as its layers show) of a weights file."""
    state = read_state(path)
    model = NAME.match(path.name)[1]
    if "fc.weight" not in state or state["fc.weight"].shape[:1] != (CLASSES,):
        found = tuple(state["fc.weight"].shape) if "fc.weight" in state else "missing"
        raise UserError(f"{path.name}: fc.weight is {found}: a classifier of ImageNet's {CLASSES} classes is needed")
    shortcut = shortcut_of(state) if model.startswith("resnet") else ""
    network = build_model(model, CLASSES, shortcut or "A", stride_on="3x3")
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path.name} does not fit {model}: {' '.join(str(error).split())[:160]}") from error
    return network.eval(), model, shortcut


def shortcut_of(state: dict[str, Tensor]) -> str:
    """A without projections, C with one in a block that keeps its dimensions, else B (section 3.3)."""
    if not any(".downsample." in name for name in state):
        return "A"
    return "C" if any(name.startswith("layer1.1.downsample.") for name in state) else "B"


def imagenet_index(classes: Sequence[str]) -> list[int]:
    """The place among ImageNet's 1000 classes of each class of a set. Raises UserError for classes it cannot place."""
    if len(classes) == CLASSES:
        if all(c.isdigit() for c in classes) and set(map(int, classes)) == set(range(CLASSES)):
            return [int(c) for c in classes]
        if classes[0].startswith(("n01440764", "tench")) and classes[-1].startswith(("n15075141", "toilet")):
            return list(range(CLASSES))
    elif set(classes) <= set(IMAGENETTE):
        return [IMAGENETTE[c] for c in classes]
    unknown = next((c for c in classes if c not in IMAGENETTE), classes[0])
    raise UserError(f"class {unknown!r} has no known place among ImageNet's classes: allowed are ImageNet, Imagenette")


def restrict(network: nn.Module, index: Sequence[int]) -> nn.Module:
    """The network with only these of its logits, in this order: what it says if it may name no other class."""
    if list(index) != list(range(network.fc.out_features)):
        fc = nn.Linear(network.fc.in_features, len(index), device=network.fc.weight.device)
        fc.load_state_dict({name: value[list(index)] for name, value in network.fc.state_dict().items()})
        network.fc = fc
    return network.eval()
