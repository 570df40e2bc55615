"""Percentiles of a latency sample and their distribution-free intervals. No torch, no scipy.

A latency distribution has no known shape, so the interval of a percentile comes from order statistics alone: the number of
samples below the true q-quantile is binomial(n, q) whatever the distribution. Source: Conover, "Practical Nonparametric
Statistics", 3rd ed., section 3.2; the same as David and Nagaraja, "Order Statistics", 3rd ed., 7.1.
"""

import math
from collections.abc import Sequence

from lowbit_vit.schema.record import Interval


def percentile(samples: Sequence[float], q: float) -> float:
    """The smallest sample that at least a share q of all samples does not exceed (inverse of the empirical CDF).

    It is one of the samples, so it always lies inside `percentile_interval`.

    Raises:
        ValueError: no samples, or q not between 0 and 1.
    """
    _check(samples, q)
    return sorted(samples)[_rank(len(samples), q) - 1]


def percentile_interval(samples: Sequence[float], q: float, confidence: float = 0.95) -> Interval | None:
    """The interval between two order statistics that covers the true q-quantile with at least `confidence`.

    At most half of 1 - confidence is left on either side. None where the sample is too small for both ends to be finite: at
    95 %, P50 needs 6 samples, P95 needs 72, P99 needs 368.

    Args:
        samples: independent draws, in any order and unit.
        q: the quantile, between 0 and 1.
        confidence: between 0 and 1.

    Raises:
        ValueError: no samples, or q or confidence not between 0 and 1.
    """
    _check(samples, q)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")
    count = len(samples)
    tail = (1 - confidence) / 2
    below = _binomial_cdf(count, q)
    # X(low) is above the quantile with P(B <= low - 1); X(high) is below it with P(B >= high). Ranks count from 1.
    low = sum(probability <= tail for probability in below)
    high = next((rank for rank in range(1, count + 1) if 1 - below[rank - 1] <= tail), None)
    if low == 0 or high is None:
        return None
    ordered = sorted(samples)
    return Interval(low=ordered[low - 1], high=ordered[high - 1])


def _rank(count: int, q: float) -> int:
    # 0.95 * 200 is 190.00000000000003 in floats; the rank wanted is 190.
    return max(1, math.ceil(round(q * count, 9)))


def _check(samples: Sequence[float], q: float) -> None:
    if not samples:
        raise ValueError("a percentile of no samples")
    if not 0 < q < 1:
        raise ValueError(f"q {q} is not between 0 and 1")


def _binomial_cdf(count: int, q: float) -> list[float]:
    """P(B <= k) for k = 0 ... count, B binomial(count, q)."""
    total, out = 0.0, []
    for k in range(count + 1):
        log_choose = math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        total += math.exp(log_choose + k * math.log(q) + (count - k) * math.log1p(-q))
        out.append(min(1.0, total))
    return out
