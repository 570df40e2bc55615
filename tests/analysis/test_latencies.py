"""The ratio of medians has an interval that covers it."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowbit_vit.analysis.latencies import Ratio, latency_ratio, paired_ratio
from lowbit_vit.schema.metrics import summarize_latency

SAMPLES = st.lists(st.floats(0.1, 1000.0), min_size=6, max_size=60)


def ratio_of_medians(first: list[float], second: list[float]) -> Ratio:
    """Of one process each."""
    return latency_ratio(*(summarize_latency(samples, batch_size=1) for samples in (first, second)), one_run=True)


@given(SAMPLES, SAMPLES)
def test_swapping_the_samples_gives_the_reciprocal_ratio(first: list[float], second: list[float]) -> None:
    ratio, swapped = ratio_of_medians(first, second), ratio_of_medians(second, first)
    assert swapped.value == pytest.approx(1 / ratio.value)
    assert ratio.interval is not None
    assert swapped.interval is not None
    assert (swapped.interval.low, swapped.interval.high) == pytest.approx((1 / ratio.interval.high, 1 / ratio.interval.low))
    assert ratio.interval.low <= ratio.value <= ratio.interval.high


@given(SAMPLES, SAMPLES, st.floats(0.5, 2.0), st.integers(0, 10**6))
def test_neither_order_nor_unit_matters(first: list[float], second: list[float], unit: float, seed: int) -> None:
    ratio = ratio_of_medians(first, second)
    random = np.random.default_rng(seed)
    moved = [(random.permutation(samples) * unit).tolist() for samples in (first, second)]
    other = ratio_of_medians(*moved)
    assert other.value == pytest.approx(ratio.value)
    assert ratio.interval is not None
    assert other.interval is not None
    assert (other.interval.low, other.interval.high) == pytest.approx((ratio.interval.low, ratio.interval.high))


def test_too_few_samples_give_a_ratio_without_an_interval() -> None:
    assert ratio_of_medians([1.0, 2.0, 3.0], [2.0] * 10).interval is None


def test_a_time_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        paired_ratio([1.0, 0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="positive"):
        paired_ratio([], [])


@pytest.mark.parametrize("count", [30, 200])
def test_the_ratios_interval_covers_it_at_least_94_percent_of_the_time(count: int) -> None:
    """Log-normal latencies of unlike spread, the second's median 1.3 times the first's."""
    random = np.random.default_rng(0)
    covered = []
    for _ in range(500):
        found = ratio_of_medians(random.lognormal(0, 0.05, count).tolist(), random.lognormal(math.log(1.3), 0.3, count).tolist())
        covered.append(found.interval is not None and found.interval.low <= 1.3 <= found.interval.high)
    assert np.mean(covered) >= 0.94
