"""The recipes of the other networks of Table 6: the fields in which they differ from the study's own.

Each with its source and with what its paper did otherwise, in the network itself too; `reslib/models/baselines.py` says
what they have in common.
No PyTorch here: `reslib report` reads records in a second and shall not wait longer than that for an import.
"""

from __future__ import annotations

from typing import Any

# cifar10.yaml: convolution rate 0.17 x 0.05 = 0.0085 at momentum 0.5 rising to 0.65, worth 0.0024 at momentum 0.9;
# 0.002 here, for all layers (0.01 diverges on a few images in spite of the limits). Weight decay as in the study; the
# original has none.
MAXOUT: dict[str, Any] = {"lr": 0.002, "weight_decay": 1e-4, "preprocessing": "channel-std"}

# The authors start at 0.1 with a tenth of it on the last layer. A recipe has one rate: 0.02 (0.05 spikes at first).
# Weight decay 1e-4 as theirs.
NIN: dict[str, Any] = {"lr": 0.02, "weight_decay": 1e-4, "preprocessing": "channel-std"}

# Released solver: 0.025 and decay 5e-4, with a tenth of the rate on the last layer. The rate is 0.0025 for all layers
# here: the squared hinge summed over ten classes diverges in the first iterations at 0.025.
DSN: dict[str, Any] = {"lr": 0.0025, "weight_decay": 5e-4, "preprocessing": "channel-std"}

# RMSProp at 0.005 in the release. Here SGD at 0.01: even with batch norm the loss rises at first from 0.05 on, as the
# 8x8 max pool hands the dense layer large positive inputs.
FITNET: dict[str, Any] = {"lr": 0.01, "weight_decay": 1e-4, "preprocessing": "channel-std"}

# Released solver: Nesterov momentum, 0.025, decay 1e-3 on weights alone. Decay is 5e-4 here because it also pulls the
# gate biases, on which the method rests, back to zero.
HIGHWAY: dict[str, Any] = {"lr": 0.025, "nesterov": True, "weight_decay": 5e-4, "preprocessing": "channel-std"}

BASELINE_RECIPES: dict[str, dict[str, Any]] = {  # name: recipe fields
    "maxout": MAXOUT,
    "nin": NIN,
    "dsn": DSN,
    "fitnet19": FITNET,
    "highway19": HIGHWAY,
    "highway32": HIGHWAY,
}

ARCHITECTURES = {  # name: how the network itself departs from its own paper, see its module
    "nin": "no ReLU on the class maps",
    "dsn": "parameters with those of the companion classifiers, multiply-adds without",
    "fitnet19": "batch norm added, no hints",
    "highway32": "layer sizes assumed from depth and number of parameters",
}
