"""Rates and pairs: intervals of a rate, two models on the same images or on different ones, non-inferiority, families of tests, power.

Every trial of a profile sees the same test images, so two models are compared image by image: what counts is the images on
which only one of them is right, not the two rates by themselves. Where the images differ, the rates are compared unpaired.
A study that finds no difference says nothing about differences smaller than the least that it could have detected.
Macro-F1 and ranks are in `intervals`, latency in `latencies`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import binom, binomtest, fisher_exact, norm

from lowbit_vit.schema.metrics import Interval

# The columns of a paired comparison in tables, as `Comparison.columns` gives them.
COMPARISON = ("lost", "gained", "difference", "difference_low", "difference_high", "p_value", "p_mid", "p_inferior", "p_equivalent")


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        images: number of images.
        lost: images that only the first model gets right.
        gained: images that only the second model gets right.
        difference: rate of the second minus rate of the first, in -1..1.
        interval: 95 % interval of the difference (Tango's score interval).
        p_value: exact two-sided McNemar test.
        p_mid: the same with the mid-p correction: less conservative, for reading beside the exact one.
    """

    images: int
    lost: int
    gained: int
    difference: float
    interval: Interval
    p_value: float
    p_mid: float

    @property
    def discordance(self) -> float:
        """Share of images on which only one model is right."""
        return (self.lost + self.gained) / self.images

    def columns(self, margin: float | None = None) -> dict[str, float]:
        """As tables hold it; with a margin, a share of images, also `p_inferior` and `p_equivalent` of `margin_test`."""
        row = {"lost": self.lost, "gained": self.gained, "difference": self.difference}
        row |= {"difference_low": self.interval.low, "difference_high": self.interval.high, "p_value": self.p_value, "p_mid": self.p_mid}
        if margin is None:
            return row
        test = margin_test(self.lost, self.gained, images=self.images, margin=margin)
        return row | {"p_inferior": test.p_inferior, "p_equivalent": test.p_equivalent}


@dataclass(frozen=True)
class UnpairedComparison:
    """Two models on different images.

    Attributes:
        difference: rate of the second minus rate of the first, in -1..1.
        interval: 95 % interval of the difference (Newcombe's hybrid score interval).
        p_value: Fisher's exact test, two-sided.
    """

    difference: float
    interval: Interval
    p_value: float


@dataclass(frozen=True)
class MarginTest:
    """Two one-sided tests (TOST) of a difference, second minus first, against a margin.

    Attributes:
        margin: greatest loss (and gain) that counts as none, as a share of images.
        interval: two-sided interval of the difference at 1 - 2 alpha (90 % for alpha = 5 %). The second model is non-inferior
            at alpha exactly where its low end lies above -margin, and equivalent where all of it lies inside the margin.
        p_inferior: of "the second is worse by the margin or more"; small: the second is not inferior.
        p_equivalent: of "the two differ by the margin or more"; small: they are equivalent. The larger of the two p values.
    """

    margin: float
    interval: Interval
    p_inferior: float
    p_equivalent: float


@lru_cache(maxsize=4096)  # thousands of trials have a few hundred different counts
def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a rate.

    Source: Wilson, "Probable inference", JASA 1927; Newcombe, Statistics in Medicine 17, 1998, method 3.

    Raises:
        ValueError: `trials` is not positive or `successes` lies outside 0..trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"wilson: {successes} of {trials} is not a rate")
    interval = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return Interval(low=float(interval.low), high=float(interval.high))


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p value that images are lost and gained equally often; 1 where none changed sides.

    Source: McNemar, Psychometrika 12, 1947; the exact form is a sign test on the discordant images.
    """
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def mcnemar_mid_p(lost: int, gained: int) -> float:
    """McNemar's mid-p value: the exact one less the probability of just this outcome; 1 where none changed sides.

    Source: Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013.
    """
    if lost + gained == 0:
        return 1.0
    # Where the sides are even, this very outcome is both tails' own: half of it counts.
    share = 0.5 if lost == gained else 1.0
    return mcnemar(lost, gained) - share * float(binom.pmf(lost, lost + gained, 0.5))


def compare(first_right: npt.NDArray[np.bool_], second_right: npt.NDArray[np.bool_]) -> Comparison:
    """Compare two models by which images each gets right; both arrays are bool [N], in the same order of images.

    Raises:
        ValueError: the arrays differ in length or are empty.
    """
    if first_right.shape != second_right.shape or first_right.size == 0:
        raise ValueError(f"compare: {first_right.shape} and {second_right.shape} are not the same images")
    lost = int(np.count_nonzero(first_right & ~second_right))
    gained = int(np.count_nonzero(~first_right & second_right))
    return compare_counts(lost, gained, images=int(first_right.size))


def compare_counts(lost: int, gained: int, *, images: int) -> Comparison:
    """As `compare`, from the counts alone.

    Raises:
        ValueError: the counts are negative or more than the images.
    """
    return Comparison(
        images=images,
        lost=lost,
        gained=gained,
        difference=(gained - lost) / images,
        interval=paired_interval(lost, gained, images=images),
        p_value=mcnemar(lost, gained),
        p_mid=mcnemar_mid_p(lost, gained),
    )


def paired_score(
    lost: npt.ArrayLike, gained: npt.ArrayLike, *, images: npt.ArrayLike, difference: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Tango's score statistic of "the true difference, second minus first, is `difference`", standard normal under it.

    The nuisance parameter, the probability of an image that only the first gets right, is its maximum likelihood estimate
    under that hypothesis. At difference 0 the square is McNemar's chi square. Arrays broadcast; difference in -1..1, both
    ends excluded, and not 0 where nothing was lost or gained.

    Source: Tango, Statistics in Medicine 17, 1998, 891-908.
    """
    lost, gained, n, delta = (np.asarray(value, dtype=np.float64) for value in (lost, gained, images, difference))
    b = -(lost + gained) + (2 * n - gained + lost) * delta
    c = -lost * delta * (1 - delta)
    # Rounding can leave what is under the root, and the variance of an almost certain outcome, just below zero.
    only_first = (np.sqrt(np.maximum(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = np.maximum(n * (2 * only_first + delta * (1 - delta)), np.finfo(np.float64).tiny)
    result: npt.NDArray[np.float64] = (gained - lost - n * delta) / np.sqrt(variance)
    return result


def paired_interval(lost: int, gained: int, *, images: int, confidence: float = 0.95) -> Interval:
    """Tango's score interval of the difference of two rates on the same images: all differences that `paired_score` keeps.

    It has a width even where no image changed sides. Source: Tango, Statistics in Medicine 17, 1998; recommended by
    Fagerland, Lydersen and Laake, Statistics in Medicine 33, 2014.

    Raises:
        ValueError: the counts are negative or more than the images.
    """
    if images < 1 or min(lost, gained) < 0 or lost + gained > images:
        raise ValueError(f"paired_interval: {lost} lost and {gained} gained of {images} images cannot be")
    z, estimate, edge = float(norm.ppf(0.5 + confidence / 2)), (gained - lost) / images, 1e-12

    def excess(difference: float, sign: float) -> float:
        return float(paired_score(lost, gained, images=images, difference=difference)) - sign * z

    # The score falls with the difference from +inf to -inf and is 0 at the estimate, where it may be 0/0: step off it.
    low = -1.0 if estimate - edge <= -1 + edge else brentq(excess, -1 + edge, estimate - edge, args=(1.0,), xtol=1e-14)
    high = 1.0 if estimate + edge >= 1 - edge else brentq(excess, estimate + edge, 1 - edge, args=(-1.0,), xtol=1e-14)
    return Interval(low=float(low), high=float(high))


def margin_test(lost: int, gained: int, *, images: int, margin: float, alpha: float = 0.05) -> MarginTest:
    """Is the second model worse than the first by no more than `margin` (non-inferior), and no better either (equivalent)?

    Both one-sided tests are Tango's score test, which suits rates near 1 and few discordant images. Sources: Tango,
    Statistics in Medicine 17, 1998; Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987 (the two tests).

    Args:
        lost: images that only the first model gets right.
        gained: images that only the second model gets right.
        images: all images.
        margin: as a share of images, such as 0.01 for one point; the profile's `statistics.margin`.
        alpha: level of each one-sided test.

    Raises:
        ValueError: the margin is not between 0 and 1, or the counts cannot be.
    """
    if not 0 < margin < 1:
        raise ValueError(f"margin_test: margin {margin} is not between 0 and 1")
    interval = paired_interval(lost, gained, images=images, confidence=1 - 2 * alpha)
    p_inferior = float(norm.sf(paired_score(lost, gained, images=images, difference=-margin)))
    p_superior = float(norm.cdf(paired_score(lost, gained, images=images, difference=margin)))
    return MarginTest(margin=margin, interval=interval, p_inferior=p_inferior, p_equivalent=max(p_inferior, p_superior))


def compare_unpaired(first: tuple[int, int], second: tuple[int, int]) -> UnpairedComparison:
    """Compare two rates on different images; each is (successes, trials).

    Sources: Newcombe, Statistics in Medicine 17, 1998, 873-890, method 10; Fisher's exact test.

    Raises:
        ValueError: one of them is not a rate.
    """
    one, two = wilson(*first), wilson(*second)
    rates = first[0] / first[1], second[0] / second[1]
    difference = rates[1] - rates[0]
    low = difference - math.hypot(one.high - rates[0], rates[1] - two.low)
    high = difference + math.hypot(rates[0] - one.low, two.high - rates[1])
    table = np.array([[first[0], first[1] - first[0]], [second[0], second[1] - second[0]]])
    return UnpairedComparison(
        difference=difference,
        interval=Interval(low=max(-1.0, low), high=min(1.0, high)),
        p_value=min(1.0, float(fisher_exact(table).pvalue)),
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values of a family of tests, in the order given: reject where below alpha, and the chance of any
    false rejection in the family is at most alpha.

    The family is what is passed, so it must be declared before looking. None is no test: it stays None and does not count.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979.

    Raises:
        ValueError: a p value is not in 0..1.
    """
    known = [p for p in p_values if p is not None]
    if any(not 0 <= p <= 1 or math.isnan(p) for p in known):
        raise ValueError(f"holm: {known} are not all p values")
    order = np.argsort(known, kind="stable")
    steps = np.maximum.accumulate(np.asarray(known)[order] * np.arange(len(known), 0, -1))
    adjusted = np.empty(len(known))
    adjusted[order] = np.minimum(steps, 1.0)
    remaining = iter(adjusted.tolist())
    return [None if p is None else next(remaining) for p in p_values]


def power_paired(difference: float, *, discordance: float, images: int, alpha: float = 0.05) -> float:
    """Chance that McNemar's two-sided test finds a difference of two rates on the same images.

    Source: Connor, Biometrics 43, 1987, 207-211 (the normal approximation; the exact test has a little less).

    Args:
        difference: of the two rates, at most `discordance` in size.
        discordance: share of images on which only one of the two models is right.
        images: how many.
        alpha: level of the test.

    Raises:
        ValueError: a difference larger than the discordance.
    """
    if not 0 <= abs(difference) <= discordance <= 1:
        raise ValueError(f"power_paired: a difference of {difference} cannot come from a discordance of {discordance}")
    if difference == 0:
        return alpha
    z = float(norm.ppf(1 - alpha / 2))
    error = math.sqrt(discordance - difference**2)
    if error == 0:
        return 1.0
    return float(norm.cdf((abs(difference) * math.sqrt(images) - z * math.sqrt(discordance)) / error))


def detectable_paired(discordance: float, *, images: int, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Least difference, as a share, that McNemar's test would show with this power at this share of discordant images.

    None where not even a difference as large as the discordance would be: too few images changed sides.

    Raises:
        ValueError: discordance outside 0..1, or no images.
    """
    if not 0 <= discordance <= 1 or images < 1:
        raise ValueError(f"detectable_paired: discordance {discordance} of {images} images")

    def short(difference: float) -> float:
        return power_paired(difference, discordance=discordance, images=images, alpha=alpha) - power

    if discordance == 0 or short(discordance) < 0:
        return None
    return float(brentq(short, discordance * 1e-9, discordance))
