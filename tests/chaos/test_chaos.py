"""The short version of the kill test; the long one is `python tests/chaos/harness.py --kills 100`."""

import pytest
from harness import PHASES, chaos


def test_killed_at_random_moments_nothing_is_lost_or_repeated(tmp_path):
    runs, deaths, found = chaos(8, seed=3, folder=tmp_path)
    assert sum(deaths.values()) >= 8
    assert len(deaths) > 4, f"only {deaths}"
    assert not found


@pytest.mark.long
def test_killed_a_hundred_times_in_every_phase(tmp_path):
    runs, deaths, found = chaos(100, seed=4, folder=tmp_path)
    assert sum(deaths.values()) >= 100
    assert set(PHASES) <= set(deaths), f"only {deaths}"
    assert any("half of" in where for where in deaths) and any("just after" in where for where in deaths)
    assert not found
