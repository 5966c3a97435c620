"""Decoding ImageNet-style images while training and testing, in the worker processes of a DataLoader."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..machine import cores
from .decode import BadImage, centre_view, decode_rgb, resized_crop, scaled_size
from .draws import centre_scale, draw
from .image_list import ImageList

AHEAD = 4  # batches that each worker keeps ready
MAX_SKIPS = 1000  # unreadable images in a row after which the whole set is taken to be unreadable


class OnDisk:
    """Decodes in worker processes; batches come pinned where the device is CUDA, several ahead of their use."""

    def __init__(self, recipe, source, train_indices, device: torch.device, workers: int | None, skipped: dict):
        self.views = TrainViews(recipe, source.train, train_indices)
        self.lists = {"train": source.train, "val": source.train, "test": source.test}
        self.crop, self.device, self.workers, self.skipped = recipe.crop_size, device, workers, skipped

    @property
    def ahead(self) -> int:
        """Batches that may be ready before they are asked for (in a job of one process)."""
        return AHEAD * worker_count(self.workers, 1)

    def train(self, keys, world: int):
        """Batches of training views by keys: pixels (N, 3, S, S), labels (N,), colour shifts (N, 3)."""
        for pixels, labels, bad, alpha in self._load(self.views, keys, world):
            self.skipped.update(bad)
            yield (
                self._pixels(pixels),
                labels.to(self.device, non_blocking=True),
                alpha.to(self.device, non_blocking=True),
            )

    def centre(self, chunks, part: str, world: int):
        """Batches of centre crops of a part: pixels (N, 3, S, S), labels (N,); unreadable images are left out."""
        for pixels, labels, bad in self._load(CentreViews(self.crop, self.lists[part]), chunks, world):
            self.skipped.update(bad)
            if len(labels):
                yield self._pixels(pixels), labels.to(self.device, non_blocking=True)

    def whole(self, index: np.ndarray, part: str, world: int):
        """Whole images of a part one by one: (index, pixels, label); unreadable ones are left out."""
        for i, pixels, label, bad in self._load(WholeImages(self.lists[part]), index.tolist(), world):
            self.skipped.update(bad)
            if not bad:
                yield i, pixels, label

    def _pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _load(self, dataset: Dataset, keys, world: int):
        try:
            yield from load_keys(dataset, keys, self.workers, self.device, world)
        except UserError as error:  # a worker's error arrives with its traceback as text
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None


def worker_count(asked: int | None, world: int) -> int:
    """Worker processes for one of a job's `world` processes: as asked, or one per CPU of its share, at most 16."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world)) if world > 1 else 1  # torchrun: processes on this machine
    return min(16, max(1, cores() // here)) if asked is None else asked


def load_keys(dataset: Dataset, keys, workers: int | None, device: torch.device, world: int = 1) -> DataLoader:
    """dataset[key] for every key in order, computed in `workers` processes (default: see `worker_count`)."""
    workers = worker_count(workers, world)
    pinned, ahead = device.type == "cuda", AHEAD if workers else None
    return DataLoader(
        dataset,
        None,
        sampler=_Keys(keys),
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=ahead,
        collate_fn=_same,
    )


class _Keys:
    """A lazy iterable as the sampler of a DataLoader."""

    def __init__(self, keys):
        self.keys = keys

    def __iter__(self):
        return iter(self.keys)


def _same(item):
    return item


class TrainViews(Dataset):
    """dataset[(positions, index)] -> pixels (B, crop, crop, 3) uint8, labels, {unreadable name: reason}, alpha (B, 3).

    In place of an unreadable image comes the next readable one of the training set, whichever worker meets it.
    """

    def __init__(self, recipe, images: ImageList, indices: np.ndarray):
        self.recipe, self.images, self.indices = recipe, images, indices

    def __getitem__(self, key):
        positions, index = key
        views = draw(self.recipe, positions)
        crop = self.recipe.crop_size
        pixels, labels, bad = np.empty((len(index), crop, crop, 3), np.uint8), np.empty(len(index), np.int64), {}
        for row, i in enumerate(index):
            image, used = self._readable(i, bad)
            scale = int(views["scale"][row])
            width, height = scaled_size(*image.size, scale)
            top, left = int(views["top"][row] * (height - crop + 1)), int(views["left"][row] * (width - crop + 1))
            view = resized_crop(image, scale, top, left, crop)
            pixels[row] = view[:, ::-1] if views["flip"][row] else view
            labels[row] = self.images.labels[used]
        return torch.from_numpy(pixels), torch.from_numpy(labels), bad, views["alpha"]

    def _readable(self, i: int, bad: dict):
        """The image i, or the first readable after it, and its index."""
        place = int(np.searchsorted(self.indices, i))
        for step in range(min(MAX_SKIPS, len(self.indices))):
            used = int(self.indices[(place + step) % len(self.indices)])
            try:
                return decode_rgb(self.images.read(used)), used
            except BadImage as reason:
                bad[self.images.name(used)] = str(reason)
        raise UserError(f"no readable image in a row of {len(bad)} under {self.images.root!r}: first {next(iter(bad))}")


class CentreViews(Dataset):
    """dataset[index] -> pixels (B, crop, crop, 3) uint8, labels, {unreadable name: reason}: B counts the readable."""

    def __init__(self, crop: int, images: ImageList):
        self.crop, self.images = crop, images

    def __getitem__(self, index):
        pixels, labels, bad = [np.empty((0, self.crop, self.crop, 3), np.uint8)], [], {}
        for i in index:
            try:
                view = centre_view(decode_rgb(self.images.read(i)), centre_scale(self.crop), self.crop)
            except BadImage as reason:
                bad[self.images.name(i)] = str(reason)
                continue
            pixels.append(view[None])
            labels.append(self.images.labels[i])
        return torch.from_numpy(np.concatenate(pixels)), torch.tensor(labels, dtype=torch.int64), bad


class WholeImages(Dataset):
    """dataset[i] -> i, pixels (H, W, 3) uint8, label, {unreadable name: reason}."""

    def __init__(self, images: ImageList):
        self.images = images

    def __getitem__(self, i: int):
        label = int(self.images.labels[i])
        try:
            return i, torch.from_numpy(np.array(decode_rgb(self.images.read(i)))), label, {}
        except BadImage as reason:
            return i, torch.empty(0, 0, 3, dtype=torch.uint8), label, {self.images.name(i): str(reason)}
