"""The loop everyone writes, as the baseline: torchvision data set, DataLoader, PIL transforms, eager fp32, metrics read
every step. It is given what good versions of that loop have: worker processes that stay alive, pinned memory, cuDNN's
search for the fastest convolution, and torch's own defaults for TF32. The network is the same.
"""

from __future__ import annotations

import itertools
import time
import warnings

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from ..data import cifar, data_root
from ..machine import cores
from ..models import build_model
from .clock import Clock, synchronize

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Images(Dataset):
    """The interface of torchvision's CIFAR10 over arrays already in memory, where its files are not at hand."""

    def __init__(self, images, transform):
        self.data, self.targets, self.transform = images.images.numpy(), images.labels.tolist(), transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def dataset(source, root=None) -> tuple[Dataset, str]:
    """The training set with the usual augmentation, and in words what it is."""
    size = source.train.images.shape[1]
    steps = [transforms.RandomCrop(size, padding=size // 8), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])
    if source.name == "cifar10":
        form, folder = cifar.find(data_root(root)) or ("", None)
        if form == "torchvision" and folder.name == cifar.FOLDER:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision reads the original pickles with numpy's old names
                return datasets.CIFAR10(folder.parent, train=True, transform=transform), "torchvision CIFAR10"
    return Images(source.train, transform), f"arrays of {source.name}"


class UsualLoop:
    """`run(steps)` trains and returns the seconds it took."""

    name = "usual"

    def __init__(self, model: str, batch: int, source, device, root=None, workers: int | None = None, options=None):
        begun = time.perf_counter()
        self.batch, self.device, self.precision = batch, device, "fp32"
        self.workers = min(cores(), 8) if workers is None else workers
        data, origin = dataset(source, root)
        self.what = f"{origin}, DataLoader with {self.workers} workers, eager fp32, metrics every step"
        self.loader = DataLoader(
            data,
            batch,
            shuffle=True,
            drop_last=True,
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
            persistent_workers=self.workers > 0,
        )
        self.batches = self._endless()
        self.model = build_model(model, len(source.classes), **(options or {})).to(device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        self.images, self.loss, self.correct = 0, 0.0, 0
        self.run(1)
        self.setup_seconds = time.perf_counter() - begun

    def _endless(self):
        while True:
            yield from self.loader

    def run(self, steps: int) -> float:
        """Seconds for `steps` steps."""
        synchronize(self.device)
        begun = time.perf_counter()
        for x, y in itertools.islice(self.batches, steps):
            x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
            logits = self.model(x)
            loss = F.cross_entropy(logits, y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self._metrics(loss, logits, y)
        synchronize(self.device)
        return time.perf_counter() - begun

    def _metrics(self, loss, logits, y):
        self.loss += loss.item() * len(y)
        self.correct += (logits.argmax(1) == y).sum().item()
        self.images += len(y)

    def parts(self, steps: int) -> dict[str, float]:
        """Seconds per step in data, forward, backward, optimiser and metrics, with a wait for the device after each."""
        for number in range(steps + 1):
            if number < 2:  # the first step is not timed, as with the other contenders
                clock = Clock(self.device)
            x, y = next(self.batches)
            x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
            clock.lap("data")
            logits = self.model(x)
            loss = F.cross_entropy(logits, y)
            clock.lap("forward")
            self.optimizer.zero_grad()
            loss.backward()
            clock.lap("backward")
            self.optimizer.step()
            clock.lap("optimiser")
            self._metrics(loss, logits, y)
            clock.lap("metrics")
        return clock.mean(steps)

    def evaluation(self, images: int = 512) -> float:
        """Seconds per image of the test pass: the network alone, its data loading left out in its favour."""
        x = torch.randn(self.batch, *next(self.batches)[0].shape[1:], device=self.device)
        self.model.eval()
        steps = max(1, images // self.batch)
        with torch.no_grad():
            self.model(x)
            synchronize(self.device)
            begun = time.perf_counter()
            for _ in range(steps):
                self.model(x).argmax(1).sum().item()
        self.model.train()
        return (time.perf_counter() - begun) / (steps * self.batch)

    def settle(self) -> None:
        """Wait until the workers have filled their queues, so that the next in turn has the processor for itself."""
        if self.workers:
            time.sleep(min(2.0, 2 * self.workers * self.batch / 2000 / self.workers))

    def close(self) -> None:
        """End the loader's worker processes."""
        self.batches.close()
        iterator = getattr(self.loader, "_iterator", None)
        if iterator is not None:  # workers that stay alive end with their iterator
            iterator._shutdown_workers()
            self.loader._iterator = None
