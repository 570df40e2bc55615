"""Kendall's tau and its interval give the published values, and cover what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit_vit.analysis.intervals import agreement, kendall, kendall_error, kendall_interval

# Hollander and Wolfe, example 8.1: canned tuna, Hunter L values and panel scores.
LIGHTNESS = [44.4, 45.9, 41.9, 53.3, 44.7, 44.1, 50.7, 45.2, 60.1]
QUALITY = [2.6, 3.1, 2.5, 5.0, 3.6, 4.0, 5.2, 2.8, 3.8]
RANKINGS = st.permutations(range(10))


def test_kendall_gives_tau_of_hollander_and_wolfe() -> None:
    assert kendall(LIGHTNESS, QUALITY) == pytest.approx(0.4444, abs=5e-5)


def test_the_standard_error_gives_the_interval_that_nsm3_prints() -> None:
    # R's NSM3 (by Hollander, Wolfe and Chicken): kendall.ci(v1, v2, alpha=0.05) prints 0.086, 1.026.
    first = [0.12632, 0.25323, 0.247795, 0.127333, 0.130614, 0.123545, 0.124859, 0.125128, 0.127432, 0.126298]
    second = [0.086295, 0.167651, 0.185547, 0.085869, 0.083142, 0.081917, 0.084289, 0.083599, 0.085979, 0.084533]
    tau = kendall(first, second)
    assert tau is not None
    half = 1.959964 * kendall_error(first, second)
    assert (tau - half, tau + half) == pytest.approx((0.086, 1.026), abs=5e-4)


def test_kendall_has_no_value_for_a_ranking_of_ties() -> None:
    assert kendall([1, 1, 1], [1, 2, 3]) is None
    assert agreement([[1, 1, 1], [1, 2, 3]]) is None


def test_agreement_averages_over_all_pairs() -> None:
    assert agreement([[1, 2, 3], [1, 2, 3], [3, 2, 1]]) == pytest.approx((1 - 1 - 1) / 3)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2, 3, 4], [2, 1, 3, 4]),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]),
        ([1, 1, 2, 3, 4], [1, 2, 3, 5, 4]),
    ],
    ids=["too few", "all agree", "all disagree", "ties"],
)
def test_there_is_no_interval_where_its_error_cannot_be_estimated(first: list[float], second: list[float]) -> None:
    assert kendall_interval(first, second) is None


@given(RANKINGS, RANKINGS)
def test_the_interval_does_not_depend_on_which_ranking_comes_first_and_turns_with_its_direction(a: list[int], b: list[int]) -> None:
    interval, turned = kendall_interval(a, b), kendall_interval(a, [-value for value in b])
    assert interval == kendall_interval(b, a)
    assert (interval is None) == (turned is None)
    if interval is not None and turned is not None:
        assert (turned.low, turned.high) == pytest.approx((-interval.high, -interval.low))


@given(RANKINGS, RANKINGS, RANKINGS)
def test_the_order_of_the_things_does_not_matter(a: list[int], b: list[int], order: list[int]) -> None:
    moved = kendall_interval([a[i] for i in order], [b[i] for i in order])
    interval = kendall_interval(a, b)
    assert (moved is None) == (interval is None)
    if interval is not None and moved is not None:
        assert (moved.low, moved.high) == pytest.approx((interval.low, interval.high))


@given(RANKINGS, RANKINGS)
def test_more_confidence_makes_a_wider_interval(a: list[int], b: list[int]) -> None:
    narrow, wide = kendall_interval(a, b, confidence=0.9), kendall_interval(a, b, confidence=0.99)
    if narrow is not None and wide is not None:
        assert wide.low <= narrow.low <= narrow.high <= wide.high


@pytest.mark.parametrize("blocks", [8, 12, 24])
def test_the_interval_covers_tau_at_least_94_percent_of_the_time_with_as_many_blocks_as_ours(blocks: int) -> None:
    """Bivariate normal values with known tau; rankings without an interval are not counted."""
    random = np.random.default_rng(0)
    coverage = {}
    for tau in (0.0, 0.3, 0.6, 0.8):
        correlation = np.sin(np.pi * tau / 2)
        x = random.normal(size=(400, blocks))
        y = correlation * x + np.sqrt(1 - correlation**2) * random.normal(size=(400, blocks))
        found = [kendall_interval(list(a), list(b)) for a, b in zip(x, y, strict=True)]
        known = [interval for interval in found if interval is not None]
        coverage[tau] = sum(interval.low <= tau <= interval.high for interval in known) / len(known)
    # 1,600 draws: the standard error of the mean is half a point.
    assert np.mean(list(coverage.values())) >= 0.94, coverage
    assert min(coverage.values()) >= 0.92, coverage
