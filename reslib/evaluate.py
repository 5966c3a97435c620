"""ImageNet testing (sections 3.4 and 4.1): centre crop, 10-crop, fully convolutional at five scales, ensembles.

Scores are class probabilities: the softmax of every view, averaged over views, scales and networks, as in the testing
the paper refers to (Krizhevsky et al. 2012; Simonyan and Zisserman 2015). A network here has `features(x)`, giving the
map (N, C, h, w) before pooling, and the linear layer `fc`; it is expected in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data.decode import centre, scaled_size
from .data.draws import centre_scale
from .errors import UserError, choose

SIZES = (224, 256, 384, 480, 640)  # shorter sides in pixels for networks trained on crops of 224
WAITING = 512  # images held back to be tested in batches of one shape
HOW = ("centre", "ten-crop", "multi-scale")


@torch.inference_mode()
def centre_crop_logits(model: nn.Module, images: Tensor, crop: int) -> Tensor:
    """Logits (N, classes) of the central crop x crop window of normalised images (N, 3, H, W)."""
    return model(_window(images, centre(images.shape[2], crop), centre(images.shape[3], crop), crop)).float()


@torch.inference_mode()
def ten_crop_scores(model: nn.Module, images: Tensor, crop: int) -> Tensor:
    """Probabilities (N, classes) averaged over the four corners, the centre, and their mirror images."""
    bottom, right = images.shape[2] - crop, images.shape[3] - crop
    middle = (centre(images.shape[2], crop), centre(images.shape[3], crop))
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), middle]
    views = [_window(images, top, left, crop) for top, left in corners]
    return _mean(model(v).float().softmax(1) for view in views for v in (view, view.flip(3)))


@torch.inference_mode()
def multi_scale_scores(
    model: nn.Module, images: Tensor, sizes: Sequence[int] = SIZES, crop: int = 224, flip: bool = True
) -> Tensor:
    """Probabilities (N, classes) of the fully convolutional network, averaged over shorter sides and mirror images.

    images (N, 3, H, W), normalised, are resized to each of `sizes`; `crop` is the side the network was trained on.
    """
    window = model.features(images.new_zeros(1, 3, crop, crop)).shape[-1]
    resized = (resize(images, size) for size in sizes)
    return _mean(dense_scores(model, v, window) for x in resized for v in ((x, x.flip(3)) if flip else (x,)))


def dense_scores(model: nn.Module, images: Tensor, window: int) -> Tensor:
    """Probabilities (N, classes) of the network with fc as a 1x1 convolution, averaged over all positions.

    The average pooling keeps the window it had in training (7 for crops of 224) and slides by 1, so that every position
    is the ordinary network on a crop; a map smaller than the window is pooled whole.
    """
    maps = model.features(images)  # (N, C, h, w)
    pooled = F.avg_pool2d(maps, [min(window, side) for side in maps.shape[2:]], stride=1)
    bias = model.fc.bias
    return F.conv2d(pooled, model.fc.weight[:, :, None, None], bias).float().softmax(1).mean((2, 3))


def resize(images: Tensor, shorter: int) -> Tensor:
    """Images (N, 3, H, W) with the given shorter side; antialiased bilinear, as for training."""
    width, height = scaled_size(images.shape[3], images.shape[2], shorter)
    if (height, width) == tuple(images.shape[2:]):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True, align_corners=False)


def top_k_errors(scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Fraction of images whose label is not among the k best scores, for each k. Equal scores rank by class index.

    Raises UserError without images, for scores that are not finite, and for k above the number of classes.
    """
    if not len(labels):
        raise UserError("top-k error of no images")
    if not torch.isfinite(scores).all():
        raise UserError(f"{int((~torch.isfinite(scores)).any(1).sum())} of {len(labels)} images have non-finite scores")
    if max(ks) > scores.shape[1]:
        raise UserError(f"top-{max(ks)} error with {scores.shape[1]} classes: allowed is k up to the number of classes")
    labels = labels.view(-1, 1)
    own = scores.gather(1, labels)
    index = torch.arange(scores.shape[1], device=scores.device)
    rank = ((scores > own) | ((scores == own) & (index < labels))).sum(1)  # 0: best
    return {k: (rank >= k).double().mean().item() for k in ks}


def ensemble(scores: Sequence[Tensor]) -> Tensor:
    """The average of several networks' scores (N, classes) for the same images in the same order."""
    if not scores or len({tuple(s.shape) for s in scores}) != 1:
        raise UserError(f"an ensemble needs scores of equal shape: given {[tuple(s.shape) for s in scores]}")
    return _mean(scores)


# --- Whole data sets -------------------------------------------------------------------------------------------------


@dataclass
class Views:
    """Scores of (this process's share of) a set. index (n,): which image of the set, ascending."""

    how: str
    scores: Tensor  # (n, classes) float32
    labels: Tensor  # (n,)
    index: Tensor  # (n,)
    skipped: dict[str, str] = field(default_factory=dict)  # unreadable images: name -> reason

    def errors(self, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
        """Top-k errors as fractions."""
        return top_k_errors(self.scores, self.labels, ks)


def evaluate_views(
    model: nn.Module,
    batches,
    how: str = "centre",
    split: str = "test",
    sizes: Sequence[int] | None = None,
    batch_size: int = 32,
    rank: int = 0,
    world: int = 1,
) -> Views:
    """Test a network on every image of a split of `batches` (FolderBatches), in the way `how`:

    "centre": the centre crop at shorter side 256; "ten-crop": ten crops of the same; "multi-scale": fully convolutional
    at `sizes` (224, 256, 384, 480, 640). All sizes are in proportion where the crop is not 224. With `world` processes
    each takes its share of the images: join them with `merge_views`.
    """
    choose("how", how, HOW)
    crop = batches.recipe.crop_size
    sizes = tuple(sizes or (round(size * crop / 224) for size in SIZES))
    score: Callable[[Tensor], Tensor] = {
        "centre": lambda x: centre_crop_logits(model, resize(x, centre_scale(crop)), crop).softmax(1),
        "ten-crop": lambda x: ten_crop_scores(model, resize(x, centre_scale(crop)), crop),
        "multi-scale": lambda x: multi_scale_scores(model, x, sizes, crop),
    }[how]
    training = model.training
    model.eval()
    parts = []
    try:
        for index, pixels, labels in _by_shape(batches.images(split, rank, world), batch_size):
            x = batches.normalise(pixels.to(batches.device).permute(0, 3, 1, 2))
            parts.append((index, score(x).cpu(), labels))
    finally:
        model.train(training)
    if not parts:  # fewer images than processes: `merge_views` looks at them all
        parts = [(torch.empty(0, dtype=torch.int64), torch.empty(0, 0), torch.empty(0, dtype=torch.int64))]
    index, scores, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    order = index.argsort()
    return Views(how, scores[order], labels[order], index[order], dict(batches.skipped))


def merge_views(parts: Sequence[Views]) -> Views:
    """The whole set from the shares of all processes. Raises UserError if an image was counted twice, or none was."""
    skipped = {name: reason for p in parts for name, reason in p.skipped.items()}
    parts = [p for p in parts if len(p.index)]
    if not parts:
        raise UserError(f"no image can be read: {len(skipped)} are unreadable")
    index = torch.cat([p.index for p in parts])
    order = index.argsort()
    if len(index.unique()) != len(index):
        raise UserError(f"{len(index) - len(index.unique())} images were tested twice: shares must not overlap")
    scores, labels = torch.cat([p.scores for p in parts])[order], torch.cat([p.labels for p in parts])[order]
    return Views(parts[0].how, scores, labels, index[order], skipped)


def _by_shape(images: Iterator, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of images of equal height and width: (index, pixels (B, H, W, 3), labels).

    At most WAITING images wait for others of their shape: ImageNet has thousands of shapes, and some very large images.
    """
    waiting: dict[tuple[int, ...], list] = {}
    for item in images:
        shape = tuple(item[1].shape)
        waiting.setdefault(shape, []).append(item)
        if len(waiting[shape]) < batch_size:
            if sum(map(len, waiting.values())) < WAITING:
                continue
            shape = max(waiting, key=lambda s: len(waiting[s]))
        yield _stack(waiting.pop(shape))
    for group in waiting.values():
        yield _stack(group)


def _stack(group: list) -> tuple[Tensor, Tensor, Tensor]:
    index, pixels, labels = zip(*group, strict=True)
    return torch.tensor(index), torch.stack(pixels), torch.tensor(labels)


def _window(images: Tensor, top: int, left: int, crop: int) -> Tensor:
    if min(images.shape[2:]) < crop:
        raise UserError(f"images of {images.shape[2]}x{images.shape[3]} pixels are smaller than the crop {crop}")
    return images[:, :, top : top + crop, left : left + crop]


def _mean(scores) -> Tensor:
    scores = list(scores)
    return torch.stack(scores).mean(0)
