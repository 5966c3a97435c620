"""Every number of the paper that is compared with here, each with its table and row.

Errors are percentages as printed; parameters and multiply-adds are the printed, rounded values. Numbers that do not
come from the paper (`EXACT_PARAMETERS`, counted from its layer sizes, and `PEERS`, another implementation's) are apart.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quoted:
    """One row of a table of CIFAR-10 test errors. `mean` ± `std` where the table prints them beside the error."""

    model: str  # name in build_model
    label: str  # name in the table
    error: float  # test error, %
    source: str
    layers: int | None = None
    parameters: float | None = None
    mean: float | None = None
    std: float | None = None
    seeds: int | None = None  # runs behind mean ± std, where the paper says


@dataclass(frozen=True)
class ImageNetRow:
    """One row of Tables 2 to 5: ImageNet errors in %, None where the table has a dash."""

    model: str  # name in build_model, "" for networks of other papers
    label: str
    source: str
    top1: float | None = None
    top5: float | None = None
    shortcut: str = ""  # A, B or C, where the row says


def _table6(model, label, error, layers=None, parameters=None, mean=None, std=None, seeds=None) -> Quoted:
    return Quoted(model, label, error, f"Table 6, {label}", layers, parameters, mean, std, seeds)


TABLE6: dict[str, Quoted] = {
    row.model: row
    for row in (
        _table6("maxout", "Maxout", 9.38),
        _table6("nin", "NIN", 8.81),
        _table6("dsn", "DSN", 8.22),
        _table6("fitnet19", "FitNet-19", 8.39, 19, 2.5e6),
        _table6("highway19", "Highway-19", 7.54, 19, 2.3e6, 7.72, 0.16),
        _table6("highway32", "Highway-32", 8.80, 32, 1.25e6),
        _table6("resnet20", "ResNet-20", 8.75, 20, 0.27e6),
        _table6("resnet32", "ResNet-32", 7.51, 32, 0.46e6),
        _table6("resnet44", "ResNet-44", 7.17, 44, 0.66e6),
        _table6("resnet56", "ResNet-56", 6.97, 56, 0.85e6),
        _table6("resnet110", "ResNet-110", 6.43, 110, 1.7e6, 6.61, 0.16, 5),  # 6.43 is the best of the five runs
        _table6("resnet1202", "ResNet-1202", 7.93, 1202, 19.4e6),
    )
}

TEST_IMAGES = 10_000  # CIFAR-10 test images behind every error of Table 6
PAPER_ITERATIONS, PAPER_BATCH = 64_000, 128  # section 4.2
FIGURE1_DEPTHS = (20, 56)
FIGURE6_PLAIN = (20, 32, 44, 56)  # "The error of plain-110 is higher than 60% and not displayed" (caption)
FIGURE6_RESNET = (20, 32, 44, 56, 110)
PLAIN110_TRAINING_ERROR_ABOVE = 60.0  # %, caption of Figure 6
WARMUP_ITERATIONS = 400  # section 4.2: "until the training error is below 80% (about 400 iterations)"
RESNET1202_TRAINING_ERROR_BELOW = 0.1  # %, section 4.2, "Exploring over 1000 layers"

# Table 1, row "FLOPs", which are multiply-adds; 19.6 billion for VGG-19 is quoted in section 3.3 and Figure 3.
# VGG-16's 15.3 billion (section 4.1) are its convolutions alone, VGG-19's 19.6 include the fc layers.
MULTIPLY_ADDS: dict[str, float] = {
    "resnet18": 1.8e9,
    "resnet34": 3.6e9,
    "resnet50": 3.8e9,
    "resnet101": 7.6e9,
    "resnet152": 11.3e9,
    "plain18": 1.8e9,
    "plain34": 3.6e9,
    "vgg16": 15.3e9,
    "vgg19": 19.6e9,
}

TABLE2: tuple[ImageNetRow, ...] = (  # top-1, 10-crop, validation
    ImageNetRow("plain18", "plain-18", "Table 2", 27.94),
    ImageNetRow("plain34", "plain-34", "Table 2", 28.54),
    ImageNetRow("resnet18", "ResNet-18", "Table 2", 27.88, shortcut="A"),
    ImageNetRow("resnet34", "ResNet-34", "Table 2", 25.03, shortcut="A"),
)
TABLE3: tuple[ImageNetRow, ...] = (  # 10-crop, validation
    ImageNetRow("", "VGG-16", "Table 3", 28.07, 9.33),
    ImageNetRow("", "GoogLeNet", "Table 3", None, 9.15),
    ImageNetRow("", "PReLU-net", "Table 3", 24.27, 7.38),
    ImageNetRow("plain34", "plain-34", "Table 3", 28.54, 10.02),
    ImageNetRow("resnet34", "ResNet-34 A", "Table 3", 25.03, 7.76, "A"),
    ImageNetRow("resnet34", "ResNet-34 B", "Table 3", 24.52, 7.46, "B"),
    ImageNetRow("resnet34", "ResNet-34 C", "Table 3", 24.19, 7.40, "C"),
    ImageNetRow("resnet50", "ResNet-50", "Table 3", 22.85, 6.71, "B"),
    ImageNetRow("resnet101", "ResNet-101", "Table 3", 21.75, 6.05, "B"),
    ImageNetRow("resnet152", "ResNet-152", "Table 3", 21.43, 5.71, "B"),
)
TABLE4: tuple[ImageNetRow, ...] = (  # best single model, validation
    ImageNetRow("", "VGG (ILSVRC'14)", "Table 4", None, 8.43),
    ImageNetRow("", "GoogLeNet (ILSVRC'14)", "Table 4", None, 7.89),
    ImageNetRow("", "VGG (v5)", "Table 4", 24.4, 7.1),
    ImageNetRow("", "PReLU-net", "Table 4", 21.59, 5.71),
    ImageNetRow("", "BN-inception", "Table 4", 21.99, 5.81),
    ImageNetRow("resnet34", "ResNet-34 B", "Table 4", 21.84, 5.71, "B"),
    ImageNetRow("resnet34", "ResNet-34 C", "Table 4", 21.53, 5.60, "C"),
    ImageNetRow("resnet50", "ResNet-50", "Table 4", 20.74, 5.25, "B"),
    ImageNetRow("resnet101", "ResNet-101", "Table 4", 19.87, 4.60, "B"),
    ImageNetRow("resnet152", "ResNet-152", "Table 4", 19.38, 4.49, "B"),
)
TABLE5: tuple[ImageNetRow, ...] = (  # ensembles, test set
    ImageNetRow("", "VGG (ILSVRC'14)", "Table 5", None, 7.32),
    ImageNetRow("", "GoogLeNet (ILSVRC'14)", "Table 5", None, 6.66),
    ImageNetRow("", "VGG (v5)", "Table 5", None, 6.8),
    ImageNetRow("", "PReLU-net", "Table 5", None, 4.94),
    ImageNetRow("", "BN-inception", "Table 5", None, 4.82),
    ImageNetRow("", "ResNet (six models)", "Table 5", None, 3.57),
)

# Counted from section 4.2's layer sizes with option A; the same for plain and residual. Option B adds the two 1x1
# projections with their batch norms.
EXACT_PARAMETERS: dict[int, int] = {
    20: 269_722,
    32: 464_154,
    44: 658_586,
    56: 853_018,
    110: 1_727_962,
    1202: 19_421_274,
}

# Not the paper's: errors another implementation publishes with its weights. They are the best evaluation on the test
# set, so compare them with "best on test" alone. The recipe is that of its trainer.py.
PEERS_SOURCE = "README of github.com/akamaster/pytorch_resnet_cifar10"
PEERS_RECIPE = "200 epochs, rate divided at 100 and 150, RGB mean and std, black padding; the best of 200 evaluations"
PEERS: dict[str, float] = {"resnet20": 8.27, "resnet32": 7.37, "resnet44": 6.90, "resnet56": 6.61}


def label(model: str) -> str:
    """Name of a model as the paper writes it: resnet20 -> ResNet-20, plain56 -> plain-56; others unchanged."""
    if model in TABLE6:
        return TABLE6[model].label
    for family, written in (("resnet", "ResNet"), ("plain", "plain"), ("vgg", "VGG")):
        if model.startswith(family) and model[len(family) :].isdigit():
            return f"{written}-{model[len(family) :]}"
    return model
