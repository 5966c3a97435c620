"""Pictures of what networks see."""

from __future__ import annotations

import numpy as np

from .style import new_figure, warn_synthetic


def image_grid(images, titles=None, columns: int = 8, synthetic: bool = False):
    """A grid of float images (N, 3, H, W), each scaled to its own range 0 to 1 for the eye; says so if synthetic."""
    images = np.asarray(images.detach().float().cpu()).transpose(0, 2, 3, 1)  # (N, H, W, 3)
    rows = -(-len(images) // columns)
    figure, axes = new_figure(1.15 * columns, 1.3 * rows, rows, columns)
    for axis in axes.flat:
        axis.axis("off")
    for number, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        low, high = image.min(), image.max()
        axis.imshow((image - low) / max(high - low, 1e-9), interpolation="nearest")
        if titles is not None:
            axis.set_title(str(titles[number]), fontsize=7)
    if synthetic:
        warn_synthetic(figure)
    return figure
