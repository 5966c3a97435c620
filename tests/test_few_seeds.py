"""Networks of fewer than three seeds are judged by the spread of all, and no more sharply than single seeds."""

import re

import pandas as pd
import pytest
from fake_frames import fake_runs
from test_claims import judge

from reslib.claims import HOLDS, UNDECIDED


def test_few_seeds_are_judged_by_the_spread_of_all():
    """Student's t of one degree of freedom is 12.7: a second seed would take claims away."""
    runs = fake_runs({"plain20": [9.0, 9.3], "plain56": [12.3]})
    runs.loc[runs["model"] == "plain56", "train_error"] = 0.09
    runs["train_error"] += 0.0001 * runs["seed"]
    assert judge("degradation", runs)[0] == UNDECIDED
    others = fake_runs({"resnet20": [8.0, 8.2, 8.4, 8.3]})
    others["train_error"] += 0.0001 * others["seed"]

    def judged(runs, others):
        return judge("degradation", pd.concat([runs, others], ignore_index=True))

    verdict, evidence = judged(runs, others)
    assert verdict == HOLDS and "if seeds spread alike" in evidence
    second = runs[runs["model"] == "plain56"].assign(seed=1, test_error=0.119, train_error=0.0901, run="second")
    assert judged(pd.concat([runs, second]), others)[0] == HOLDS  # two against two
    assert judged(runs, others.assign(iterations=6400))[0] == UNDECIDED  # of another length: tells nothing of these
    assert judged(runs, fake_runs({"resnet20": [8.0, 8.0, 8.0]}))[0] == UNDECIDED  # seeds that did nothing


def test_seeds_of_other_networks_that_hardly_differ_do_not_make_single_seeds_sharp():
    runs = fake_runs({"plain20": [9.0, 9.01], "plain56": [9.9], "resnet20": [8.0, 8.01, 8.0, 8.01]})
    runs["train_error"] = runs["test_error"]
    verdict, evidence = judge("degradation", runs)
    half = 400 * (0.09 * 0.91 / 10_000 + 0.099 * 0.901 / 10_000) ** 0.5  # not narrower than for single seeds
    low, high = (float(x) for x in re.search(r"95% (\S+) to (\S+),", evidence.split("; test ")[1]).groups())
    assert verdict == UNDECIDED and high - low == pytest.approx(2 * half, abs=0.03)
