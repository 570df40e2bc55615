"""Latency samples: percentiles with distribution-free intervals, and the ratio of two medians with its interval.

Samples of one trial are taken one after the other on one machine; the intervals treat them as independent, so they say how
well this run pins its own percentile down, not how much another run would differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowbit_vit.schema.metrics import Interval, percentile, percentile_interval


@dataclass(frozen=True)
class Percentile:
    """A percentile of a latency sample.

    Attributes:
        q: the quantile, such as 0.99.
        value: of the sample, in its unit.
        samples: how many there are.
        needed: how many a finite interval takes.
        interval: None: not enough samples; then `value` is no more than one of the largest samples and should not be shown.
    """

    q: float
    value: float
    samples: int
    needed: int
    interval: Interval | None

    @property
    def state(self) -> str:
        """`enough samples`, or how many are missing, in words."""
        return "enough samples" if self.interval is not None else f"not enough samples ({self.samples} of {self.needed})"


@dataclass(frozen=True)
class Ratio:
    """The second median over the first; the interval is None where either sample is too small for one."""

    value: float
    interval: Interval | None


def samples_needed(q: float, *, confidence: float = 0.95) -> int:
    """Least number of samples with which `percentile_interval` is finite: 6 for P50, 72 for P95, 368 for P99 at 95 %.

    The true quantile must lie below the largest and above the smallest sample with probability 1 - tail each: q^n and
    (1 - q)^n are at most the tail.

    Raises:
        ValueError: q or confidence not between 0 and 1.
    """
    if not (0 < q < 1 and 0 < confidence < 1):
        raise ValueError(f"samples_needed: q {q} and confidence {confidence} must be between 0 and 1")
    # Rounded: log(0.25) / log(0.5) must stay 2, not 2.0000000000000004.
    return math.ceil(round(math.log((1 - confidence) / 2) / math.log(max(q, 1 - q)), 9))


def estimate_percentile(samples: Sequence[float], q: float, *, confidence: float = 0.95) -> Percentile:
    """One percentile of a sample with its distribution-free interval, or the state `not enough samples`.

    Source: schema/metrics.py (order statistics).

    Raises:
        ValueError: no samples, or q or confidence not between 0 and 1.
    """
    return Percentile(
        q=q,
        value=percentile(samples, q),
        samples=len(samples),
        needed=samples_needed(q, confidence=confidence),
        interval=percentile_interval(samples, q, confidence),
    )


def ratio_of_medians(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Ratio:
    """Median of the second sample over median of the first, with a distribution-free interval.

    The two order-statistic intervals are combined on the log scale by the method of variance estimates recovery: no
    resampling, so equal samples give equal intervals, and swapping the two gives the reciprocals.

    Sources: order statistics as in schema/metrics.py; Zou and Donner, Statistics in Medicine 27, 2008, 1693-1702.

    Args:
        first: positive samples, in any unit.
        second: positive samples, in the same unit.
        confidence: between 0 and 1.

    Raises:
        ValueError: no samples, or a sample that is not positive.
    """
    if min(min(first, default=0.0), min(second, default=0.0)) <= 0:
        raise ValueError("ratio_of_medians: both samples must be there and positive")
    below, above = (estimate_percentile(samples, 0.5, confidence=confidence) for samples in (first, second))
    value = above.value / below.value
    if below.interval is None or above.interval is None:
        return Ratio(value=value, interval=None)
    down = math.hypot(math.log(above.value / above.interval.low), math.log(below.interval.high / below.value))
    up = math.hypot(math.log(above.interval.high / above.value), math.log(below.value / below.interval.low))
    return Ratio(value=value, interval=Interval(low=value * math.exp(-down), high=value * math.exp(up)))
