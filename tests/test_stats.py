"""Statistics against hand computation and scipy."""

import math

import numpy as np
import pytest
import scipy.stats

from reslib import stats


def test_summary_by_hand():
    s = stats.summarize([1.0, 2.0, 3.0, float("nan"), None])
    assert (s.n, s.mean, s.std, s.best) == (3, 2.0, 1.0, 1.0)  # ddof = 1
    half = 4.302653 / math.sqrt(3)  # t table, 2 degrees of freedom
    assert (s.low, s.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert not s.zero_variance and s.standard_error == pytest.approx(1 / math.sqrt(3))


def test_one_value_has_no_interval():
    s = stats.summarize([0.1])
    assert s.n == 1 and all(map(math.isnan, (s.std, s.low, s.high, s.standard_error))) and not s.zero_variance


def test_zero_variance_is_flagged_even_where_rounding_would_hide_it():
    s = stats.summarize([0.1] * 3)
    assert s.zero_variance and s.std == 0.0 and s.low == s.high == s.mean
    assert not stats.summarize([0.1, 0.1, 0.1001]).zero_variance


def test_nothing_to_summarize():
    with pytest.raises(ValueError, match="no finite value"):
        stats.summarize([float("nan")])


def test_binomial_error_of_one_test():
    assert 100 * stats.binomial_error(0.07, 10_000) == pytest.approx(0.2551, abs=1e-4)
    with pytest.raises(ValueError, match="6.61"):
        stats.binomial_error(6.61, 10_000)


def test_welch_against_scipy():
    a, b = [6.4, 6.7, 6.5, 6.9], [7.1, 7.6, 7.0]
    reference = scipy.stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    d = stats.welch(a, b)
    assert (d.low, d.high) == pytest.approx((reference.low, reference.high))
    assert d.difference == pytest.approx(sum(b) / 3 - sum(a) / 4)


def test_pooled_against_scipy():
    a, b = [8.1, 8.4, 8.2], [7.6, 8.0, 7.9, 7.7]
    d = stats.pooled(a, b)
    expected = scipy.stats.ttest_ind(b, a).confidence_interval()
    assert (d.low, d.high) == pytest.approx((expected.low, expected.high)) and d.degrees == 5
    for none in (stats.pooled([8.0], [9.0]), stats.pooled([8.0, 8.0], [9.0])):
        assert none.difference == 1.0 and math.isnan(none.low) and math.isnan(none.standard_error)


def test_pooled_with_others_is_the_regression_on_groups():
    groups = [[8.1, 8.4], [7.6], [9.0, 9.3, 9.5], [6.0]]
    d = stats.pooled(groups[0], groups[1], groups[2:])
    y, labels = np.concatenate(groups), np.repeat(range(4), [len(g) for g in groups])
    design = (labels[:, None] == range(4)).astype(float)
    _, squares, *_ = np.linalg.lstsq(design, y, rcond=None)
    contrast = np.array([-1, 1, 0, 0])
    error = math.sqrt(squares[0] / 3 * contrast @ np.linalg.inv(design.T @ design) @ contrast)
    assert d.degrees == 3 and d.standard_error == pytest.approx(error)
    assert d.high - d.difference == pytest.approx(scipy.stats.t.ppf(0.975, 3) * error)
    assert stats.pooled([8.0], [9.0], [[7.0, 7.2]]).standard_error == pytest.approx(math.sqrt(2 * 0.02))


def test_a_single_values_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [stats.pooled(rng.normal(size=3), rng.normal(size=1)) for _ in range(4000)]
    assert sum(d.low <= 0 <= d.high for d in found) / 4000 == pytest.approx(0.95, abs=0.012)


def test_welch_needs_two_values_a_side():
    d = stats.welch([1.0], [2.0, 3.0])
    assert d.difference == 1.5 and math.isnan(d.low) and math.isnan(d.standard_error)


def test_the_papers_interval():
    assert stats.t_quantile(4) == pytest.approx(2.776445)
    d = stats.welch_from_moments(6.61, 0.16, 5, 6.61, 0.16, 5)
    assert d.degrees == pytest.approx(8) and d.high == pytest.approx(2.306004 * 0.16 * math.sqrt(0.4), rel=1e-5)
