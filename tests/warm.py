"""Imported once by the fork server of the tests, so that its processes start at once."""

import own_models  # noqa: F401
import torch
import torch._inductor  # noqa: F401  use_deterministic_algorithms needs it, and it takes seconds

import reslib.commands.train  # noqa: F401
import reslib.executor  # noqa: F401
from reslib import data

torch.set_num_threads(1)
data.load("synthetic")
