"""ImageNet-style data (section 3.4): random scale, crop, flip and colour for training, centre crops for testing.

Small sets (Imagenette, synthetic images) are decoded once and live on the device as uint8; all of ImageNet is decoded
in worker processes. Both give the same views: everything random about image number `position` of the training stream
(order, scale, crop, flip, colour) is a pure function of (seed, position). Positions count images over the concatenated
permutations of the epochs, so batch i holds positions i * B to (i + 1) * B - 1 and wraps around the end of an epoch.

"Per-pixel mean subtracted": here the mean of each channel. A crop of random scale and place has no fixed position in
the image: the mean crop is nearly flat (on Imagenette it varies by 4 to 7 grey levels of 255, single pixels by 70), and
testing at five scales would need it at five sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .decode import (
    centre,
    resample,
    resampling_matrix,
    scaled_size,
)
from .draws import centre_scale, draw, first_images, mixed, permutation, split_indices
from .folder_sets import FolderSet, load_folder_set
from .folders import index_folder
from .image_list import ImageList, fingerprint, shared_in_sample
from .places import find_root
from .sets import DataSource, ImageSet, check_apart, judge_shared
from .streaming import OnDisk

__all__ = ["FolderBatches", "FolderSet", "batches_for", "draw", "load", "load_folder_set"]

# RGB statistics of ImageNet's training images in 0..1, widely published: channel means and standard deviations, and the
# principal components of RGB values (eigenvalues of their covariance; columns of VECTORS)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VALUES = (0.2175, 0.0188, 0.0045)
VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))

STATISTICS_PIXELS = 1 << 24  # a small set's statistics come from about this many pixels of evenly spaced images


def load(dataset: str, data_root: str | Path, say=print) -> DataSource:
    """A subset decoded into memory, ImageNet as ImageLists decoded in use. UserError if missing, broken, or if the
    validation images are training images.

    say(text) is told of images of a subset that cannot be read; those of ImageNet show in use (FolderBatches.skipped).
    """
    root = find_root(data_root, dataset)
    if dataset == "imagenet":
        train, test = index_folder(root)
        sizes = {"train": train.sizes(), "val": test.sizes()}
        judge_shared(*shared_in_sample(train, test, sizes), str(root), say)
        mark = fingerprint(train, test, sizes=sizes)
        return DataSource(dataset, train, test, list(train.classes), mark, "images on disk")
    data = load_folder_set(root)
    skipped = data.report["skipped"]
    origin = f"{root.name}, {data.report['size']} pixels"
    if skipped:
        origin += f", {len(skipped)} unreadable images left out: {', '.join(sorted(skipped)[:5])}"
        say(f"note: {origin}")
    train, test = ImageSet(data.train_images, data.train_labels), ImageSet(data.test_images, data.test_labels)
    check_apart(train, test, str(root))
    seen = data.report["trained_on"]
    return DataSource(dataset, train, test, data.classes, data.fingerprint, origin, skipped=skipped, trained_on=seen)


def batches_for(recipe, source: DataSource, device) -> FolderBatches:
    """The batches of a recipe with the training of section 3.4."""
    return FolderBatches(recipe, source, device)


class FolderBatches:
    """Training batches and test batches of an ImageNet-style source, normalised, on the device.

    `source.train` and `source.test` are both in memory (`images` uint8 (N, H, W, 3), `labels`) or both ImageLists.
    The recipe gives seed, batch_size, sizes, augmentation, crops, preprocessing and how many images are used.
    Attributes: `mean`, `std` (3,), `components` (3, 3): alpha @ components is added to RGB in 0..1, `skipped` {name:
    reason} of unreadable images met so far, `sets` {"train", "test", and "val" if any: indices into the source}.
    """

    def __init__(self, recipe, source, device, workers: int | None = None):
        self.recipe, self.device = recipe, torch.device(device)
        train, val = split_indices(len(source.train.labels), recipe.val_size, recipe.train_size)
        self.sets = {"train": train, "test": first_images(len(source.test.labels), recipe.test_size)}
        self.sets |= {"val": val} if len(val) else {}
        self.skipped: dict[str, str] = {}
        self._epochs: dict[int, np.ndarray] = {}
        if isinstance(source.train, ImageList):
            mean, std, values, vectors = (np.array(v) for v in (MEAN, STD, VALUES, VECTORS))
            self.reader = OnDisk(recipe, source, self.sets["train"], self.device, workers, self.skipped)
        else:
            mean, std, values, vectors = colour_statistics(source.train.images, train)
            self.reader = _InMemory(recipe, source, self.device)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self.std = torch.tensor(std, dtype=torch.float32, device=self.device)
        # Krizhevsky et al.: [p1 p2 p3] [a1 v1, a2 v2, a3 v3] with eigenvalues of RGB in 0..1; row i here is v_i p_i
        self.components = torch.tensor((vectors * values).T, dtype=torch.float32, device=self.device)

    def __len__(self) -> int:
        """Number of training images in an epoch."""
        return len(self.sets["train"])

    def order(self, positions: np.ndarray) -> np.ndarray:
        """The image of the source's training set at each position of the stream: int64, like positions."""
        epochs, offsets = np.divmod(positions, len(self))
        result = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            if epoch not in self._epochs:
                self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
                self._epochs[epoch] = self.sets["train"][permutation(self.recipe.seed, epoch, len(self))]
            chosen = epochs == epoch
            result[chosen] = self._epochs[epoch][offsets[chosen]]
        return result

    def stream(
        self, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's share of iterations start..stop-1: x (B / world, 3, crop, crop), channels-last, and y."""
        batch = self.recipe.batch_size
        if batch % world:
            raise UserError(f"batch_size {batch} cannot be shared by {world} processes: it must be a multiple")
        share = batch // world
        first = (i * batch + rank * share for i in range(start, stop))
        keys = ((p, self.order(p)) for p in (np.arange(f, f + share) for f in first))
        for pixels, labels, alpha in self.reader.train(keys, world):
            yield self.normalise(pixels, alpha), labels

    def has(self, part: str) -> bool:
        """Whether there are images of this part: "train", "val" or "test"."""
        return part in self.sets

    def eval_batches(
        self, part: str = "test", batch_size: int = 256, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(x, y) over "test", "val" or "train", each image once over all ranks: the centre crop at shorter side
        256 / 224 of the crop. Unreadable images are left out and named in `skipped`."""
        return self._centre(self.sets[part][rank::world], part, batch_size, world)

    def sample(self, images: int, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(x, y) of `images` training images as in `eval_batches`, the classes mixed in every batch."""
        return self._centre(self.sets["train"][mixed(len(self), images)], "train", batch_size, 1)

    def _centre(self, index: np.ndarray, part: str, batch_size: int, world: int):
        chunks = (index[i : i + batch_size] for i in range(0, len(index), batch_size))
        for pixels, labels in self.reader.centre(chunks, part, world):
            yield self.normalise(pixels), labels

    def images(self, part: str = "test", rank: int = 0, world: int = 1) -> Iterator[tuple[int, torch.Tensor, int]]:
        """(index, pixels (H, W, 3) uint8, label) of this rank's share, whole and in original size, for evaluate.py."""
        return self.reader.whole(self.sets[part][rank::world], part, world)

    def normalise(self, pixels: torch.Tensor, alpha: torch.Tensor | None = None) -> torch.Tensor:
        """RGB (B, 3, h, w) in 0..255 to the network's input in 0..1: colour offset, minus mean, over std if asked."""
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


# --- Images in memory ------------------------------------------------------------------------------------------------


class _InMemory:
    """Resizes, crops and flips each image of a batch by its own parameters, as two batched matrix products."""

    ahead = 0  # batches made before they are asked for

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

    def whole(self, index: np.ndarray, part: str, world: int):
        images, labels = self.sets[part]
        return ((i, images[i], int(labels[i])) for i in index.tolist())


def _to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda":  # pinned, so that the copy does not wait for the device
        tensor = tensor.pin_memory()
    if tensor.dtype == torch.float64:
        tensor = tensor.float()
    return tensor.to(device, non_blocking=True)
