"""Of how many images rates may be, and how they may have been printed: the readings that the audit tries.

Three roundings are tried: half up, half to even, truncated. A float may round a tie either way, so a tie counts for both sides.

One number of images is held against two by a likelihood ratio, corrected for all numbers that were searched. A number n of images, each
count equally likely, prints one of some n + 1 rates: the likelihood of N different rates is (n + 1)^-N if it reaches all of them, else 0.
Rates printed with d digits are reached by every n from 10^d on, which is no evidence; likelihood (10^d + 1)^-N. The best single number
is the null hypothesis. Against it stands the best mixture: a part w of the rates of one number, the others of a second or of any, w
uniform on [0, 1]. Under the null hypothesis the ratio of a mixture that was chosen beforehand exceeds c with a probability of at most
1 / c (Markov), so the ratio over the number of mixtures searched bounds the chance of the best.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from math import ceil, exp, floor, gcd, log, log10
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import betaln

from lowbit_vit.analysis.audit.table import Cell

Rounding = Literal["rounded", "truncated"]
ROUNDINGS: tuple[Rounding, ...] = ("rounded", "truncated")
# Batch sizes that evaluation is run with; a loader with drop_last leaves a multiple of one.
BATCHES = (
    *(2**power for power in range(1, 12)),
    *(3 * 2**power for power in range(2, 9)),
    *(10, 20, 50, 100, 200, 250, 500, 1000),
)
# Rates that are printed more coarsely than this do not show whether they were computed in single precision.
_SINGLE = Fraction(1, 10**7)
# Half a digit, and what the subtraction of two floats adds to it.
_TIE = 1 + 1e-6
# Test and validation images of public data sets, by torchvision's, the tasks' or the authors' own counts.
PUBLIC: dict[str, int] = {
    "ImageNet validation": 50_000,
    "ImageNet-V2": 10_000,
    "ImageNet-A": 7_500,
    "ImageNet-R": 30_000,
    "ImageNet-Sketch": 50_889,
    "ImageNet ReaL": 46_837,
    "ObjectNet": 18_574,
    "Imagenette validation": 3_925,
    "Imagewoof validation": 3_929,
    "CIFAR, MNIST or Tiny ImageNet test": 10_000,
    "5,000 of CIFAR's or COCO's validation": 5_000,
    "SVHN test": 26_032,
    "STL-10 test": 8_000,
    "Flowers-102 test": 6_149,
    "Flowers-102 validation": 1_020,
    "Food-101 test": 25_250,
    "Oxford-IIIT Pets test": 3_669,
    "Stanford Cars test": 8_041,
    "FGVC-Aircraft test": 3_333,
    "DTD test": 1_880,
    "SUN397 test": 19_850,
    "SUN397 test of VTAB": 21_750,
    "Caltech-101 test of VTAB": 6_084,
    "EuroSAT test": 8_100,
    "EuroSAT test of VTAB": 5_400,
    "RESISC45 test": 6_300,
    "PatchCamelyon test": 32_768,
    "VOC 2007 test": 4_952,
    "Places365 validation": 36_500,
    "CUB-200-2011 test": 5_794,
    "Stanford Dogs test": 8_580,
    "NABirds test": 24_633,
    "GTSRB test": 12_630,
    "iNaturalist 2017 validation": 95_986,
    "iNaturalist 2018 validation": 24_426,
    "iNaturalist 2019 validation": 3_030,
    "iNaturalist 2021 validation": 100_000,
}


def printable(images: int, rounding: Rounding, resolution: int) -> int:
    """How many of the rates 0, 1 / resolution, ... 1 so many images below the resolution can be printed as."""
    if rounding == "truncated":
        # k / n at a digit may be a hair below it as a float, and then loses one.
        return images + 1 + gcd(images, resolution)
    common = gcd(images, 2 * resolution)
    return images + 1 + ((common + 1) // 2 if 2 * resolution // common % 2 else 0)


def resolution(cell: Cell) -> int:
    """From this many images on, every printed rate is one of theirs."""
    return int(1 / (2 * cell.half))


@dataclass(frozen=True)
class Reading:
    """How rates may have come about: whole numbers of so many images, printed in this way."""

    images: int
    rounding: Rounding

    def allows(self, cell: Cell) -> bool:
        """Whether some whole number of images is printed as this cell is."""
        low, high = (cell.low, cell.high) if self.rounding == "rounded" else (cell.exact, cell.most)
        # In whole numbers: many are tried.
        least = -(-low.numerator * self.images // low.denominator)
        most, rest = divmod(high.numerator * self.images, high.denominator)
        if self.rounding == "rounded":
            return least <= min(self.images, most) or self._in_single_precision(cell)
        return least <= min(self.images, most - (not rest)) or (not rest and self._a_hair_below(most, cell))

    def _in_single_precision(self, cell: Cell) -> bool:
        """Whether single precision gives a printed number of so many digits: accuracy that was computed on a GPU."""
        if cell.half > _SINGLE:
            return False
        count, images, unit = np.float32(round(cell.exact * self.images)), np.float32(self.images), np.float32(1 / cell.scale)
        printed, half = float(cell.text), float(cell.half / cell.scale)
        ways = (count / images * unit, count * unit / images, float(count / images) * float(unit))
        return any(abs(float(way) - printed) <= half * _TIE for way in ways)

    def _a_hair_below(self, count: int, cell: Cell) -> bool:
        """Whether floats truncate a rate that ends with the cell's next digit to the cell's: 100 * 0.29 is 28.999999999999996."""
        if count > self.images:
            return False
        digits = round(log10(1 / (2 * cell.half)))
        rate, of_percent = count / self.images, 10 ** (digits - 2)
        ways = (rate * 10**digits, 100 * count / self.images * of_percent, 100 * rate * of_percent)
        return any(floor(way) < floor(round(way)) for way in ways)

    def chance(self, cells: list[Cell]) -> float:
        """Chance that it allows all of so many different rates of one resolution if they are of other images."""
        steps = resolution(cells[0])
        share = min(1.0, printable(self.images, self.rounding, steps) / (steps + 1)) if self.images < steps else 1.0
        return float(share ** len({cell.exact for cell in cells}))

    def misfits(self, cells: Iterable[Cell]) -> tuple[Cell, ...]:
        """The cells that it does not allow."""
        return tuple(cell for cell in cells if not self.allows(cell))


@dataclass(frozen=True)
class Split:
    """A number of images, with what a loader that drops its last partial batch leaves of it."""

    images: int

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        """All ways in which its rates may have come about, the plainest first."""
        whole = [self.images, *sorted({self.images - self.images % batch for batch in BATCHES} - {0, self.images}, reverse=True)]
        return tuple(Reading(images, rounding) for images in whole for rounding in ROUNDINGS)

    def explains(self, cells: Iterable[Cell]) -> Reading | None:
        """One reading that allows all cells, if there is one."""
        given = list(cells)
        return next((reading for reading in self.readings if all(map(reading.allows, given))), None)

    def nearest(self, cell: Cell) -> tuple[Fraction, Fraction]:
        """The rates of whole numbers of images next below and above a printed one."""
        count = cell.exact * self.images
        return Fraction(floor(count), self.images), Fraction(min(ceil(count), self.images), self.images)


# ------------------------------------------------------------------------------------------------------------------- one number against two

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
