"""The other networks of Table 6 as models to train: maxout, nin, dsn, fitnet19, highway19, highway32.

Each has a module of its own (maxout.py, nin.py, dsn.py, fitnet.py, highway.py). Its recipe is in baseline_recipes.py:
the fields that differ from the study's own, each with its source and with what its paper did otherwise. Layer widths
come from the papers and, where those are silent, from the configurations their authors released.

Iterations, batch size, momentum and augmentation stay the study's, so a row trained here is that network under this
study's budget, not a rerun of its paper. Everywhere: preprocessing is channel-std in place of the originals' global
contrast normalisation and ZCA whitening, which a recipe does not have, because nets without batch norm need inputs of
unit size. The learning rate is divided by 10 at the study's points. Weight decay acts on every parameter; the originals
spared biases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

from ..baseline_recipes import BASELINE_RECIPES
from . import dsn, fitnet, highway, maxout, nin

__all__ = ["BASELINES", "BASELINE_RECIPES"]

BASELINES: dict[str, Callable[..., nn.Module]] = {  # name: factory
    "maxout": maxout.MaxoutNet,
    "nin": nin.NIN,
    "dsn": dsn.DSN,
    "fitnet19": fitnet.FitNet19,
    "highway19": highway.HighwayNet,
    "highway32": functools.partial(highway.HighwayNet, **highway.HIGHWAY32),
}
