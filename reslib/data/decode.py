"""Encoded image bytes to RGB, whatever the file claims to be; and the resampling that the training views use.

ImageNet as distributed holds a PNG named .JPEG, CMYK and greyscale JPEGs, and copies of it often hold truncated files.
What can be shown as RGB is; everything else raises BadImage with the reason. EXIF rotation is ignored, as is usual.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


class BadImage(Exception):
    """An image that cannot be decoded; the message is the reason."""


def decode_rgb(data: bytes) -> Image.Image:
    """An RGB image of 8 bits per channel. Raises BadImage when the bytes are empty, truncated or no image."""
    if not data:
        raise BadImage("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF blocks, palettes with transparency, very large images
            image = Image.open(io.BytesIO(data))
            image.load()
            return to_rgb(image)
    except UnidentifiedImageError:
        raise BadImage("no image format is recognised") from None
    except Exception as error:  # Pillow raises many types for broken files; none of them may end a training
        raise BadImage(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Greyscale, palette, CMYK, transparent and 16-bit images as RGB; 16-bit values keep their upper 8 bits."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits, which Image.convert would clip to white
        values = np.asarray(image).clip(0, 65535)
        return Image.fromarray((values // (256 if values.max() > 255 else 1)).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        if not np.isfinite(np.asarray(image)).all():
            raise BadImage("a pixel is not a number")
        return Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def scaled_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Width and height after resizing so that the shorter side has `shorter` pixels (as torchvision rounds them)."""
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def resized_crop(image: Image.Image, shorter: int, top: int, left: int, crop: int) -> np.ndarray:
    """The crop x crop window at (top, left) of the image resized to a shorter side, uint8 (crop, crop, 3).

    Only the window and the reach of the filter are made: as if the whole image were resized, up to rounding in each of
    the two passes.
    """
    width, height = scaled_size(*image.size, shorter)
    scale_x, scale_y = width / image.width, height / image.height
    margin_x, margin_y = int(max(1, scale_x)) + 2, int(max(1, scale_y)) + 2
    x0, x1 = max(0, left - margin_x), min(width, left + crop + margin_x)
    y0, y1 = max(0, top - margin_y), min(height, top + crop + margin_y)
    box = (x0 / scale_x, y0 / scale_y, min(x1 / scale_x, image.width), min(y1 / scale_y, image.height))
    window = image.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=box)
    return np.asarray(window)[top - y0 : top - y0 + crop, left - x0 : left - x0 + crop]


def centre_view(image: Image.Image, shorter: int, crop: int) -> np.ndarray:
    """The central crop x crop window of the image resized to a shorter side, uint8 (crop, crop, 3)."""
    width, height = scaled_size(*image.size, shorter)
    return resized_crop(image, shorter, centre(height, crop), centre(width, crop), crop)


def centre(length: int, crop: int) -> int:
    """Where a central crop starts (as torchvision rounds it)."""
    return int(round((length - crop) / 2.0))


def resampling_matrix(source: int, target: torch.Tensor, start: torch.Tensor, crop: int, flip=None) -> torch.Tensor:
    """Weights (B, crop, source) that turn lines of `source` pixels into pixels start..start+crop-1 after resizing.

    target (B,) is the resized length, start (B,) the first pixel kept, flip (B,) bool reverses the order. The weights
    are Pillow's antialiased bilinear filter: a triangle of half width 1 source pixel, 1 resized pixel when shrinking.
    """
    output = torch.arange(crop, device=target.device).expand(len(target), crop)
    if flip is not None:
        output = torch.where(flip[:, None], crop - 1 - output, output)
    ratio = (source / target.float())[:, None]  # source pixels per resized pixel
    centres = ((output + start[:, None]).float() + 0.5) * ratio  # (B, crop)
    pixels = torch.arange(source, device=target.device, dtype=torch.float32) + 0.5
    weights = (pixels - centres[..., None]).abs_().div_(-ratio.clamp(min=1)[..., None]).add_(1).clamp_(0)
    return weights.div_(weights.sum(-1, keepdim=True))  # the filter is cut at the image border and renormalised


def resample(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """images (B, H, W, 3) uint8, rows (B, h, H), columns (B, w, W) -> float (B, 3, h, w) in 0..255."""
    batch, height, width, _ = images.shape
    lines = rows @ images.to(rows.dtype).reshape(batch, height, width * 3)  # (B, h, W * 3)
    lines = lines.view(batch, -1, width, 3).permute(0, 3, 1, 2).reshape(batch, -1, width)  # (B, 3 * h, W)
    return (lines @ columns.mT).view(batch, 3, rows.shape[1], columns.shape[1])
