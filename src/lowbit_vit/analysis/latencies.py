"""The ratio of two median latencies with a distribution-free interval.

Of several processes the process is the unit. Trials of one run took turns, so their processes are paired by round: what an hour does to
all of them cancels. With one process the calls are the units, treated as independent: such an interval says how well one process
pins its own percentile down, not how much another would differ.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from lowbit_vit.analysis.statistics import mcnemar
from lowbit_vit.schema.metrics import Interval, LatencySummary, percentile_interval


@dataclass(frozen=True)
class Ratio:
    """The second median over the first.

    Attributes:
        value: of the medians, or the median over the rounds.
        interval: 95 %; None where there are too few samples, processes or rounds for one, or one process is set against several.
        rounds: pairs of processes; 0: not paired.
        p_value: exact two-sided sign test of the rounds, that either is as often the faster one; None: not paired. Six rounds that
            all agree give 0.031; fewer than six never reach 0.05.
    """

    value: float
    interval: Interval | None
    rounds: int = 0
    p_value: float | None = None


def latency_ratio(first: LatencySummary, second: LatencySummary, *, one_run: bool) -> Ratio:
    """The second over the first; paired by round where one run measured both in several processes.

    Unpaired, the two intervals are combined on the log scale by the method of variance estimates recovery: no resampling, so equal
    samples give equal intervals, and swapping the two gives the reciprocals.

    Sources: order statistics as in schema/metrics.py; Zou and Donner, Statistics in Medicine 27, 2008, 1693-1702.
    """
    rounds = sorted(first.medians_ms.keys() & second.medians_ms.keys())
    if one_run and len(rounds) > 1:
        return paired_ratio([first.medians_ms[process] for process in rounds], [second.medians_ms[process] for process in rounds])
    below, above, one, other = first.p50_ms, second.p50_ms, first.p50_ci_ms, second.p50_ci_ms
    value = above / below
    if one is None or other is None or (first.processes == 1) != (second.processes == 1):
        return Ratio(value=value, interval=None)
    down = math.hypot(math.log(above / other.low), math.log(one.high / below))
    up = math.hypot(math.log(other.high / above), math.log(below / one.low))
    return Ratio(value=value, interval=Interval(low=value * math.exp(-down), high=value * math.exp(up)))


def ratio_of_rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> Ratio:
    """As `latency_ratio` of one run, of rows with `p50_ms` and `process_medians_ms` of `Frames.timings`; without rounds no interval."""
    both = [row["process_medians_ms"].split() for row in (first, second)]
    rounds = [(float(one), float(other)) for one, other in zip(*both, strict=False) if "-" not in (one, other)]
    if len(rounds) > 1:
        return paired_ratio([one for one, _ in rounds], [other for _, other in rounds])
    return Ratio(second["p50_ms"] / first["p50_ms"], None)


def paired_ratio(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Ratio:
    """Median over rounds of the ratios of two processes' medians, its interval by order statistics, and the exact sign test.

    The median is taken on the log scale, so that swapping the two gives the reciprocal.

    Args:
        first: medians of the reference, positive, by round.
        second: of the other, in the same rounds.
        confidence: between 0 and 1.

    Raises:
        ValueError: no rounds, not as many of both, or a median that is not positive.
    """
    if min(min(first, default=0.0), min(second, default=0.0)) <= 0:
        raise ValueError("paired_ratio: both must be there and positive")
    ratios = [its / own for own, its in zip(first, second, strict=True)]
    test = mcnemar(sum(ratio > 1 for ratio in ratios), sum(ratio < 1 for ratio in ratios))
    value = math.exp(median(map(math.log, ratios)))
    return Ratio(value, percentile_interval(ratios, 0.5, confidence), rounds=len(ratios), p_value=test)
