"""Intervals of what is no rate: macro-F1 of two models, many means at once, and Kendall's tau of two rankings.

Macro-F1 is no mean over images, so there is no test of it from counts: two models are compared by the paired bootstrap with
bias-corrected and accelerated (BCa) intervals. Resampling draws images with what both models said of them. It is vectorized over
the different outcomes (label, first answer, second answer), not the images: a resample of images is a multinomial count of outcomes,
from which one matrix product gives each class's hits, answers and labels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.stats import kendalltau, norm, t

from lowbit_vit.schema.metrics import Interval, macro_f1

# -------------------------------------------------------------------------------------------------------------- macro-F1

RESAMPLES = 10_000
_CHUNK = 250  # resamples at once: some MB each

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.integer]


@dataclass(frozen=True)
class BootstrapDifference:
    """A difference of macro-F1, second minus first.

    Attributes:
        first: macro-F1 of the first model.
        second: macro-F1 of the second model.
        difference: second minus first.
        interval: BCa interval of the difference.
    """

    first: float
    second: float
    difference: float
    interval: Interval


def macro_f1_difference(
    labels: Classes, first: Classes, second: Classes, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> BootstrapDifference:
    """Compare two models' macro-F1 on the same images; all arrays are integers [N], in the same order of images.

    F1 is averaged over the classes that occur among labels or answers, as scikit-learn does it. The result does not depend
    on the order of the images, and swapping the models changes its sign and nothing else (but for random noise where they tie).

    Raises:
        ValueError: the arrays differ in length or are empty.
    """
    if not labels.shape == first.shape == second.shape or labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"macro_f1_difference: {labels.shape}, {first.shape} and {second.shape} are not the same images")
    counts, contributions = _outcomes(labels, first, second)
    whole = _macro_f1(counts[None, :] @ contributions)
    one, two = float(whole[0, 0]), float(whole[1, 0])
    if two < one:
        # Always seen from the better model's side: which of them is called the first must not move the random draws.
        mirrored = macro_f1_difference(labels, second, first, confidence=confidence, resamples=resamples, seed=seed)
        interval = Interval(low=-mirrored.interval.high, high=-mirrored.interval.low)
        return BootstrapDifference(one, two, -mirrored.difference, interval)
    if np.array_equal(first, second):
        # Every resample would say the same.
        return BootstrapDifference(one, two, 0.0, Interval(low=0.0, high=0.0))
    images, random = int(counts.sum()), np.random.default_rng(seed)
    draws = []
    for start in range(0, resamples, _CHUNK):
        drawn = random.multinomial(images, counts / images, size=min(_CHUNK, resamples - start))
        scores = _macro_f1(drawn.astype(np.float64) @ contributions)
        draws.append(scores[1] - scores[0])
    # Leaving out any image of one outcome is the same: a jackknife value for each outcome, weighted by its images.
    left = _macro_f1(counts @ contributions - contributions.toarray())
    bend = acceleration(left[1] - left[0], weights=counts)
    interval = bca_interval(two - one, np.concatenate(draws), acceleration=bend, confidence=confidence)
    return BootstrapDifference(one, two, two - one, interval)


def bca_interval(estimate: float, resampled: Floats, *, acceleration: float, confidence: float = 0.95) -> Interval:
    """The BCa interval of an estimate from its values on resamples, float64 [B].

    Sources: Efron, JASA 82, 1987; Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 14.

    Raises:
        ValueError: fewer than two resamples.
    """
    if resampled.size < 2:
        raise ValueError(f"bca_interval: {resampled.size} resamples are too few")
    # Resamples equal to the estimate count half; a bias beyond what B resamples can show is taken as the least they can.
    share = (np.count_nonzero(resampled < estimate) + np.count_nonzero(resampled <= estimate)) / (2 * resampled.size)
    bias = float(norm.ppf(np.clip(share, 0.5 / resampled.size, 1 - 0.5 / resampled.size)))
    shifted = bias + norm.ppf([0.5 - confidence / 2, 0.5 + confidence / 2])
    ends = np.asarray(np.quantile(resampled, norm.cdf(bias + shifted / (1 - acceleration * shifted))))
    return Interval(low=float(ends[0]), high=float(ends[1]))


def acceleration(jackknife: Floats, *, weights: Floats | None = None) -> float:
    """Acceleration from the estimates without one observation each, float64 [M]; `weights` [M] says how many share each.

    0 where leaving any one out changes nothing. Source: Efron and Tibshirani 1993, chapter 14.
    """
    weights = np.ones_like(jackknife) if weights is None else weights
    deviations = np.average(jackknife, weights=weights) - jackknife
    squares = float((weights * deviations**2).sum())
    return float((weights * deviations**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0


def _outcomes(labels: Classes, first: Classes, second: Classes) -> tuple[Floats, csr_array]:
    """Images of each different outcome [U], in an order of their own, and its contributions [U, 5 C].

    The contributions are, for each of the C classes: a label, an answer and a hit of the first model, the same of the second.
    """
    stacked = np.stack([labels, first, second]).astype(np.int64)
    classes, stacked = np.unique(stacked, return_inverse=True)
    number = len(classes)
    outcomes, counts = np.unique(stacked.reshape(3, -1), axis=1, return_counts=True)
    label, one, two = outcomes
    rows = np.arange(len(counts))
    hit_one, hit_two = one == label, two == label
    row = np.concatenate([rows, rows, rows[hit_one], rows, rows[hit_two]])
    column = np.concatenate([label, number + one, 2 * number + one[hit_one], 3 * number + two, 4 * number + two[hit_two]])
    return counts.astype(np.float64), csr_array((np.ones(len(row)), (row, column)), shape=(len(counts), 5 * number))


def _macro_f1(sums: Floats) -> Floats:
    """Macro-F1 [2, B] of both models from sums of contributions [B, 5 C]."""
    actual, first, hits_of_first, second, hits_of_second = np.split(sums, 5, axis=1)
    return np.stack([macro_f1(actual, first, hits_of_first), macro_f1(actual, second, hits_of_second)])


# ----------------------------------------------------------------------------------------------------- many means at once


def simultaneous_intervals(values: Floats, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Floats:
    """Intervals, float64 [units, 2], of the means of several quantities seen on the same images, [units, N], that hold all at once.

    The single-step bootstrap of the greatest t: images are drawn again, all quantities of an image together; the half width is the
    quantile, over resamples, of the greatest deviation among the quantities in units of its standard error. A quantity that is the
    same for every image gets an interval of no width.

    Source: Westfall and Young, "Resampling-Based Multiple Testing", 1993; Romano and Wolf, JASA 100, 2005, section 4.
    """
    if not len(values):
        return np.zeros((0, 2))
    images = values.shape[1]
    means = values.mean(axis=1)
    errors = values.std(axis=1) / np.sqrt(images)
    greatest = []
    for counts in _resamples(images, resamples, seed):
        deviations = np.abs(counts.astype(np.float64) @ values.T / images - means)
        greatest.append(np.divide(deviations, errors, out=np.zeros_like(deviations), where=errors > 0).max(axis=1))
    width = float(np.quantile(np.concatenate(greatest), confidence)) * errors
    return np.stack([means - width, means + width], axis=1)


@lru_cache(maxsize=1)
def _resamples(images: int, resamples: int, seed: int) -> tuple[npt.NDArray[np.uint16], ...]:
    """How often each image is drawn, uint16 [100, N] for every hundred resamples.

    Kept for the next quantities on as many images: drawing takes far longer than what is done with the draws. No image is drawn
    65,536 times: a count is a sum of rare events of mean 1.
    """
    random = np.random.default_rng(seed)
    share = np.full(images, 1 / images)
    return tuple(random.multinomial(images, share, size=100).astype(np.uint16) for _ in range(0, resamples, 100))


# -------------------------------------------------------------------------------------------------------------- rankings


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings of the same things, -1..1; None where one of them is all ties.

    Raises:
        ValueError: fewer than two things, or different numbers of them.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"kendall: {len(first)} and {len(second)} values are not two rankings")
    tau = float(kendalltau(first, second).statistic)
    return None if math.isnan(tau) else tau


def kendall_error(first: Sequence[float], second: Sequence[float]) -> float:
    """Standard error of Kendall's tau without ties, consistent whatever the joint distribution.

    Source: Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods", 3rd ed., section 8.3 (Samara and Randles 1988).

    Raises:
        ValueError: fewer than three things, or different numbers of them.
    """
    if len(first) != len(second) or len(first) < 3:
        raise ValueError(f"kendall_error: {len(first)} and {len(second)} values are not two rankings of at least three")
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    n = len(x)
    # For each thing, how many others it agrees with less how many it disagrees with.
    scores = (np.sign(x[:, None] - x) * np.sign(y[:, None] - y)).sum(axis=1)
    tau = float(scores.sum()) / (n * (n - 1))
    spread = 2 * (n - 2) / (n * (n - 1) ** 2) * float(((scores - scores.mean()) ** 2).sum())
    return math.sqrt(max(0.0, 2 / (n * (n - 1)) * (spread + 1 - tau**2)))


def kendall_interval(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> Interval | None:
    """Interval of Kendall's tau, the things being a sample of such things: tau -+ t(n - 2) standard errors, cut at -1 and 1.

    The t quantile, not the normal one: with 8 to 24 blocks the normal one covers 92 to 95 % (simulated in the tests).
    None where it cannot be had: fewer than 5 things, ties, or rankings that agree (or disagree) in every pair, whose
    estimated error is 0.

    Source: as `kendall_error`.

    Raises:
        ValueError: as `kendall`.
    """
    tau = kendall(first, second)
    ties = len(set(first)) < len(first) or len(set(second)) < len(second)
    if tau is None or ties or len(first) < 5 or math.isclose(abs(tau), 1.0):
        return None
    half = float(t.ppf(0.5 + confidence / 2, len(first) - 2)) * kendall_error(first, second)
    return Interval(low=max(-1.0, tau - half), high=min(1.0, tau + half))


def agreement(rankings: Sequence[Sequence[float]]) -> float | None:
    """Mean Kendall's tau over every pair of rankings: 1 where all draws rank alike. None where some pair has none."""
    taus = [kendall(first, second) for first, second in combinations(rankings, 2)]
    known = [tau for tau in taus if tau is not None]
    return sum(known) / len(known) if known and len(known) == len(taus) else None
