"""Every number that is computed from a record's raw values, each defined once: accuracy from predictions, latency from samples. No torch.

A latency distribution has no known shape, so the interval of a percentile comes from order statistics alone: the number of
samples below the true q-quantile is binomial(n, q) whatever the distribution. Source: Conover, "Practical Nonparametric
Statistics", 3rd ed., section 3.2; the same as David and Nagaraja, "Order Statistics", 3rd ed., 7.1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # imports its stats, which take 0.5 s, when they are first asked for
from pydantic import BaseModel, ConfigDict

from lowbit_vit.schema.plan import Frozen

# From 368 samples the interval of P99 is finite, but up to here its upper end is the slowest call.
LEAST_FOR_P99 = 1000

Classes = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]


class Interval(Frozen):
    """A 95 % confidence interval."""

    low: float
    high: float


# ------------------------------------------------------------------------------------------------------------- accuracy


class Accuracy(BaseModel):
    """Metrics of one set of images; `top1`, `top5` and `macro_f1` are shares."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    images: int
    top1: float
    top5: float
    macro_f1: float


def accuracy(label: Classes, best: Classes, among5: npt.NDArray[np.bool_]) -> Accuracy:
    """Metrics of N >= 1 images.

    Args:
        label: integers [N].
        best: integers [N], the most likely class.
        among5: bool [N], whether the label is among the five most likely classes.
    """
    classes = 1 + int(max(label.max(), best.max()))
    counts = (np.bincount(chosen, minlength=classes).astype(np.float64) for chosen in (label, best, label[label == best]))
    f1 = float(macro_f1(*counts))
    return Accuracy(images=len(label), top1=float((best == label).mean()), top5=float(among5.mean()), macro_f1=f1)


def macro_f1(labels: Floats, answers: Floats, hits: Floats) -> Floats:
    """Mean of 2 TP / (2 TP + FP + FN) over the classes that occur as label or as answer, as scikit-learn defines it.

    To import scikit-learn takes a third of a trial's start.

    Args:
        labels: images of each class [..., C].
        answers: images of which each class is the most likely one [..., C].
        hits: images of which both are true [..., C].

    Returns:
        float64 [...].
    """
    total = labels + answers
    occurring = total > 0
    f1 = np.divide(2 * hits, total, out=np.zeros_like(total), where=occurring)
    mean: Floats = f1.sum(axis=-1) / occurring.sum(axis=-1)
    return mean


# -------------------------------------------------------------------------------------------------------------- latency


@dataclass(frozen=True)
class LatencySummary:
    """Latency of one batch size; images_per_s is batch_size / mean latency.

    A percentile without enough samples for a finite interval is None, and so is P99 below `LEAST_FOR_P99` samples.
    """

    batch_size: int
    samples_ms: tuple[float, ...]
    mean_ms: float
    p50_ms: float
    p50_ci_ms: Interval | None
    p95_ms: float | None
    p95_ci_ms: Interval | None
    p99_ms: float | None
    p99_ci_ms: Interval | None
    images_per_s: float


def summarize_latency(samples_ms: Sequence[float], *, batch_size: int) -> LatencySummary:
    """Mean, P50, P95 and P99 with their intervals, of at least one sample."""
    mean_ms = fmean(samples_ms)
    p95_ci, p99_ci = percentile_interval(samples_ms, 0.95), percentile_interval(samples_ms, 0.99)
    if len(samples_ms) < LEAST_FOR_P99:
        p99_ci = None
    return LatencySummary(
        batch_size=batch_size,
        samples_ms=tuple(samples_ms),
        mean_ms=mean_ms,
        p50_ms=percentile(samples_ms, 0.5),
        p50_ci_ms=percentile_interval(samples_ms, 0.5),
        p95_ms=None if p95_ci is None else percentile(samples_ms, 0.95),
        p95_ci_ms=p95_ci,
        p99_ms=None if p99_ci is None else percentile(samples_ms, 0.99),
        p99_ci_ms=p99_ci,
        images_per_s=batch_size / mean_ms * 1000,
    )


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
    interval: Any = scipy.stats.quantile_test(samples, p=q).confidence_interval(confidence)  # scipy-stubs says float
    if math.isnan(interval.low) or math.isnan(interval.high):
        return None
    return Interval(low=float(interval.low), high=float(interval.high))


def _check(samples: Sequence[float], q: float) -> None:
    if not samples:
        raise ValueError("a percentile of no samples")
    if not 0 < q < 1:
        raise ValueError(f"q {q} is not between 0 and 1")
