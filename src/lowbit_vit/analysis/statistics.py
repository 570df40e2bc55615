"""The few statistics that the tables need: intervals of a rate, paired comparison of two models, agreement of rankings.

Every trial of a profile sees the same test images, so two models are compared image by image: what counts is the images on
which only one of them is right, not the two rates by themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, kendalltau, norm

from lowbit_vit.schema.record import Interval


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        images: number of images.
        lost: images that only the first model gets right.
        gained: images that only the second model gets right.
        difference: rate of the second minus rate of the first, in -1..1.
        interval: 95 % interval of the difference (Agresti and Min's).
        p_value: exact two-sided McNemar test.
    """

    images: int
    lost: int
    gained: int
    difference: float
    interval: Interval
    p_value: float


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate.

    Source: Wilson, "Probable inference", JASA 1927; Newcombe, Statistics in Medicine 17, 1998, method 3.

    Raises:
        ValueError: `trials` is not positive or `successes` lies outside 0..trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"wilson: {successes} of {trials} is not a rate")
    z = float(norm.ppf(0.5 + confidence / 2))
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    # At the ends the formula is exactly 0 or 1 but for rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return Interval(low=low, high=high)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p value that images are lost and gained equally often; 1 where none changed sides.

    Source: McNemar, Psychometrika 12, 1947; the exact form is a sign test on the discordant images.
    """
    discordant = lost + gained
    if discordant == 0:
        return 1.0
    return min(1.0, 2.0 * float(binom.cdf(min(lost, gained), discordant, 0.5)))


def compare(first_right: npt.NDArray[np.bool_], second_right: npt.NDArray[np.bool_]) -> Comparison:
    """Compare two models by which images each gets right; both arrays are bool [N], in the same order of images.

    The interval adds 1/2 to each cell of the 2 x 2 table: Agresti and Min, Statistics in Medicine 24, 2005 ("Wald + 2").

    Raises:
        ValueError: the arrays differ in length or are empty.
    """
    if first_right.shape != second_right.shape or first_right.size == 0:
        raise ValueError(f"compare: {first_right.shape} and {second_right.shape} are not the same images")
    images = int(first_right.size)
    lost = int(np.count_nonzero(first_right & ~second_right))
    gained = int(np.count_nonzero(~first_right & second_right))
    centre = (gained - lost) / (images + 2)
    variance = (gained + lost + 1) - (gained - lost) ** 2 / (images + 2)
    half = float(norm.ppf(0.975)) * math.sqrt(variance) / (images + 2)
    return Comparison(
        images=images,
        lost=lost,
        gained=gained,
        difference=(gained - lost) / images,
        interval=Interval(low=max(-1.0, centre - half), high=min(1.0, centre + half)),
        p_value=mcnemar(lost, gained),
    )


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings of the same things, -1..1; None where one of them is all ties.

    Raises:
        ValueError: fewer than two things, or different numbers of them.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"kendall: {len(first)} and {len(second)} values are not two rankings")
    tau = float(kendalltau(first, second).statistic)
    return None if math.isnan(tau) else tau


def agreement(rankings: Sequence[Sequence[float]]) -> float | None:
    """Mean Kendall's tau over every pair of rankings: 1 where all draws rank alike. None where some pair has none."""
    taus = [kendall(first, second) for first, second in combinations(rankings, 2)]
    known = [tau for tau in taus if tau is not None]
    return sum(known) / len(known) if known and len(known) == len(taus) else None
