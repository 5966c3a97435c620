"""ImageNet-style data (section 3.4): random scale, crop, flip and colour for training, centre crops for testing.

Small sets (Imagenette, synthetic images) are decoded once and live on the device as uint8; all of ImageNet is decoded
in worker processes. Both give the same views: everything random about image number `position` of the training stream
(order, scale, crop, flip, colour) is a pure function of (seed, position). Positions count images over the concatenated
permutations of the epochs, so batch i holds positions i * B to (i + 1) * B - 1 and wraps around the end of an epoch.

"Per-pixel mean subtracted": here the mean of each channel. A crop of random scale and place has no fixed position in
the image, so the mean crop is nearly flat, and testing at five scales would need it at five sizes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from .decode import (
    BadImage,
    centre,
    centre_view,
    decode_rgb,
    resample,
    resampling_matrix,
    resized_crop,
    scaled_size,
)
from .draws import centre_scale, draw, first_images, permutation, split_indices
from .folder_sets import FolderSet, load_folder_set
from .folders import ImageList, find_root, fingerprint, index_folder
from .sets import DataSource, ImageSet

__all__ = ["FolderBatches", "FolderSet", "batches_for", "draw", "find", "load", "load_folder_set"]

# RGB statistics of ImageNet's training images in 0..1, widely published: channel means and standard deviations, and the
# principal components of RGB values (eigenvalues of their covariance; columns of VECTORS)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VALUES = (0.2175, 0.0188, 0.0045)
VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

STATISTICS_PIXELS = 1 << 24  # a small set's statistics come from about this many pixels of evenly spaced images
MAX_SKIPS = 1000  # unreadable images in a row after which the set is taken to be missing


def find(dataset: str, data_root: str | Path) -> Path | None:
    """The folder of "imagenet" or "imagenette" at or below the data root, or None."""
    try:
        return find_root(data_root, dataset)
    except UserError:
        return None


def load(dataset: str, data_root: str | Path) -> DataSource:
    """ "imagenette" decoded into memory; "imagenet" as ImageLists, decoded while training. UserError if missing or broken."""
    root = find_root(data_root, dataset)
    if dataset == "imagenet":
        train, test = index_folder(root)
        return DataSource(dataset, train, test, list(train.classes), fingerprint(train, test), "images on disk")
    data = load_folder_set(root)
    skipped = data.report["skipped"]
    origin = f"{root.name}, {data.report['size']} pixels"
    if skipped:
        origin += f", {len(skipped)} unreadable images left out: {', '.join(sorted(skipped)[:5])}"
    train, test = ImageSet(data.train_images, data.train_labels), ImageSet(data.test_images, data.test_labels)
    return DataSource(dataset, train, test, data.classes, data.fingerprint, origin)


def batches_for(recipe, source: DataSource, device) -> FolderBatches:
    """The batches of a recipe with the training of section 3.4."""
    return FolderBatches(recipe, source, device)


class FolderBatches:
    """Training batches and test batches of an ImageNet-style source, normalised, on the device.

    `source.train` and `source.test` are both in memory (`images` uint8 (N, H, W, 3), `labels`) or both ImageLists.
    The recipe gives seed, batch_size, sizes, augmentation, crops, preprocessing and how many images are used. Attributes:
    `mean`, `std` (3,), `components` (3, 3; alpha @ components is added to RGB in 0..1), `skipped` {name: reason}.
    """

    def __init__(self, recipe, source, device, workers: int | None = None):
        self.recipe, self.device = recipe, torch.device(device)
        train, val = split_indices(len(source.train.labels), recipe.val_size, recipe.train_size)
        self.indices = {"train": train, "val": val, "test": first_images(len(source.test.labels), recipe.test_size)}
        self.skipped: dict[str, str] = {}
        self._epochs: dict[int, np.ndarray] = {}
        if isinstance(source.train, ImageList):
            mean, std, values, vectors = (np.array(v) for v in (MEAN, STD, VALUES, VECTORS))
            self.reader = _Streaming(recipe, source, self.indices["train"], self.device, workers, self.skipped)
        else:
            mean, std, values, vectors = colour_statistics(source.train.images, train)
            self.reader = _InMemory(recipe, source, self.device)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self.std = torch.tensor(std, dtype=torch.float32, device=self.device)
        # Krizhevsky et al.: [p1 p2 p3] [a1 v1, a2 v2, a3 v3] with eigenvalues of RGB in 0..1; row i here is v_i p_i
        self.components = torch.tensor((vectors * values).T, dtype=torch.float32, device=self.device)

    def __len__(self) -> int:
        """Number of training images in an epoch."""
        return len(self.indices["train"])

    def order(self, positions: np.ndarray) -> np.ndarray:
        """The image of the source's training set at each position of the stream: int64, like positions."""
        epochs, offsets = np.divmod(positions, len(self))
        result = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            if epoch not in self._epochs:
                self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
                self._epochs[epoch] = self.indices["train"][permutation(self.recipe.seed, epoch, len(self))]
            chosen = epochs == epoch
            result[chosen] = self._epochs[epoch][offsets[chosen]]
        return result

    def stream(
        self, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's share of iterations start..stop-1: x (B / world, 3, crop, crop) channels-last and y (B / world,)."""
        batch = self.recipe.batch_size
        if batch % world:
            raise UserError(f"batch_size {batch} cannot be shared by {world} processes: it must be a multiple")
        share = batch // world
        first = (i * batch + rank * share for i in range(start, stop))
        keys = ((p, self.order(p)) for p in (np.arange(f, f + share) for f in first))
        for pixels, labels, alpha in self.reader.train(keys, world):
            yield self.normalise(pixels, alpha), labels

    def eval_batches(
        self, batch_size: int, rank: int = 0, world: int = 1, split: str = "test"
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(x, y) over "test", "val" or "train", each image once over all ranks: the centre crop at shorter side
        256 / 224 of the crop. Unreadable images are left out and named in `skipped`."""
        index = self.indices[split][rank::world]
        chunks = (index[i : i + batch_size] for i in range(0, len(index), batch_size))
        for pixels, labels in self.reader.centre(chunks, split, world):
            yield self.normalise(pixels), labels

    def normalise(self, pixels: torch.Tensor, alpha: torch.Tensor | None = None) -> torch.Tensor:
        """RGB (B, 3, h, w) in 0..255 to the network's input: colour offset, minus mean, by std if the recipe says so."""
        shift = -self.mean if alpha is None else alpha @ self.components - self.mean  # (3,) or (B, 3)
        x = pixels.float().mul(1 / 255).add_(shift.view(-1, 3, 1, 1))
        if self.recipe.preprocessing == "channel-std":
            x = x.div_(self.std.view(1, 3, 1, 1))
        return x.contiguous(memory_format=torch.channels_last)


def colour_statistics(images: torch.Tensor, index: np.ndarray) -> tuple[np.ndarray, ...]:
    """mean (3,), std (3,), eigenvalues (3,) descending and eigenvectors (3, 3) as columns, of RGB in 0..1, from at most
    STATISTICS_PIXELS pixels of evenly spaced images among images[index], uint8 (N, H, W, 3)."""
    step = max(1, -(-len(index) * images.shape[1] * images.shape[2] // STATISTICS_PIXELS))
    total, squares, count = np.zeros(3), np.zeros((3, 3)), 0
    for chunk in np.array_split(index[::step], max(1, len(index[::step]) // 64)):
        pixels = images[torch.from_numpy(chunk)].cpu().numpy().reshape(-1, 3).astype(np.float64) / 255
        total, squares, count = total + pixels.sum(0), squares + pixels.T @ pixels, count + len(pixels)
    mean = total / count
    covariance = squares / count - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    vectors *= np.where(vectors[np.abs(vectors).argmax(0), range(3)] < 0, -1, 1)  # a sign that no library chooses
    return mean, np.sqrt(np.diag(covariance)), values[::-1].copy(), vectors[:, ::-1].copy()


def cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- Images in memory ------------------------------------------------------------------------------------------------


class _InMemory:
    """Resizes, crops and flips each image of a batch by its own parameters, as two batched matrix products."""

    def __init__(self, recipe, source, device: torch.device):
        self.recipe, self.device = recipe, device
        train, test = ((s.images.to(device), torch.as_tensor(s.labels).to(device)) for s in (source.train, source.test))
        self.sets = {"train": train, "val": train, "test": test}

    def train(self, keys, world: int):
        images, labels = self.sets["train"]
        height, width = images.shape[1:3]
        crop, device = self.recipe.crop_size, self.device
        for positions, index in keys:
            views = draw(self.recipe, positions)
            scale = views["scale"]  # the shorter side; the longer is rounded down, as in scaled_size
            new_width, new_height = scale * width // min(width, height), scale * height // min(width, height)
            top = (views["top"] * (new_height - crop + 1)).long()
            left = (views["left"] * (new_width - crop + 1)).long()
            new_height, new_width, top, left, flip, alpha, chosen = (
                _to(t, device)
                for t in (new_height, new_width, top, left, views["flip"], views["alpha"], torch.from_numpy(index))
            )
            rows = resampling_matrix(height, new_height, top, crop)
            columns = resampling_matrix(width, new_width, left, crop, flip)
            yield resample(images[chosen], rows, columns), labels[chosen], alpha

    def centre(self, chunks, split: str, world: int):
        images, labels = self.sets[split]
        height, width = images.shape[1:3]
        crop = self.recipe.crop_size
        new_width, new_height = scaled_size(width, height, centre_scale(crop))
        rows, columns = (
            resampling_matrix(old, torch.tensor([new]), torch.tensor([centre(new, crop)]), crop).to(self.device)
            for old, new in ((height, new_height), (width, new_width))
        )
        for index in chunks:
            chosen = _to(torch.from_numpy(index), self.device)
            n = len(index)
            yield resample(images[chosen], rows.expand(n, -1, -1), columns.expand(n, -1, -1)), labels[chosen]


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":  # pinned, so that the copy does not wait for the device
        tensor = tensor.pin_memory()
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    return tensor.to(device, non_blocking=True)


# --- Images on disk --------------------------------------------------------------------------------------------------


class _Streaming:
    """Decodes in worker processes; batches come pinned where the device is CUDA, several ahead of their use."""

    def __init__(self, recipe, source, train_indices, device: torch.device, workers: int | None, skipped: dict):
        self.datasets = {
            "train": TrainViews(recipe, source.train, train_indices),
            **{s: CentreViews(recipe.crop_size, source.test if s == "test" else source.train) for s in ("test", "val")},
        }
        self.eval_sets = {"train": self.datasets["val"], "val": self.datasets["val"], "test": self.datasets["test"]}
        self.device, self.workers, self.skipped = device, workers, skipped

    def train(self, keys, world: int):
        for pixels, labels, bad, alpha in self._load(self.datasets["train"], keys, world):
            self.skipped.update(bad)
            yield (
                self._pixels(pixels),
                labels.to(self.device, non_blocking=True),
                alpha.to(self.device, non_blocking=True),
            )

    def centre(self, chunks, split: str, world: int):
        for pixels, labels, bad in self._load(self.eval_sets[split], chunks, world):
            self.skipped.update(bad)
            if len(labels):
                yield self._pixels(pixels), labels.to(self.device, non_blocking=True)

    def _pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)

    def _load(self, dataset: Dataset, keys, world: int) -> DataLoader:
        return load_keys(dataset, keys, self.workers, self.device, world)


def load_keys(dataset: Dataset, keys, workers: int | None, device: torch.device, world: int = 1) -> DataLoader:
    """dataset[key] for every key in order, computed in `workers` processes (default: one per CPU, at most 16)."""
    workers = min(16, max(1, cpu_count() // world)) if workers is None else workers
    pinned, ahead = device.type == "cuda", 4 if workers else None
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
