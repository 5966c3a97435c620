"""Test error of a CIFAR ResNet's or plain net's weights by code that shares nothing with reslib.

    python scripts/plain_evaluation.py RUN_FOLDER DATA_ROOT [OUT.json]

Reads the original pickles with numpy, takes the mean image itself, and writes the network of section 4.2 out in plain
functions, its depth read off the weights; in fp32 on the processor. Where its number and the record's differ by more
than rounding, one of the two programs is wrong. OUT.json keeps what was found of which weights and images.
"""

import hashlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file


def images_of(folder: Path, names) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3, 32, 32) bytes and (N,) labels of CIFAR-10's own files."""
    parts = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]
    images = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32)
    return images, np.concatenate([part[b"labels"] for part in parts])


def norm(x, w, name):
    """Batch norm with the moving averages."""
    parts = (w[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias"))
    mean, variance, scale, shift = parts
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def logits(x, w, residual: bool):
    """The network of section 4.2 with option A shortcuts, or without any."""
    x = norm(F.conv2d(x, w["conv1.weight"], padding=1), w, "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in w:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1), w, f"{name}.bn1").clamp(min=0)
            y = norm(F.conv2d(y, w[f"{name}.conv2.weight"], padding=1), w, f"{name}.bn2")
            if residual:
                short = x[:, :, ::stride, ::stride]
                y[:, : short.shape[1]] += short
            x, block = y.clamp(min=0), block + 1
    return x.mean((2, 3)) @ w["fc.weight"].T + w["fc.bias"]


def sha256(*files: Path) -> str:
    """Of the files one after the other."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def main(run: str, root: str, out: str = "") -> None:
    run, folder = Path(run), Path(root) / "cifar-10-batches-py"
    recipe = json.loads((run / "recipe.json").read_text())
    w = load_file(run / "weights.safetensors")
    learned = sum(v.numel() for k, v in w.items() if "running" not in k and "num_batches" not in k)
    images, _ = images_of(folder, [f"data_batch_{i}" for i in range(1, 6)])
    mean = torch.tensor(images.mean(0, dtype=np.float64))
    images, labels = images_of(folder, ["test_batch"])
    wrong, size = 0, 500
    with torch.no_grad():
        for i in range(0, len(images), size):
            x = ((torch.tensor(images[i : i + size]).double() - mean) / 255).float()
            guess = logits(x, w, recipe["model"].startswith("resnet")).argmax(1)
            wrong += int((guess != torch.tensor(labels[i : i + size])).sum())
    print(f"{recipe['model']}: {learned:,} parameters, test error {100 * wrong / len(images):.2f} %")
    if (run / "summary.json").exists():
        print(f"in the record: {100 * json.loads((run / 'summary.json').read_text())['test_error']:.2f} %")
    if out:
        found = {"run": run.name, "weights_sha256": sha256(run / "weights.safetensors"), "parameters": learned}
        found |= {"wrong": wrong, "images": len(images), "images_sha256": sha256(folder / "test_batch")}
        found |= {"script_sha256": sha256(Path(__file__)), "torch": torch.__version__}
        Path(out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
