"""CIFAR-style training batches from uint8 images that live on the device (section 4.2).

Order, crops and flips of an epoch are a pure function of (seed, epoch), drawn on the CPU: the same on every device, and
a resumed run computes them again instead of restoring generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from ..cuda_graphs import abandon, captured
from ..errors import UserError
from ..recipe import Recipe
from .draws import few_of, mixed
from .sets import DataSource, ImageSet

ROOMY = 12 << 30  # bytes of a GPU: the widest maps of 2500 images, NIN's 192 of 32x32, take 2 GB in fp32
SPLIT_SEED = "validation split"  # one split for all seeds, so that runs compare


def mixed_seed(*parts) -> int:
    """A 63-bit seed from any values, the same everywhere."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def draw_epoch(seed: int, epoch: int, count: int, offsets: int) -> dict[str, torch.Tensor]:
    """Order, crop offsets in 0..offsets-1 and flips of one epoch, each of length `count`, in order of use."""
    generator = torch.Generator().manual_seed(mixed_seed("epoch", seed, epoch))
    return {
        "order": torch.randperm(count, generator=generator),
        "top": torch.randint(offsets, (count,), generator=generator),
        "left": torch.randint(offsets, (count,), generator=generator),
        "flip": torch.randint(2, (count,), generator=generator).bool(),
    }


def split(source: DataSource, recipe: Recipe) -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """Training, validation (None without) and test images of a recipe. Raises UserError when too many are asked for."""
    available = len(source.train)
    if recipe.val_size + max(1, recipe.train_size) > available:
        raise UserError(
            f"val_size {recipe.val_size} and train_size {recipe.train_size} need more than the {available} training "
            f"images of {source.name}"
        )
    if recipe.test_size > len(source.test):
        raise UserError(
            f"test_size {recipe.test_size} is more than the {len(source.test)} test images of {source.name}"
        )
    train, validation, test = source.train, None, source.test
    if recipe.val_size or recipe.train_size:
        generator = torch.Generator().manual_seed(mixed_seed(SPLIT_SEED))
        order = torch.randperm(available, generator=generator)
        if recipe.val_size:
            validation = train.take(order[-recipe.val_size :])
        train = train.take(order[: recipe.train_size or available - recipe.val_size])
    if recipe.test_size:
        test = test.take(few_of(test.labels, recipe.test_size))
    return train, validation, test


def check_fits(recipe: Recipe, size: int, name: str) -> None:
    """Raise UserError for a recipe that images of `size` pixels, held whole in memory, do not allow."""
    if recipe.crop_size != size:
        raise UserError(
            f"crop_size {recipe.crop_size} does not suit {name}: allowed is {size}, the pixels of its images"
        )
    if recipe.augmentation == "scale-crop-flip-color":
        raise UserError(
            f"augmentation {recipe.augmentation!r} is that of ImageNet: allowed with {name} are crop-flip and none"
        )


class MemoryBatches:
    """Batches of a recipe: (B, 3, 32, 32) float, channels-last, normalised, and labels (B,).

    Batch i holds the positions i*B to (i+1)*B of the epochs' permutations laid end to end: the last batch of an epoch
    is filled from the next, and iterations are what counts.
    """

    def __init__(self, recipe: Recipe, source: DataSource, device: torch.device | str):
        train, validation, test = split(source, recipe)
        size = train.images.shape[1]
        for part in (train, test):
            if part.images.shape[1:3] != (size, size):
                found = tuple(part.images.shape[1:3])
                raise UserError(f"{source.name}: images of {found} pixels, expected {size, size}")
        check_fits(recipe, size, source.name)
        device = torch.device(device)
        self.recipe, self.device = recipe, device
        self.count = len(train)
        self.pad = size // 8 if recipe.augmentation == "crop-flip" else 0  # 4 pixels of 32
        mean, scale = normalisation(train.images, recipe.preprocessing)
        self.mean, self.scale = mean.to(device), scale.to(device)
        self.sets = {"test": test, "train": train} | ({"val": validation} if validation else {})
        self.sets["train"] = ImageSet(train.images.to(device), train.labels.to(device))
        side = size + 2 * self.pad
        # Padded images, flat: pixel (r, c) of image i is row i*side*side + r*side + c.
        padded = torch.zeros(self.count, side, side, 3, dtype=torch.uint8, device=device)
        inner = slice(self.pad, self.pad + size)
        padded[:, inner, inner] = self.sets["train"].images
        self.padded, self.side, self.size = padded.view(-1, 3), side, size
        padded_mean = torch.zeros(side, side, 3, device=device)
        if recipe.padding == "black":  # black pixels are padded first, so the (channel) mean is taken from them too
            padded_mean[:] = self.mean.mean((0, 1))
        padded_mean[inner, inner] = self.mean  # "mean": zero on the pad, which stays zero, the mean
        self.padded_mean = padded_mean.view(-1, 3)
        self.rows = torch.arange(size, device=device)
        self._epochs: dict[int, dict[str, torch.Tensor]] = {}

    def __len__(self) -> int:
        return self.count

    def stream(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[tuple]:
        """Yield the batches (x, y) of iterations start..stop-1; of `world` processes, each takes its share of each.

        On a CUDA GPU a batch is overwritten by the next.
        """
        make = CapturedCrops(self) if self.device.type == "cuda" else self.made
        for iteration in range(start, stop):
            yield make(self.drawn(iteration, rank, world))

    def batch(self, iteration: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B / world, 3, H, W) and labels (B / world,) of one iteration: the share of process `rank`."""
        return self.made(self.drawn(iteration, rank, world))

    def drawn(self, iteration: int, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
        """Image numbers, offsets and flips of that share."""
        share = self.recipe.batch_size // world
        first = iteration * self.recipe.batch_size + rank * share
        draws = self._draws(first, share)
        if self.recipe.crops == "batch":  # the mistake under study: one draw serves the whole batch
            head = self._draws(iteration * self.recipe.batch_size, 1)
            draws |= {k: head[k].expand(share) for k in ("top", "left", "flip")}
        return draws

    def made(self, draws: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels from what was drawn."""
        return self.crop(draws), self.sets["train"].labels[draws["order"]]

    def crop(self, draws: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, 3, size, size) from drawn image numbers, offsets and flips."""
        images, top, left, flip = (draws[k] for k in ("order", "top", "left", "flip"))
        if self.recipe.augmentation == "none":
            flip = torch.zeros_like(flip)
        columns = torch.where(flip[:, None], self.rows.flip(0), self.rows)  # (B, size)
        within = (top[:, None] + self.rows)[:, :, None] * self.side + (left[:, None] + columns)[:, None, :]
        flat = (images * self.side**2)[:, None, None] + within  # (B, size, size)
        pixels = self.padded.index_select(0, flat.view(-1)).float()  # (B*size*size, 3)
        pixels = (pixels - self.padded_mean.index_select(0, within.reshape(-1))) * self.scale
        return pixels.view(-1, self.size, self.size, 3).permute(0, 3, 1, 2)  # NCHW over NHWC memory

    def _draws(self, first: int, count: int) -> dict[str, torch.Tensor]:
        """Draws for the positions first..first+count-1 of the endless sequence of epochs."""
        parts = []
        while count:
            epoch, offset = divmod(first, self.count)
            take = min(count, self.count - offset)
            parts.append({k: v[offset : offset + take] for k, v in self._epoch(epoch).items()})
            first, count = first + take, count - take
        return parts[0] if len(parts) == 1 else {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    def _epoch(self, epoch: int) -> dict[str, torch.Tensor]:
        if epoch not in self._epochs:
            draws = draw_epoch(self.recipe.seed, epoch, self.count, 2 * self.pad + 1)
            self._epochs[epoch] = {k: to_device(v, self.device) for k, v in draws.items()}
            for old in [e for e in self._epochs if e < epoch - 1]:
                del self._epochs[old]
        return self._epochs[epoch]

    def has(self, part: str) -> bool:
        """Whether there are images of this part: "train", "val" or "test"."""
        return part in self.sets

    def eval_batches(self, part: str, batch_size: int = 0, rank: int = 0, world: int = 1) -> Iterator[tuple]:
        """Yield (x, y) of "test", "val" or "train", whole images without augmentation, each exactly once.

        batch_size 0: as many at once as this device is fast with.
        """
        kept, batch_size = self.sets[part], batch_size or evaluated_at_once(self.device)
        if kept.images.device != self.device:
            self.sets[part] = kept = ImageSet(kept.images.to(self.device), kept.labels.to(self.device))
        for start in range(rank * batch_size, len(kept), world * batch_size):
            chunk = kept.take(slice(start, start + batch_size))
            yield self.whole(chunk.images), chunk.labels

    def sample(self, images: int, batch_size: int) -> Iterator[tuple]:
        """Yield (x, y) of so many whole training images, the classes mixed in every batch however the set is sorted."""
        kept, index = self.sets["train"], torch.from_numpy(mixed(len(self.sets["train"]), images))
        for chunk in index.to(kept.images.device).split(batch_size):
            part = kept.take(chunk)
            yield self.whole(part.images.to(self.device)), part.labels.to(self.device)

    def whole(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, H, W, 3) -> normalised (B, 3, H, W)."""
        return ((images.float() - self.mean) * self.scale).permute(0, 3, 1, 2)


class CapturedCrops:
    """Drawn images as batches, on a GPU as one CUDA graph: launching the fifteen kernels from Python costs a fifth of a
    thin net's step. Without a graph where it cannot be captured. What it returns is overwritten by the next call.
    """

    def __init__(self, batches: MemoryBatches):
        self.batches, self.make = batches, self._captured

    def __call__(self, draws: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.cuda.device(self.batches.device):
            return self.make(draws)

    def _captured(self, draws):
        kept = {name: drawn.clone() for name, drawn in draws.items()}
        before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            self.batches.made(kept)
        before.wait_stream(stream)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        try:
            with captured(graph, stream, pool):
                result = self.batches.made(kept)
        except RuntimeError:  # no memory is left for it, say: the run itself can do without
            abandon(graph, before, pool)
            self.make = self.batches.made
            return self.make(draws)

        def replayed(draws):
            for name, tensor in kept.items():
                tensor.copy_(draws[name])
            graph.replay()
            return result

        self.make = replayed
        return self.make(draws)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device, for which the process does not wait until a GPU has done what it was given before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def evaluated_at_once(device: torch.device) -> int:
    """Images in a batch of an evaluation. By all of a GPU's memory, not the free: numbers must not depend on that."""
    roomy = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= ROOMY
    return 2500 if roomy else 500


def normalisation(images: torch.Tensor, preprocessing: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What is subtracted, in grey levels, (H, W, 3), and the factor that follows, (3,).

    "pixel-mean" subtracts the mean image (the paper); "channel-mean" one value per channel; "channel-std" divides by
    the channel's standard deviation as well. The factor 1/255 of the first two is a choice of unit: the first
    batch norm takes it out again.
    """
    mean = torch.zeros(images.shape[1:], dtype=torch.float64)
    square = torch.zeros(3, dtype=torch.float64)
    for chunk in images.split(2000):
        mean += chunk.float().sum(0)  # exact: 2000 * 255 is below 2**24
        if preprocessing == "channel-std":  # takes a second
            square += chunk.double().square().mean((1, 2)).sum(0)
    mean /= len(images)
    channel = mean.mean((0, 1))
    scale = torch.full((3,), 1 / 255, dtype=torch.float64)
    if preprocessing == "channel-std":
        std = (square / len(images) - channel.square()).clamp(min=0).sqrt()
        if std.min() < 1e-3:
            raise UserError(f"preprocessing 'channel-std': a channel does not vary, standard deviations {std.tolist()}")
        scale = 1 / std
    if preprocessing != "pixel-mean":
        mean = channel.expand_as(mean).clone()
    return mean.float(), scale.float()
