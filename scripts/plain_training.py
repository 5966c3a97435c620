"""Train a CIFAR ResNet or plain net of section 4.2 by code that shares nothing with reslib: a second opinion on errors.

    python scripts/plain_training.py DATA_ROOT OUT.json [depth] [iterations] [seed] [residual: 1 or 0] [device]

The loop that a reader of the paper would write: per-image crops in numpy, modules of torch, fp32, one batch after the
other, on a processor or, as device `cuda`, on a GPU. A run that was stopped goes on from OUT.pt. Errors at the end are
those of the last iteration; compare several seeds with reslib's records of the same number of iterations. OUT.json says
what it was made with: hashes of this file and of the data, PyTorch, the device.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from plain_evaluation import images_of, sha256
from torch import nn

BATCH = 128
EVERY = 320  # steps between evaluations, and of the training error's window
TRAINING = [f"data_batch_{i}" for i in range(1, 6)]


class Unit(nn.Module):
    """conv, norm, ReLU, conv, norm, (+ x), ReLU."""

    def __init__(self, before, width, residual):
        super().__init__()
        self.stride, self.residual, self.width = 1 if before == width else 2, residual, width
        self.a = nn.Conv2d(before, width, 3, self.stride, 1, bias=False)
        self.b = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.p, self.q = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.q(self.b(F.relu(self.p(self.a(x)))))
        if not self.residual:
            return F.relu(y)
        if self.stride == 2:
            x = x[:, :, ::2, ::2]
            x = torch.cat([x, torch.zeros_like(x)], 1)
        return F.relu(y + x)


def network(depth: int, residual: bool) -> nn.Module:
    """6n+2 layers."""
    units, before = [], 16
    for width in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            units.append(Unit(before, width, residual))
            before = width
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    net = nn.Sequential(*stem, *units, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = 9 * module.out_channels
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    return net


def crops(images: np.ndarray, chosen, generator: np.random.Generator) -> np.ndarray:
    """Four zeros on every side, a random 32x32 window, mirrored or not, each image on its own."""
    out = np.empty((len(chosen), 3, 32, 32), np.float32)
    for i, k in enumerate(chosen):
        padded = np.zeros((3, 40, 40), np.float32)
        padded[:, 4:36, 4:36] = images[k]
        top, left = generator.integers(0, 9, 2)
        window = padded[:, top : top + 32, left : left + 32]
        out[i] = window[:, :, ::-1] if generator.random() < 0.5 else window
    return out


def error(net, images, labels, device) -> float:
    """Share of images that the net gets wrong, with moving averages."""
    net.eval()
    wrong = 0
    with torch.no_grad():
        for i in range(0, len(images), 500):
            guess = net(torch.tensor(images[i : i + 500]).to(device)).argmax(1)
            wrong += int((guess != torch.tensor(labels[i : i + 500]).to(device)).sum())
    net.train()
    return wrong / len(images)


def evidence(folder: Path, device: torch.device) -> dict:
    """What a run was made with, for its report."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    data = sha256(*(folder / name for name in (*TRAINING, "test_batch")))
    return {
        "script_sha256": sha256(Path(__file__)), "data_sha256": data, "torch": torch.__version__,
        "device": name, "threads": torch.get_num_threads(), "finished": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def main(root, out, depth="20", iterations="6400", seed="0", residual="1", device="cpu") -> None:
    total, seed, out, device = int(iterations), int(seed), Path(out), torch.device(device)
    torch.backends.cudnn.allow_tf32 = False  # fp32 in convolutions too
    folder = Path(root) / "cifar-10-batches-py"
    images, labels = images_of(folder, TRAINING)
    mean = images.mean(0, dtype=np.float64)
    images = ((images - mean) / 255).astype(np.float32)
    test, truth = images_of(folder, ["test_batch"])
    test = ((test - mean) / 255).astype(np.float32)
    torch.manual_seed(seed)
    net = network(int(depth), residual == "1").to(device, memory_format=torch.channels_last)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    drops = torch.optim.lr_scheduler.MultiStepLR(sgd, [total // 2, total * 3 // 4], 0.1)
    generator, order, step = np.random.default_rng(seed), np.empty(0, np.int64), 0
    kept, curve = out.with_suffix(".pt"), []
    if kept.exists():
        state = torch.load(kept, weights_only=False, map_location=device)
        for thing, name in ((net, "net"), (sgd, "sgd"), (drops, "drops")):
            thing.load_state_dict(state[name])
        curve, order, step, generator.bit_generator.state = (state[k] for k in ("curve", "order", "step", "generator"))
    begun, first, wrong, seen = time.time(), step, torch.zeros((), device=device), 0
    while step < total:
        if len(order) < BATCH:  # batches run on over the end of a pass
            order = np.concatenate([order, generator.permutation(len(images))])
        chosen, order = order[:BATCH], order[BATCH:]
        x = torch.tensor(crops(images, chosen, generator)).to(device, memory_format=torch.channels_last)
        y = torch.tensor(labels[chosen]).to(device)
        guess = net(x)
        sgd.zero_grad()
        F.cross_entropy(guess, y).backward()
        sgd.step()
        drops.step()
        step += 1
        wrong, seen = wrong + (guess.detach().argmax(1) != y).sum(), seen + BATCH
        if step % EVERY == 0 or step == total:
            rate = BATCH * (step - first) / (time.time() - begun)
            training, now = wrong.item() / seen, error(net, test, truth, device)
            print(f"{step}/{total} train {100 * training:.2f} % test {100 * now:.2f} % {rate:.0f}/s", flush=True)
            curve.append([step, training, now])
            wrong, seen = torch.zeros_like(wrong), 0
            state = {"net": net.state_dict(), "sgd": sgd.state_dict(), "drops": drops.state_dict(), "order": order}
            state |= {"step": step, "curve": curve, "generator": generator.bit_generator.state}
            torch.save(state, kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)
    report = {"depth": int(depth), "residual": residual == "1", "seed": seed, "iterations": total}
    report |= {"train": curve[-1][1], "test": curve[-1][2], "curve": curve}
    report |= evidence(folder, device)
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
