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


@pytest.mark.parametrize(("rounds", "rejects"), [(2, False), (5, False), (6, True), (8, True)])
def test_rounds_that_all_agree_differ_from_six_on(rounds: int, rejects: bool) -> None:
    drift = [1.0 + 0.3 * number for number in range(rounds)]  # shared by both, and far larger than the difference
    found = paired_ratio(drift, [1.02 * value for value in drift])
    assert found.value == pytest.approx(1.02)
    assert found.rounds == rounds
    assert found.p_value == pytest.approx(2 * 0.5**rounds)
    assert found.p_value is not None
    assert (found.p_value < 0.05) == rejects
    assert (found.interval is not None) == rejects


def test_one_round_that_disagrees_of_six_is_no_difference() -> None:
    found = paired_ratio([1.0] * 6, [1.1, 1.1, 1.1, 1.1, 1.1, 0.9])
    assert found.p_value == pytest.approx(14 / 64)
    assert found.interval is not None
    assert found.interval.low < 1 < found.interval.high


def test_within_a_run_processes_are_paired_by_their_number_and_between_runs_they_are_not() -> None:
    drift = {number: [1.0 + number] * 20 for number in range(1, 7)}
    first = summarize_latency([1.0] * 20, batch_size=1, repeats=drift)
    second = summarize_latency(
        [1.1] * 20, batch_size=1, repeats={number: [1.1 * its[0]] * 20 for number, its in drift.items() if number > 1}
    )
    one_run, two_runs = (latency_ratio(first, second, one_run=one) for one in (True, False))
    assert (one_run.rounds, two_runs.rounds) == (6, 0)
    assert one_run.interval is not None
    assert two_runs.interval is not None
    assert one_run.interval.high / one_run.interval.low == pytest.approx(1)
    assert two_runs.interval.high / two_runs.interval.low > 2
    # The calls of one process are no measure of how processes differ.
    assert latency_ratio(first, summarize_latency([1.1] * 20, batch_size=1), one_run=False).interval is None
