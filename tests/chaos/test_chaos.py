"""The short version of the kill test; the long one is `python tests/chaos/harness.py --kills 100`."""

import pytest
from harness import BRIEFLY, FILES, PHASES, chaos


def test_killed_at_random_moments_nothing_is_lost_or_repeated(tmp_path):
    runs, deaths, found = chaos(sum(map(len, BRIEFLY)), seed=3, folder=tmp_path, kinds=BRIEFLY)
    assert sum(deaths.values()) >= 12
    assert {kind for kinds in BRIEFLY for kind in kinds if kind} <= set(deaths), f"only {deaths}"
    assert not found


@pytest.mark.long
def test_killed_a_hundred_times_in_every_phase(tmp_path):
    runs, deaths, found = chaos(100, seed=4, folder=tmp_path)
    assert sum(deaths.values()) >= 100
    assert set(PHASES) <= set(deaths), f"only {deaths}"
    assert all({f"half of {name}", f"just after {name}"} & set(deaths) for name in FILES), f"only {deaths}"
    assert not found
