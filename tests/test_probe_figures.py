"""Figure 7, the gradients and the block diagrams: the data drawn is the data given, and it can be seen."""

import numpy as np
import pandas as pd
import pytest
from fake_frames import texts
from torch import nn

from reslib import figures
from reslib.errors import UserError
from reslib.models import build_model


def test_figure7_orders():
    std = [0.5, 2.0, 1.0]
    frame = pd.DataFrame({"model": "resnet20", "layer": [1, 2, 3], "std": std})
    fig = figures.figure7(frame)
    top, bottom = fig.axes
    np.testing.assert_allclose(top.lines[0].get_ydata(), std)
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), [2.0, 1.0, 0.5])
    assert "ResNet-20" in texts(fig) and "the paper prints no numbers of its Figure 7" in texts(fig)
    assert "SYNTHETIC" in texts(figures.figure7(frame.assign(synthetic=True)))
    assert "no responses measured" in texts(figures.figure7(frame.iloc[:0]))


@pytest.mark.parametrize("model", ["plain20", "resnet32"])
def test_figure7_marks_where_the_filters_double(model):
    convolutions = [m for m in build_model(model).modules() if isinstance(m, nn.Conv2d) and m.kernel_size[0] == 3]
    widths = [m.out_channels for m in convolutions]
    frame = pd.DataFrame({"model": model, "layer": range(1, len(widths) + 1), "std": 1.0})
    fig = figures.figure7(frame)
    marks = [segment[0][0] for segment in fig.axes[0].collections[0].get_segments()]
    assert marks == [widths.index(32) + 1, widths.index(64) + 1]
    assert "stages of 32 and 64 filters begin" in texts(fig)


def test_gradients_figure_panels_and_dead_layers():
    rows = [
        {"kind": kind, "model": "plain20", "family": "plain", "depth": 20, "init": init, "batch_norm": bn,
         "iteration": 0, "layer": layer, "norm": float(layer) if bn or layer > 1 else 0.0}
        for kind in ("gradient", "activation") for bn in (True, False) for init in ("he", "xavier") for layer in (1, 2)
    ]  # fmt: skip
    fig = figures.gradients_figure(pd.DataFrame(rows))
    assert len(fig.axes) == 8
    assert [ax.get_title() for ax in fig.axes[:4]] == [
        "batch norm, He", "batch norm, Xavier", "no batch norm, He", "no batch norm, Xavier"
    ]  # fmt: skip
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), [1.0, 2.0])
    assert "exactly 0 in 1 of 2 layers" in texts(fig.axes[2]) and fig.axes[0].get_yscale() == "log"
    assert "no gradients measured" in texts(figures.gradients_figure(pd.DataFrame(rows).iloc[:0]))
    told = figures.gradients_figure(pd.DataFrame(rows).assign(evidence="preset quick · data cifar10 · a processor"))
    assert "preset quick · data cifar10 · a processor · at iteration 0" in texts(told)


def norms(sizes):
    """sizes: {(init, batch norm): norms by layer}, the same for both kinds."""
    return pd.DataFrame(
        {"kind": kind, "model": "plain20", "family": "plain", "depth": 20, "init": init, "batch_norm": bn,
         "iteration": 0, "layer": layer, "norm": norm}
        for kind in ("gradient", "activation") for (init, bn), values in sizes.items()
        for layer, norm in enumerate(values, start=1)
    )  # fmt: skip


def test_gradients_are_seen_in_each_panel_and_the_figure_says_that_axes_differ():
    sizes = {("he", True): (1.0, 20.0), ("xavier", True): (2.0, 4.0), ("gaussian", False): (1e-2, 1e-40)}
    fig = figures.gradients_figure(norms(sizes))
    for i in (0, 3):
        he, xavier, naive = fig.axes[i : i + 3]
        assert he.get_ylim() == xavier.get_ylim() != naive.get_ylim()
        low, high = np.log10(he.get_ylim())
        assert low < 0 and np.log10(20) < high and high - low < 2 * np.log10(20)  # the curve fills its panel
        assert naive.get_ylim()[0] < 1e-40 and naive.get_ylim()[1] > 20
        (band,) = naive.patches  # what batch norm spans, to compare with
        assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((1.0, 20.0))
        assert not he.patches and "common axis, 2 decades" in texts(he) and "own axis, 49 decades" in texts(naive)
    assert "axes differ: panels with batch norm share one per row" in texts(fig)
    assert "range with batch norm" in texts(fig)


def test_gradients_that_are_level_look_level():
    fig = figures.gradients_figure(norms({("he", True): (1.0, 1.001)}))
    low, high = fig.axes[0].get_ylim()
    assert high / low > 10 and "axes differ" not in texts(fig) and "range with batch norm" not in texts(fig)


def test_gradients_of_dead_nets_alone_still_draw():
    fig = figures.gradients_figure(norms({("gaussian", False): (0.0, np.nan), ("he", False): (0.5, 0.1)}))
    assert "exactly 0 in 1 of 2 layers" in texts(fig) and "not finite in 1 of 2 layers" in texts(fig)
    assert "each panel has its own" in texts(fig)
    fig.canvas.draw()


def test_block_diagrams():
    basic = texts(figures.block_diagram("resnet"))
    assert basic.count("3x3 conv") == 2 and "F(x) + x" in basic and "zero-padded" in basic
    plain = texts(figures.block_diagram("plain"))
    assert plain.count("3x3 conv") == 2 and "F(x)" not in plain
    bottleneck = texts(figures.block_diagram("resnet", bottleneck=True, shortcut="C"))
    assert bottleneck.count("1x1 conv") == 3 and bottleneck.count("3x3 conv") == 1  # two layers and the projection
    order = texts(figures.block_diagram("resnet", preactivation=True)).split("\n")
    assert order.index("batch norm") < order.index("ReLU") < order.index("3x3 conv, C")
    with pytest.raises(UserError, match="shortcut 'D'"):
        figures.block_diagram("resnet", shortcut="D")
