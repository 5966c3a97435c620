"""What a sample of errors says: mean, spread, intervals, and how large a difference must be to mean something.

Errors are fractions here unless the caller passes percentages; nothing depends on the unit but `binomial_error`.
scipy is imported where Student's t is needed, so that `import reslib` does not need it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """A sample's statistics. std, low and high are NaN for a single value."""

    n: int
    mean: float
    std: float  # ddof = 1
    best: float  # the smallest: the best of n seeds, not an estimate of what a run gives
    low: float  # 95% t interval of the mean
    high: float
    zero_variance: bool  # more than one seed, all equal: the seeds did not change anything

    @property
    def standard_error(self) -> float:
        """Of the mean; NaN for a single value."""
        return self.std / math.sqrt(self.n) if self.n > 1 else math.nan


@dataclass(frozen=True)
class Difference:
    """second - first with its 95% interval (Welch); interval and standard error are NaN below two values a side."""

    difference: float
    standard_error: float
    degrees: float
    low: float
    high: float


def summarize(values: Iterable[float]) -> Summary:
    """Summary of the finite ones among `values`. Raises ValueError if there are none."""
    x = np.asarray([v for v in values if v is not None and np.isfinite(v)], dtype=float)
    if not len(x):
        raise ValueError("no finite value to summarize")
    n, mean = len(x), float(x.mean())
    if n == 1:
        return Summary(1, mean, math.nan, mean, math.nan, math.nan, False)
    constant = bool((x == x[0]).all())
    std = 0.0 if constant else float(x.std(ddof=1))
    half = t_quantile(n - 1) * std / math.sqrt(n)
    return Summary(n, mean, std, float(x.min()), mean - half, mean + half, constant)


def t_quantile(degrees: float, confidence: float = 0.95) -> float:
    """Two-sided quantile of Student's t: 2.776 for 4 degrees of freedom at 95%."""
    from scipy.special import stdtrit  # of scipy.stats the import alone would take longer than the whole table

    return float(stdtrit(degrees, 0.5 + confidence / 2))


def binomial_error(error: float, images: int) -> float:
    """Standard error of an error rate (a fraction) measured on `images` images: 0.0025 for 6.6% of 10,000."""
    if not 0 <= error <= 1:
        raise ValueError(f"error {error} is not a fraction between 0 and 1")
    return math.sqrt(error * (1 - error) / images)


def welch(first: Iterable[float], second: Iterable[float]) -> Difference:
    """Difference of the means of two samples of unequal variances, second - first."""
    a, b = summarize(first), summarize(second)
    return welch_from_moments(a.mean, a.std, a.n, b.mean, b.std, b.n)


def pooled(first: Iterable[float], second: Iterable[float], others: Iterable[Iterable[float]] = ()) -> Difference:
    """second - first of the means, all samples taken to have the same variance; single values are allowed.

    others: further samples, which tell more about that variance. Student's interval. NaN where no sample has two values
    or there is no variance.
    """
    a, b = summarize(first), summarize(second)
    several = [s for s in (a, b, *map(summarize, others)) if s.n > 1]
    degrees = sum(s.n - 1 for s in several)
    squares = sum((s.n - 1) * s.std**2 for s in several)
    difference = b.mean - a.mean
    if not squares:
        return Difference(difference, math.nan, math.nan, math.nan, math.nan)
    error = math.sqrt(squares / degrees * (1 / a.n + 1 / b.n))
    half = t_quantile(degrees) * error
    return Difference(difference, error, degrees, difference - half, difference + half)


def welch_from_moments(mean1: float, std1: float, n1: int, mean2: float, std2: float, n2: int) -> Difference:
    """The same from printed means and standard deviations, such as 6.61 ± 0.16 of five runs."""
    difference = mean2 - mean1
    if min(n1, n2) < 2:
        return Difference(difference, math.nan, math.nan, math.nan, math.nan)
    v1, v2 = std1**2 / n1, std2**2 / n2
    if v1 + v2 == 0:
        return Difference(difference, 0.0, math.nan, difference, difference)
    degrees = (v1 + v2) ** 2 / (v1**2 / (n1 - 1) + v2**2 / (n2 - 1))
    error = math.sqrt(v1 + v2)
    half = t_quantile(degrees) * error
    return Difference(difference, error, degrees, difference - half, difference + half)
