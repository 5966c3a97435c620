"""Durations for people, in the unit that suits their length."""

from __future__ import annotations

import math

MINUTES_FROM, HOURS_FROM, DAYS_FROM = 99.5, 99.5 * 60, 48 * 3600.0  # seconds from which the next unit reads better
SHORTEST = 0.1  # seconds; nobody plans for less


def in_words(seconds: float) -> str:
    """ "34 s", "3.2 min", "12.5 h" or "1,234 d"; "?" for NaN, "<0.1 s" for the shortest but 0."""
    if math.isnan(seconds):
        return "?"
    if 0 < seconds < SHORTEST:
        return f"<{SHORTEST:g} s"
    if seconds < MINUTES_FROM:
        return f"{_number(seconds, 10)} s"
    if seconds < HOURS_FROM:
        return f"{_number(seconds / 60, 10)} min"
    if seconds < DAYS_FROM:
        return f"{_number(seconds / 3600, 100)} h"
    return f"{_number(seconds / 86_400, 100)} d"


def _number(value: float, whole_from: float) -> str:
    """With one decimal below `whole_from`, without above."""
    return f"{value:.1f}" if 0 < value < whole_from - 0.05 else f"{value:,.0f}"
