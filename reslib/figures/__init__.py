"""The study's figures: pure functions from frames of runs and curves to a matplotlib Figure, and `save_figure`."""

from ..evidence import evidence_line
from .curves import figure1, figure4, figure6
from .depth import depth_view
from .diagrams import block_diagram
from .differences import forest, learning_curves
from .images import image_grid
from .panels import seed_band
from .probes import figure7, gradients_figure
from .speed import contenders_figure, equivalence_figure, loading_figure, numbered, scaling_figure, seeds_figure
from .style import save_figure

__all__ = [
    "block_diagram", "contenders_figure", "depth_view", "equivalence_figure", "evidence_line", "figure1",
    "figure4", "figure6", "figure7", "forest", "gradients_figure", "image_grid", "learning_curves", "loading_figure",
    "numbered", "save_figure", "scaling_figure", "seed_band", "seeds_figure",
]  # fmt: skip
