"""Pictures of what networks see."""

from __future__ import annotations

import numpy as np

from .style import new_figure, warn_synthetic


def image_grid(images, titles=None, columns: int = 8, synthetic: bool = False, mean=None):
    """A grid of float images (N, 3, H, W); says so if synthetic.

    mean (3,): what was subtracted from images of 0 to 1; it is added again and what lies outside is cut off. Without it
    each image is scaled to its own range, whatever its values mean.
    """
    images = np.asarray(images.detach().float().cpu()).transpose(0, 2, 3, 1)  # (N, H, W, 3)
    rows = -(-len(images) // columns)
    figure, axes = new_figure(1.15 * columns, 1.3 * rows, rows, columns)
    for axis in axes.flat:
        axis.axis("off")
    for number, (axis, image) in enumerate(zip(axes.flat, images, strict=False)):
        if mean is None:
            low, high = image.min(), image.max()
            shown = (image - low) / max(high - low, 1e-9)
        else:
            shown = np.clip(image + np.asarray(mean), 0, 1)
        axis.imshow(shown, interpolation="nearest")
        if titles is not None:
            axis.set_title(str(titles[number]), fontsize=7)
    if synthetic:
        warn_synthetic(figure)
    return figure
