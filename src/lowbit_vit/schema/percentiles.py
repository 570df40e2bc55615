"""Percentiles of a latency sample and their distribution-free intervals. No torch.

A latency distribution has no known shape, so the interval of a percentile comes from order statistics alone: the number of
samples below the true q-quantile is binomial(n, q) whatever the distribution. Source: Conover, "Practical Nonparametric
Statistics", 3rd ed., section 3.2; the same as David and Nagaraja, "Order Statistics", 3rd ed., 7.1.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import quantile_test

from lowbit_vit.schema.record import Interval


def percentile(samples: Sequence[float], q: float) -> float:
    """The smallest sample that at least a share q of all samples does not exceed (inverse of the empirical CDF).

    It is one of the samples, so it always lies inside `percentile_interval`.

    Raises:
        ValueError: no samples, or q not between 0 and 1.
    """
    _check(samples, q)
    return float(np.quantile(samples, q, method="inverted_cdf"))


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
    interval: Any = quantile_test(samples, p=q).confidence_interval(confidence)  # scipy-stubs says float
    if math.isnan(interval.low) or math.isnan(interval.high):
        return None
    return Interval(low=float(interval.low), high=float(interval.high))


def _check(samples: Sequence[float], q: float) -> None:
    if not samples:
        raise ValueError("a percentile of no samples")
    if not 0 < q < 1:
        raise ValueError(f"q {q} is not between 0 and 1")
