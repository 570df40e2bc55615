"""The ratio of two median latencies with a distribution-free interval.

Samples of one trial are taken one after the other on one machine; the intervals treat them as independent, so they say how
well this run pins its own percentile down, not how much another run would differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowbit_vit.schema.metrics import Interval, percentile, percentile_interval


@dataclass(frozen=True)
class Ratio:
    """The second median over the first; the interval is None where either sample is too small for one."""

    value: float
    interval: Interval | None


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
    below, above = percentile(first, 0.5), percentile(second, 0.5)
    one, other = (percentile_interval(samples, 0.5, confidence) for samples in (first, second))
    value = above / below
    if one is None or other is None:
        return Ratio(value=value, interval=None)
    down = math.hypot(math.log(above / other.low), math.log(one.high / below))
    up = math.hypot(math.log(other.high / above), math.log(below / one.low))
    return Ratio(value=value, interval=Interval(low=value * math.exp(-down), high=value * math.exp(up)))
