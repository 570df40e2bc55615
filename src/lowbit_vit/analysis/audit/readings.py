"""Of how many images a rate may be, and how it may have been printed: the readings that the audit tries.

Three roundings are tried: half up, half to even, truncated. A float may round a tie either way, so a tie counts for both sides.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor, gcd, log10
from typing import Literal

import numpy as np

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
