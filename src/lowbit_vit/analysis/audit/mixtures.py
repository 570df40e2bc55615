"""Of how many images are these rates? One number against two: a likelihood ratio, corrected for all numbers that were searched.

A number n of images, each count equally likely, prints one of some n + 1 rates: the likelihood of N different rates is (n + 1)^-N
if it reaches all of them, else 0. Rates printed with d digits are reached by every n from 10^d on, which is no evidence; likelihood
(10^d + 1)^-N. The best single number is the null hypothesis. Against it stands the best mixture: a part w of the rates of one number,
the others of a second or of any, w uniform on [0, 1]. Under the null hypothesis the ratio of a mixture that was chosen beforehand
exceeds c with a probability of at most 1 / c (Markov), so the ratio over the number of mixtures searched bounds the chance of the best.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, log

import numpy as np
import numpy.typing as npt
from scipy.special import betaln

from lowbit_vit.analysis.audit.readings import ROUNDINGS, Reading, printable
from lowbit_vit.analysis.audit.table import Cell

Numbers = npt.NDArray[np.float64]
MOST_IMAGES = 1_000_000
# Finer digits are as good as these: no number of images that is searched needs them.
_DIGITS = 6
# Products of a rate and a number of images are exact to this.
_EXACT = 1e-8
# Pairs of a number and a rate in the first look, and the numbers that are looked at closely after it.
_FIRST_LOOK = 1e7
_FEWEST_RATES = 24
_CLOSELY = 6


@dataclass(frozen=True)
class Mixture:
    """Two numbers of images that explain rates together.

    Attributes:
        first: images of the rates `of_first`.
        second: images of the others; None: any number that the digits do not resolve.
        of_first: for each rate, whether it is of `first`.
        p: chance of such a mixture if all rates are of one number, corrected for all that were searched.
    """

    first: int
    second: int | None
    of_first: tuple[bool, ...]
    p: float


class _Rates:
    """Different rates of equally many digits.

    Attributes:
        resolution: number of steps from 0 to 1.
        reach: values that one count may be printed as, at this resolution.
        half: half the width of the values that print one rate.
        middles: middle of those values, by rounding: (2, N), of rounded and truncated ones.
        numbers: numbers of images that these digits tell from others.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        step = 2 * cells[0].half
        self.resolution = min(10**_DIGITS, int(1 / step))
        self.reach = 1.5 if step * self.resolution < 1 else 1.0
        self.half = 0.5 / self.resolution * self.reach
        printed = np.array([cell.value for cell in cells])
        self.middles: Numbers = np.stack([printed, printed + 0.5 / self.resolution])
        self.numbers: Numbers = np.arange(2, min(self.resolution, MOST_IMAGES + 1), dtype=np.float64)

    def fit(self, numbers: Numbers | np.float64, middles: Numbers | np.float64) -> npt.NDArray[np.bool_]:
        """Which numbers of images reach a rate, or which rates one number reaches."""
        product = numbers * middles
        return np.asarray(np.abs(np.rint(product) - product) <= numbers * self.half + _EXACT)

    def printable(self, images: int, rounding: int) -> float:
        """How many rates so many images can be printed as."""
        return printable(images, ROUNDINGS[rounding], self.resolution) * self.reach

    def least(self, rounding: int, chosen: npt.NDArray[np.bool_], within: Numbers) -> int | None:
        """The least of some numbers of images that reaches all chosen rates."""
        left = within
        for middle in self.middles[rounding, chosen]:
            left = left[self.fit(left, middle)]
            if not len(left):
                return None
        return int(left[0])


def least_readings(cells: Sequence[Cell]) -> list[Reading]:
    """For each rounding the least number of images below the resolution that prints all of these rates, if there is one."""
    rates = _Rates(cells)
    every = np.ones(len(cells), dtype=bool)
    least = [(rates.least(at, every, rates.numbers), rounding) for at, rounding in enumerate(ROUNDINGS)]
    return [Reading(images, rounding) for images, rounding in least if images is not None]


def best_mixture(cells: Sequence[Cell], *, listed: frozenset[int]) -> Mixture | None:
    """The two numbers of images that explain different rates best, and how far that is chance.

    Half of the weight of the search lies on the listed numbers, half on all up to a million.

    Args:
        cells: rates of equally many digits, all different.
        listed: images of known splits.
    """
    rates = _Rates(cells)
    if len(rates.numbers) < 2:
        return None
    single = min((reading.images for reading in least_readings(cells)), default=rates.resolution)
    null = -len(cells) * log(min(single, rates.resolution) + 1)
    known = np.array(sorted(number for number in listed if number <= rates.numbers[-1]), dtype=np.float64)
    best: Mixture | None = None
    for rounding in (0, 1):
        for first, seconds in _candidates(rates, rounding, known):
            found = _with_second(rates, rounding, first, known=known, seconds=seconds, null=null)
            if found is not None and (best is None or found.p < best.p):
                best = found
    return best


def _candidates(rates: _Rates, rounding: int, known: Numbers) -> list[tuple[int, tuple[Numbers, ...]]]:
    """The numbers that explain a part of the rates best where any number explains the others, and those that are known.

    Each with the numbers among which its second is looked for: all of them only for the few best.
    """
    all_middles = rates.middles[rounding]
    looked_at = int(max(_FEWEST_RATES, _FIRST_LOOK / len(rates.numbers)))
    middles = all_middles[:: max(1, len(all_middles) // looked_at)]
    fitting = np.zeros(len(rates.numbers))
    for middle in middles:
        fitting += rates.fit(rates.numbers, middle)
    rest = len(middles) - fitting
    gain = fitting * np.log((rates.resolution + 1) / (rates.numbers + 1)) + _mixing(len(middles))[rest.astype(np.int64)]
    best = np.argpartition(-gain, min(_CLOSELY, len(gain) - 1))[:_CLOSELY]
    return [*((int(rates.numbers[at]), (known, rates.numbers)) for at in best), *((int(number), (known,)) for number in known)]


@cache
def _mixing(count: int) -> Numbers:
    """Log of the integral of w^a (1 - w)^b over w, by b from 0 to `count` = a + b."""
    b = np.arange(count + 1)
    return np.asarray(betaln(count - b + 1, b + 1))


def _with_second(rates: _Rates, rounding: int, first: int, *, known: Numbers, seconds: tuple[Numbers, ...], null: float) -> Mixture | None:
    """The best mixture with this first number; None where it explains all rates or none."""
    mine = rates.fit(np.float64(first), rates.middles[rounding])
    fitting, rest = int(mine.sum()), int((~mine).sum())
    if not fitting or not rest:
        return None

    def searched(number: int) -> float:
        return log(2 * len(known)) if number in known else log(2 * len(rates.numbers))

    shared = -fitting * log(rates.printable(first, rounding)) + float(_mixing(fitting + rest)[rest]) - null - log(2) - searched(first)
    evidence: dict[int | None, float] = {None: shared - rest * log(rates.resolution + 1) - log(2)}
    for within in seconds:
        second = rates.least(rounding, ~mine, within)
        if second is not None:
            evidence[second] = shared - rest * log(rates.printable(second, rounding)) - log(2) - searched(second)
    best = max(evidence, key=lambda number: evidence[number])
    return Mixture(first=first, second=best, of_first=tuple(map(bool, mine)), p=min(1.0, exp(min(0.0, -evidence[best]))))
