"""Drawings of the building blocks: Figure 2, the bottleneck of Figure 5, plain blocks, shortcuts A, B and C."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from ..errors import choose
from .style import new_figure

FACES = {"conv": "#CFE3F5", "bn": "#F3F3F3", "relu": "#FBE3C0", "projection": "#DDEFE3"}
SHORTCUTS = {
    "A": "identity\n(zero-padded where\nthe width grows)",
    "B": "identity\n(1x1 projection where\nthe width grows)",
    "C": "1x1 projection",
}
WIDTH, HEIGHT, GAP = 2.5, 0.44, 0.26  # of a box, and between boxes, in the drawing's units
EDGE = "#555555"


def block_diagram(
    family: str = "resnet", bottleneck: bool = False, shortcut: str = "A", preactivation: bool = False
) -> Figure:
    """Draw a block: the basic one of two 3x3 layers or the bottleneck 1x1, 3x3, 1x1; "plain" has no shortcut.

    The paper's order is convolution, batch norm, ReLU, with the last ReLU after the addition. preactivation: batch norm
    and ReLU before each convolution, nothing after the addition (He et al. 2016).
    """
    choose("family", family, ["plain", "resnet"])
    choose("shortcut", shortcut, list(SHORTCUTS))
    convs = ["1x1 conv, C/4", "3x3 conv, C/4", "1x1 conv, C"] if bottleneck else ["3x3 conv, C", "3x3 conv, C"]
    layers = []
    for conv in convs:
        own = [("conv", conv), ("bn", "batch norm"), ("relu", "ReLU")]
        layers += own[1:] + own[:1] if preactivation else own
    residual = family == "resnet"
    after = [] if preactivation else [layers.pop()] if residual else []  # the ReLU after the addition
    steps = len(layers) + len(after)
    height = steps * (HEIGHT + GAP) + (1.9 if residual else 1.0)
    fig, axes = new_figure(4.6, 0.72 * height + 0.5)
    ax = axes[0][0]
    ax.set_axis_off()
    ax.set_aspect("equal")
    _draw(ax, layers, after, residual, shortcut, height)
    kind = "bottleneck block" if bottleneck else "basic block"
    name = f"{'Residual' if residual else 'Plain'} {kind}{', pre-activation' if preactivation else ''}"
    ax.set_title(f"{name}{f', option {shortcut}' if residual else ''}")
    return fig


def _draw(ax: Axes, layers: list, after: list, residual: bool, shortcut: str, height: float) -> None:
    y = height
    ax.text(0.15, y - 0.02, "x", ha="left", va="center", fontsize=12, style="italic")
    start = y - 0.28  # where the shortcut leaves
    y = _boxes(ax, layers, y)
    if residual:
        centre = y - 0.62
        _arrow(ax, (0, y), (0, centre + 0.19))
        ax.text(-0.15, y - 0.2, "F(x)", ha="right", va="center", fontsize=10, style="italic")
        ax.add_patch(Circle((0, centre), 0.19, facecolor="white", edgecolor=EDGE, linewidth=1.2))
        ax.text(0, centre - 0.012, "+", ha="center", va="center", fontsize=13)
        ax.text(-0.3, centre, "F(x) + x" if shortcut != "C" else "F(x) + W x", ha="right", va="center",
                fontsize=10, style="italic")  # fmt: skip
        side, middle = WIDTH / 2 + (1.15 if shortcut == "C" else 0.6), (start + centre) / 2
        path = [(0, start), (side, start), (side, centre)]
        ax.plot(*zip(*path, strict=True), color=EDGE, linewidth=1.2, solid_joinstyle="round")
        _arrow(ax, (side, centre), (0.19, centre))
        if shortcut == "C":
            box = FancyBboxPatch(
                (side - 0.8, middle - 0.36), 1.6, 0.72, boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=FACES["projection"], edgecolor=EDGE, zorder=3,
            )  # fmt: skip
            ax.add_patch(box)
            ax.text(side, middle, "1x1 conv,\nbatch norm", ha="center", va="center", fontsize=9, zorder=4)
        else:
            ax.text(side + 0.15, middle, SHORTCUTS[shortcut], ha="left", va="center", fontsize=9)
        y = centre - 0.19
    y = _boxes(ax, after, y, 0.1)
    _arrow(ax, (0, y), (0, y - 0.4))
    ax.set_xlim(-2.1, 4.3 if residual and shortcut != "C" else 3.4 if residual else 2.1)
    ax.set_ylim(y - 0.45, height + 0.25)


def _boxes(ax: Axes, layers: list, y: float, entry: float = 0.28) -> float:
    """A column of boxes from y down, an arrow into each; the lower edge of the last."""
    for n, (kind, text) in enumerate(layers):
        gap = GAP + (entry if n == 0 else 0)
        _arrow(ax, (0, y), (0, y - gap))
        y -= gap + HEIGHT
        box = FancyBboxPatch(
            (-WIDTH / 2, y), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", facecolor=FACES[kind],
            edgecolor=EDGE, linewidth=1,
        )  # fmt: skip
        ax.add_patch(box)
        ax.text(0, y + HEIGHT / 2, text, ha="center", va="center", fontsize=9.5)
    return y


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=EDGE, lw=1.2, shrinkA=0, shrinkB=0)
    )
