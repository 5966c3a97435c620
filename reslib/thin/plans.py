"""How the work of each kernel of a thin unit is dealt out, by filters: measured on an H200 at the paper's batch.

`python scripts/thin_timing.py` tries others in whole units and prints the fastest. The tiles of `reduce` are large,
since every program of `correlate` reads the sums of all of them: with 64 filters and tiles of 64 rows four times as
many numbers as such a tile has.
"""

from __future__ import annotations

from typing import NamedTuple


class Plan(NamedTuple):
    """rows: of a map, per program, or at a time where a program goes on to more. warps, stages: of its launch.

    block: channels of a program of `activate`, 0 for all. columns, programs: of `correlate`, inputs of a program's part
    of the weight's gradient, and about how many programs there are, over all parts.
    """

    rows: int
    warps: int = 4
    stages: int = 3
    block: int = 0
    columns: int = 0
    programs: int = 256


LEAST_ROWS, MOST_VALUES = 32, 8192  # of a program's tile
ENOUGH = {"reduce": 32}  # programs: a tile of fewer rows is taken where there would be fewer
USUALLY_ENOUGH = 128
MAX_TILES = 1024  # whose sums every program joins for itself
# (kernel, filters before, filters after): where these are not told apart, both are those of the map.
PLANS = {
    ("convolve", 3, 16): Plan(512),
    ("convolve", 16, 16): Plan(512),
    ("convolve", 16, 32): Plan(128),
    ("convolve", 32, 32): Plan(128),
    ("convolve", 32, 64): Plan(64),
    ("convolve", 64, 64): Plan(64),
    ("activate", 16, 16): Plan(512),
    ("activate", 32, 32): Plan(256, block=16),
    ("activate", 64, 64): Plan(256, block=16),
    ("reduce", 16, 16): Plan(512),
    ("reduce", 32, 32): Plan(512, warps=8),
    ("reduce", 64, 64): Plan(256, warps=8),
    ("correlate", 3, 16): Plan(64, columns=32),
    ("correlate", 16, 16): Plan(64, columns=256),
    ("correlate", 16, 32): Plan(64, columns=128, programs=128),
    ("correlate", 32, 32): Plan(64, columns=128, programs=128),
    ("correlate", 32, 64): Plan(64, columns=128, programs=128),
    ("correlate", 64, 64): Plan(64, columns=128, programs=128),
    ("transpose", 16, 16): Plan(512),
    ("transpose", 16, 32): Plan(256),
    ("transpose", 32, 32): Plan(128),
    ("transpose", 32, 64): Plan(128),
    ("transpose", 64, 64): Plan(64),
}


def plan_of(kernel: str, before: int, after: int) -> Plan:
    """The plan for such filters; where none was measured (a net of another width), that of its map's filters alone."""
    own = before if kernel == "transpose" else after
    return PLANS.get((kernel, before, after)) or PLANS[kernel, own, own]


def parts(whole: int, part: int) -> int:
    """How many such parts the whole has, the last one perhaps smaller."""
    return -(-whole // part)


def power(number: int) -> int:
    """The power of two that is no smaller."""
    return 1 << (number - 1).bit_length()


def tile(kernel: str, plan: Plan, rows: int, channels: int) -> int:
    """Rows of a program out of so many: the plan's, fewer of a small batch, more of a large one."""
    block = plan.block or channels
    enough = ENOUGH.get(kernel, USUALLY_ENOUGH) * block // channels  # in this direction
    chosen = max(min(plan.rows, power(parts(rows, enough))), LEAST_ROWS)
    while parts(rows, chosen) > MAX_TILES and chosen * block < MOST_VALUES:
        chosen *= 2
    return chosen
