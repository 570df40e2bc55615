from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom

import synthetic
from lowbit_vit.schema.metrics import Interval, disturbance, percentile, percentile_interval, summarize_latency
from lowbit_vit.schema.record import Host
from lowbit_vit.study.cells import cells


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("count", [10, 72, 200, 1000, 5000])
def test_interval_is_scipys_binomial_one(count: int, q: float) -> None:
    samples = np.random.default_rng(0).permutation(count).astype(float).tolist()
    low = int(binom.ppf(0.025, count, q))
    high = int(binom.ppf(0.975, count, q)) + 1
    expected = None if low < 1 or high > count else Interval(low=low - 1, high=high - 1)
    assert percentile_interval(samples, q) == expected


@pytest.mark.parametrize(("q", "least"), [(0.5, 6), (0.95, 72), (0.99, 368)])
def test_too_few_samples_give_no_interval(q: float, least: int) -> None:
    samples = [float(value) for value in range(least)]
    assert percentile_interval(samples, q) is not None
    assert percentile_interval(samples[:-1], q) is None


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_interval_covers_the_true_quantile_at_least_as_often_as_it_says(q: float) -> None:
    draws = np.random.default_rng(1).exponential(size=(400, 100))
    truth = -np.log(1 - q)
    intervals = [percentile_interval(draw.tolist(), q) for draw in draws]
    covered = sum(interval is not None and interval.low <= truth <= interval.high for interval in intervals)
    assert covered / 400 >= 0.93


@pytest.mark.parametrize("q", [0.01, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("count", [1, 2, 10, 200, 1000])
def test_percentile_is_the_least_sample_that_a_share_q_does_not_exceed(count: int, q: float) -> None:
    samples = np.random.default_rng(2).normal(size=count).tolist()
    share = Fraction(str(q))  # 0.95 * 200 is 190.00000000000003 in floats
    enough = [sample for sample in samples if sum(other <= sample for other in samples) >= share * count]
    assert percentile(samples, q) == min(enough)


@pytest.mark.parametrize("q", [0.0, 1.0, -1.0])
def test_a_quantile_outside_0_to_1_raises(q: float) -> None:
    with pytest.raises(ValueError, match="not between 0 and 1"):
        percentile([1.0], q)
    with pytest.raises(ValueError, match="not between 0 and 1"):
        percentile_interval([1.0], q)


def test_no_samples_raise() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


def test_percentiles_of_too_few_samples_are_null() -> None:
    few = summarize_latency(tuple(range(1, 201)), batch_size=4)
    nearly = summarize_latency(tuple(range(1, 1000)), batch_size=4)
    many = summarize_latency(tuple(range(1, 1001)), batch_size=4)
    assert (few.p50_ms, few.p95_ms, few.p99_ms, few.p99_ci_ms) == (100, 190, None, None)
    assert (nearly.p99_ms, nearly.p99_ci_ms) == (None, None)
    assert (many.p50_ms, many.p95_ms, many.p99_ms) == (500, 950, 990)
    assert many.p99_ci_ms is not None
    assert many.p99_ci_ms.low < 990 < many.p99_ci_ms.high < 1000


def test_throughput_is_the_batch_over_the_mean_latency() -> None:
    found = summarize_latency((1.0, 2.0, 3.0), batch_size=4)
    assert (found.mean_ms, found.p50_ms, found.p50_ci_ms, found.samples_ms) == (2.0, 2.0, None, (1.0, 2.0, 3.0))
    assert found.images_per_s == 2000.0


@pytest.mark.parametrize("processes", [1, 2, 5, 6, 9])
def test_of_several_processes_the_process_is_the_unit(processes: int) -> None:
    samples = {process: [10.0 + process + call / 1000 for call in range(200)] for process in range(processes)}
    found = summarize_latency(samples[0], batch_size=4, repeats={process: samples[process] for process in range(1, processes)})
    medians = [percentile(its, 0.5) for its in samples.values()]
    assert list(found.medians_ms.values()) == medians
    assert found.p50_ms == pytest.approx(np.median(medians))
    assert found.spread == max(medians) / min(medians)
    assert len(found.samples_ms) == 200 * processes
    if processes == 1:
        assert found.p50_ci_ms == percentile_interval(samples[0], 0.5)
        assert found.p95_ci_ms is not None
        return
    assert found.p95_ci_ms is None
    assert (found.p99_ms is None) == (200 * processes < 1000)
    if processes < 6:
        assert found.p50_ci_ms is None
    elif processes == 6:  # covers with 1 - 2 / 2^6 = 96.9 %
        assert found.p50_ci_ms == Interval(low=medians[0], high=medians[-1])


@pytest.mark.parametrize(
    ("pressure", "steal", "calls_ms", "words"),
    [
        (0.05, 0.0, 10.0, None),
        (0.9, 0.0, 10.0, "CPU pressure 90 %"),
        (None, None, 10.0, None),
        (0.0, 0.2, 10.0, None),  # one tick of 10 ms may be a fifth of so short a time
        (0.0, 0.2, 100.0, "steal 20 %"),
    ],
)
def test_calls_beside_other_work_are_disturbed(pressure: float | None, steal: float | None, calls_ms: float, words: str | None) -> None:
    host = Host(launch_us=None, python_loop_ns=20, python_loop_most_ns=30, cpu_pressure=pressure, steal=steal, load=1)
    record, _ = synthetic.succeeded(cells(synthetic.fill_profile(), "variants")[0])
    assert record.measurement is not None
    assert disturbance(record) is None  # not looked at
    latency = tuple(item.model_copy(update={"host": host, "samples_ms": (calls_ms,) * 10}) for item in record.measurement.latency)
    measured = record.measurement.model_copy(update={"latency": latency})
    assert disturbance(record.model_copy(update={"measurement": measured})) == words
