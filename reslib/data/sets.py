"""What a data set is to the rest of reslib."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch

from ..errors import UserError

LEAK = 0.01  # share of test images also trained on from which a test error means nothing


@dataclass
class ImageSet:
    """images: uint8 (N, H, W, 3); labels: int64 (N,), from 0."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def joined(parts: list[ImageSet]) -> ImageSet:
        """Several sets as one, in order."""
        return ImageSet(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))

    def take(self, indices) -> ImageSet:
        """The images at these indices, in that order."""
        return ImageSet(self.images[indices], self.labels[indices])


@dataclass
class DataSource:
    """A data set as found: `fingerprint` is 16 hexadecimal digits over all pixels and labels."""

    name: str
    train: ImageSet
    test: ImageSet
    classes: list[str]
    fingerprint: str
    origin: str  # in which form it was found, for people
    synthetic: bool = False
    skipped: dict[str, str] = field(default_factory=dict)  # images left out because unreadable: name -> reason
    trained_on: tuple[int, ...] = ()  # test images that are training images of ImageNet, by their file names


def image_set(images, labels, what: str, classes: int) -> ImageSet:
    """Check arrays from outside and wrap them. Raises UserError naming `what` and the fault."""
    images, labels = np.asarray(images), np.asarray(labels)  # (N, H, W, 3), (N,)
    if images.dtype != np.uint8:
        raise UserError(f"{what}: images are {images.dtype}, allowed is uint8")
    if images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"{what}: images have shape {images.shape}, expected (N, H, W, 3)")
    if len(images) == 0:
        raise UserError(f"{what}: no images")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise UserError(f"{what}: labels are {labels.dtype} of shape {labels.shape} for {len(images)} images")
    if labels.min() < 0 or labels.max() >= classes:
        bad = int(labels[(labels < 0) | (labels >= classes)][0])
        raise UserError(f"{what}: label {bad} is out of range, allowed is 0 to {classes - 1}")
    if not images.flags.c_contiguous:  # planes, as CIFAR-10's files have them: a plane at a time is three times as fast
        images = np.stack([images[..., channel] for channel in range(3)], axis=-1)
    return ImageSet(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


def fingerprint(*sets: ImageSet) -> str:
    """16 hexadecimal digits over shapes, pixels and labels."""
    digest = hashlib.sha256()
    for part in sets:
        digest.update(str(tuple(part.images.shape)).encode())
        digest.update(part.images.numpy())
        digest.update(part.labels.numpy())
    return digest.hexdigest()[:16]


def shared_images(first: ImageSet, second: ImageSet) -> int:
    """How many images of `second` are also, pixel for pixel, in `first`."""
    if first.images.shape[1:] != second.images.shape[1:]:
        return 0
    rows, others = _middle_rows(first), _middle_rows(second)  # a fraction of the pixels tells nearly all images apart
    common = set(rows) & set(others)
    if not common:
        return 0
    alike, candidates = ([n for n, row in enumerate(part) if row in common] for part in (rows, others))
    known = set(_hashes(first.take(alike)))
    return sum(mark in known for mark in _hashes(second.take(candidates)))


def _middle_rows(part: ImageSet) -> list[bytes]:
    images = part.images.numpy()
    rows = np.ascontiguousarray(images[:, images.shape[1] // 2]).reshape(len(images), -1)
    return rows.view(f"V{rows.shape[1]}").ravel().tolist()


def check_apart(train: ImageSet, test: ImageSet, what: str, say=print) -> None:
    """Raise UserError when the two sets look swapped or share more than LEAK of the test images; say(text) of fewer."""
    if len(test) > len(train):
        raise UserError(f"{what}: {len(train)} training and {len(test)} test images: train and test look swapped")
    judge_shared(shared_images(train, test), len(test), what, say)


def judge_shared(shared: int, looked_at: int, what: str, say=print) -> None:
    """Raise UserError when more than LEAK of the test images looked at are training images; say(text) of fewer."""
    if shared:
        fault = f"{what}: {shared} of {looked_at} test images are also training images"
        if shared > LEAK * looked_at:
            raise UserError(f"{fault}: a test error on them means nothing, allowed is at most {LEAK:.0%}")
        say(f"note: {fault}")


def _hashes(part: ImageSet) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in part.images.numpy()]
