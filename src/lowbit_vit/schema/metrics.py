"""Every number that is computed from a record's raw values, each defined once: accuracy from predictions, latency from samples. No torch.

A latency distribution has no known shape, so the interval of a percentile comes from order statistics alone: the number of
samples below the true q-quantile is binomial(n, q) whatever the distribution. Source: Conover, "Practical Nonparametric
Statistics", 3rd ed., section 3.2; the same as David and Nagaraja, "Order Statistics", 3rd ed., 7.1.

Calls of one process are more alike than those of two: eager latencies of the same code differ by a factor of two between processes,
within one by 1 %. So the unit is the process, as soon as there are several: its median is one draw.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # imports its stats, which take 0.5 s, when they are first asked for
from pydantic import BaseModel, ConfigDict

from lowbit_vit.schema.plan import Frozen
from lowbit_vit.schema.record import Record

# Shares of the calls' time. Beside an idle host's own tasks some task waits for a CPU for 5 % of it, beside a task for each core always.
DISTURBED_PRESSURE, DISTURBED_STEAL = 0.25, 0.05
_STEAL_SECONDS = 1.0  # stolen time is counted in ticks of 10 ms

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

    Of several processes, `p50_ms` is the median of their medians, with the interval between them, which needs six (96.9 %: the least and
    the greatest); P95 and P99 are of all samples together, without an interval. Of one process, all is within it.
    A percentile without enough samples for a finite interval is None, and so is P99 below `LEAST_FOR_P99` samples.
    """

    batch_size: int
    samples_ms: tuple[float, ...]
    medians_ms: dict[int, float]
    mean_ms: float
    p50_ms: float
    p50_ci_ms: Interval | None
    p95_ms: float | None
    p95_ci_ms: Interval | None
    p99_ms: float | None
    p99_ci_ms: Interval | None
    images_per_s: float

    @property
    def processes(self) -> int:
        """How many were measured."""
        return len(self.medians_ms)

    @property
    def spread(self) -> float:
        """The greatest median of a process over the least; 1 for one process."""
        return max(self.medians_ms.values()) / min(self.medians_ms.values())


def summarize_latency(
    samples_ms: Sequence[float], *, batch_size: int, repeats: Mapping[int, Sequence[float]] | None = None
) -> LatencySummary:
    """Mean, P50, P95 and P99 with their intervals, of at least one sample; `repeats` are those of further processes, by number."""
    of_each = {0: samples_ms, **(repeats or {})}
    together = [sample for samples in of_each.values() for sample in samples]
    medians = {process: percentile(samples, 0.5) for process, samples in of_each.items()}
    mean_ms, alone = fmean(map(fmean, of_each.values())), len(of_each) == 1
    p95_ci, p99_ci = percentile_interval(together, 0.95), percentile_interval(together, 0.99)
    if len(together) < LEAST_FOR_P99:
        p99_ci = None
    return LatencySummary(
        batch_size=batch_size,
        samples_ms=tuple(together),
        medians_ms=medians,
        mean_ms=mean_ms,
        p50_ms=median(medians.values()),
        p50_ci_ms=percentile_interval(samples_ms if alone else list(medians.values()), 0.5),
        p95_ms=None if p95_ci is None else percentile(together, 0.95),
        p95_ci_ms=p95_ci if alone else None,
        p99_ms=None if p99_ci is None else percentile(together, 0.99),
        p99_ci_ms=p99_ci if alone else None,
        images_per_s=batch_size / mean_ms * 1000,
    )


def disturbance(record: Record) -> str | None:
    """What others took of the CPUs during the calls, in words; None: little, or it was not looked at."""
    timed = () if record.measurement is None else record.measurement.latency
    seconds = [sum(item.samples_ms) / 1000 for item in timed]
    for name, most, least_seconds in (("cpu_pressure", DISTURBED_PRESSURE, 0.0), ("steal", DISTURBED_STEAL, _STEAL_SECONDS)):
        shares = [getattr(item.host, name, None) for item in timed]
        known = [(share, weight) for share, weight in zip(shares, seconds, strict=True) if share is not None]
        total = sum(weight for _, weight in known)
        if known and total >= least_seconds and (share := sum(share * weight for share, weight in known) / total) > most:
            return f"{name.replace('_', ' ').replace('cpu', 'CPU')} {100 * share:.0f} %"
    return None


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
