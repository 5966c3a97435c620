"""The short version of the kill test; the long one is `python tests/chaos/harness.py --kills 100`."""

import pytest
from harness import chaos


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.long)])
def test_killed_at_random_moments_nothing_is_lost_or_repeated(tmp_path, kills):
    runs, deaths, found = chaos(kills, seed=3, folder=tmp_path)
    assert sum(deaths.values()) >= kills
    assert len(deaths) > 1, f"only {deaths}"
    assert not found
