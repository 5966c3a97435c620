"""Procedural images for smoke tests and machines without data: ten shapes, textured, cluttered, partly occluded.

The class is the shape alone; texture, colours, position, size, rotation, stretch, clutter, occluders, lighting, noise
are distractors drawn independently of it: logistic regression on pixels stays above 65 % error. Made in numpy, 1 to 2
seconds per 10,000 images of 32x32 on one core. No substitute for CIFAR-10: errors never compare with the paper's.
"""

from __future__ import annotations

import numpy as np

from ..errors import UserError, choose

CLASSES = ("disc", "ring", "square", "triangle", "plus", "star", "crescent", "half disc", "two bars", "corner")
SPLITS = ("train", "test")
MIN_SIZE = 16  # pixels: below, the thinnest part of a shape is under a pixel wide
_CHUNK_PIXELS = 1 << 17  # images are drawn in chunks that fit the processor's cache
_PARAMETERS = 96  # random numbers per image
_CLUTTER, _OCCLUDERS = 2, 1


def make(split: str, count: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images 0..count-1 of a split: uint8 (count, size, size, 3) and labels int64 (count,), ten balanced classes.

    Image i depends on (split, i, seed, size) alone: a larger count only appends. The same scene is drawn at every size.
    Only exactly rounded arithmetic is used per pixel, so the bytes are the same on every platform.
    """
    choose("split", split, SPLITS)
    if count < 0 or size < MIN_SIZE:
        raise UserError(f"synthetic images: count {count} and size {size} must be at least 0 and {MIN_SIZE}")
    images = np.empty((count, size, size, 3), np.uint8)
    labels = _labels(split, count, seed)
    step = max(1, _CHUNK_PIXELS // size**2)
    for start in range(0, count, step):
        stop = min(start + step, count)
        keys = _image_keys(split, np.arange(start, stop), seed)
        _draw(images[start:stop], labels[start:stop], keys)
    return images, labels


# --- Random numbers: a counter-based hash, so that every image has its own without drawing those before it -----------


def mix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: uint64 in, well-scattered uint64 out."""
    x = x.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _image_keys(split: str, index: np.ndarray, seed: int) -> np.ndarray:
    """One uint64 key per image index."""
    stream = np.array([2 * seed + SPLITS.index(split) + 1], np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return mix64(mix64(stream) + index.astype(np.uint64) * np.uint64(0xD1342543DE82EF95))


def _labels(split: str, count: int, seed: int) -> np.ndarray:
    """Every ten consecutive images hold each class once, in a random order."""
    blocks = -(-count // len(CLASSES))
    keys = mix64(_image_keys(split, np.arange(blocks * len(CLASSES)), seed) ^ np.uint64(0x5851F42D4C957F2D))
    return keys.reshape(blocks, len(CLASSES)).argsort(axis=1, kind="stable").reshape(-1)[:count].astype(np.int64)


class _Uniforms:
    """Per-image uniform numbers, handed out in a fixed order, each shaped to broadcast over (n, height, width)."""

    def __init__(self, keys: np.ndarray):
        counters = np.arange(1, _PARAMETERS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self.values = (mix64(keys[:, None] + counters) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
        self.used = 0

    def __call__(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        self.used += 1
        column = self.values[:, self.used - 1, None, None]
        return np.float32(low) + np.float32(high - low) * column  # (n, 1, 1)

    def colour(self) -> np.ndarray:
        return np.stack([self(), self(), self()])  # (3, n, 1, 1)

    def direction(self) -> tuple[np.ndarray, np.ndarray]:
        angle = self().astype(np.float64) * 2 * np.pi
        # six decimals: no difference between mathematics libraries is left
        return np.cos(angle).round(6).astype(np.float32), np.sin(angle).round(6).astype(np.float32)


# --- Drawing ---------------------------------------------------------------------------------------------------------


def _draw(out: np.ndarray, labels: np.ndarray, keys: np.ndarray) -> None:
    """Fill out (n, size, size, 3). Coordinates run from -1 to 1 over the image; y points down."""
    size = out.shape[1]
    uniform = _Uniforms(keys)
    axis = ((np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1).astype(np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    sharp = np.float32(size / 2)  # pixels per unit length

    # every image has its own difficulty, which scales all distractors: easy ones start the learning, hard ones limit it
    hard = uniform()
    back, third = uniform.colour() * np.float32(0.5), uniform.colour() * np.float32(0.5)
    # the shape is the brighter one in every channel: with contrast of either sign nets need thousands of iterations
    front = back + np.stack([uniform(0.25, 0.6) for _ in range(3)])
    accent = front + (uniform.colour() - front) * (hard * np.float32(0.5))
    canvas = _mixed(
        back, back + (third - back) * (hard * np.float32(0.5)), _texture(uniform, x, y)
    )  # (3, n, size, size)

    for _ in range(_CLUTTER):
        _paint(canvas, uniform.colour(), _capsule(uniform, x, y, hard * np.float32(0.14), 1.0), sharp)

    centre_x, centre_y, radius = uniform(-0.25, 0.25), uniform(-0.25, 0.25), uniform(0.5, 0.8)
    cos, sin = uniform.direction()
    stretch, shear = uniform(0.8, 1.25), uniform(-0.2, 0.2)
    u, v = (x - centre_x) / radius, (y - centre_y) / radius
    u, v = cos * u + sin * v, cos * v - sin * u
    u = (u + shear * v) * stretch
    distance = np.empty_like(u)
    for label in range(len(CLASSES)):
        chosen = np.flatnonzero(labels == label)
        if len(chosen):
            distance[chosen] = _SHAPES[label](u[chosen], v[chosen])
    _paint(canvas, _mixed(front, accent, _texture(uniform, x, y)), distance * radius, sharp)

    for _ in range(_OCCLUDERS):
        _paint(canvas, uniform.colour(), _capsule(uniform, x, y, hard * np.float32(0.14), 0.7), sharp)

    light = 1 + uniform(-0.25, 0.25) * x + uniform(-0.25, 0.25) * y
    canvas *= light
    noise = _noise(keys, size)  # (n, size, size) of 24 random bits
    amount = uniform(0.02, 0.25) * hard
    for channel in range(3):
        bits = ((noise >> np.uint32(8 * channel)) & np.uint32(255)).astype(np.float32)
        plane = canvas[channel] + (bits * np.float32(1 / 255) - np.float32(0.5)) * amount
        np.clip(plane, 0, 1, out=plane)
        out[..., channel] = plane * np.float32(255) + np.float32(0.5)


def _paint(canvas: np.ndarray, colour: np.ndarray, distance: np.ndarray, sharp: np.float32) -> None:
    """Lay a colour over canvas (3, n, h, w) where the signed distance is negative, blending over one pixel."""
    cover = np.clip(np.float32(0.5) - distance * sharp, 0, 1)
    for channel in range(3):
        canvas[channel] += (colour[channel] - canvas[channel]) * cover


def _mixed(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return first + (second - first) * weight[None]  # (3, n, h, w)


def _wave(t: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1 between -1 and 1: exactly rounded everywhere, unlike a sine."""
    return np.abs(t - np.floor(t) - np.float32(0.5)) * np.float32(4) - 1


def _texture(uniform: _Uniforms, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Stripes, checks, a grid of dots or a soft gradient, at a random angle and pitch: (n, h, w) in 0..1."""
    cos, sin = uniform.direction()
    pitch, phase_u, phase_v, kind, contrast = uniform(0.6, 3.5), uniform(), uniform(), uniform(), uniform(0.5, 4)
    first = _wave((cos * x + sin * y) * pitch + phase_u)
    second = _wave((cos * y - sin * x) * pitch + phase_v)
    stripes, checks = (kind < 0.4).astype(np.float32), ((kind >= 0.4) & (kind < 0.7)).astype(np.float32)
    pattern = (1 - checks) * first + second * (checks * first + (1 - checks - stripes))
    return np.clip(pattern * contrast + np.float32(0.5), 0, 1)


def _capsule(uniform: _Uniforms, x, y, thick: np.ndarray, spread: float) -> np.ndarray:
    """Signed distance to a thick line segment of random place, angle and length, and half width thick: (n, h, w)."""
    cos, sin = uniform.direction()
    u, v = x - uniform(-spread, spread), y - uniform(-spread, spread)
    half = uniform(0.05, 0.5)
    along, across = np.abs(cos * u + sin * v), cos * v - sin * u
    along = np.maximum(along - half, 0)
    return np.sqrt(along * along + across * across) - thick


def _noise(keys: np.ndarray, size: int) -> np.ndarray:
    """White noise, 32 random bits per pixel: uint32 (n, size, size)."""
    pixel = np.arange(size * size, dtype=np.uint32).reshape(1, size, size) * np.uint32(0x9E3779B9)
    bits = pixel ^ (keys >> np.uint64(32)).astype(np.uint32)[:, None, None]
    bits = (bits ^ (bits >> np.uint32(16))) * np.uint32(0x7FEB352D)
    bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x846CA68B)
    return bits ^ (bits >> np.uint32(16))


# --- The ten shapes: signed distance (or a bound of it) in coordinates where the shape has about unit radius ---------


def _box(x, y, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - np.float32(half_width), np.abs(y) - np.float32(half_height))


def _radius(x, y) -> np.ndarray:
    return np.sqrt(x * x + y * y)


def _triangle(x, y) -> np.ndarray:
    side = np.abs(x) * np.float32(0.8660254) + y * np.float32(0.5)
    return np.maximum(side, -y) - np.float32(0.5)


def _star(x, y) -> np.ndarray:
    """Five points: fold the plane into one tenth of the star, then the distance to one edge."""
    x = np.abs(x)
    for nx, ny in ((0.809017, -0.587785), (-0.809017, -0.587785)):  # mirror lines at 36 degrees
        across = np.maximum(x * np.float32(nx) + y * np.float32(ny), 0) * np.float32(2)
        x, y = x - across * np.float32(nx), y - across * np.float32(ny)
    x = np.abs(x)
    return (x * np.float32(0.878) + (y - np.float32(1.0)) * np.float32(0.478)).astype(np.float32)


_SHAPES = (
    lambda x, y: _radius(x, y) - np.float32(0.82),
    lambda x, y: np.abs(_radius(x, y) - np.float32(0.7)) - np.float32(0.2),
    lambda x, y: _box(x, y, 0.72, 0.72),
    _triangle,
    lambda x, y: np.minimum(_box(x, y, 0.92, 0.27), _box(x, y, 0.27, 0.92)),
    _star,
    lambda x, y: np.maximum(_radius(x, y) - np.float32(0.9), np.float32(0.75) - _radius(x - np.float32(0.5), y)),
    lambda x, y: np.maximum(_radius(x, y - np.float32(0.4)) - np.float32(0.95), y - np.float32(0.4)),
    lambda x, y: np.maximum(np.abs(np.abs(y) - np.float32(0.5)) - np.float32(0.22), np.abs(x) - np.float32(0.8)),
    lambda x, y: np.minimum(_box(x + np.float32(0.45), y, 0.25, 0.8), _box(x, y - np.float32(0.55), 0.7, 0.25)),
)
