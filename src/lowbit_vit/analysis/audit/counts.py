"""Checks of accuracies as counts: a rate of n images is a whole number over n, and rounding leaves a trace of n.

The test of granularity is Brown and Heathers', "The GRIM test", Social Psychological and Personality Science 8, 2017.
"""

from collections import Counter
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from lowbit_vit.analysis.audit.context import Context
from lowbit_vit.analysis.audit.finding import Finding, about, not_checked
from lowbit_vit.analysis.audit.table import Cell, ResultsTable

# Loaders that drop their last partial batch evaluate a multiple of one of these.
_DROPPED = (2, 4, 8, 16, 32, 64, 128, 256, 512)
# A number of images counts as found if chance gives so many fits less often than this, all numbers tried together.
_BEYOND_CHANCE = 0.01
_MOST_IMAGES = 20_000


@dataclass(frozen=True)
class Granularity:
    """How well the rates of a table are whole numbers over one n.

    Attributes:
        images: n.
        misfits: cells that no whole number over n rounds to.
        chance: probability that random rates fit n at least as often.
    """

    images: int
    misfits: tuple[Cell, ...]
    chance: float


def rates(table: ResultsTable) -> list[Cell]:
    """Top-1 and Top-5 of all rows, those of the commonest number of digits: F1 is no count."""
    cells = [*table.column("top1"), *table.column("top5")]
    halves = Counter(cell.half for cell in cells)
    return [cell for cell in cells if cell.half == halves.most_common(1)[0][0]]


def fits(cell: Cell, images: int) -> bool:
    """Whether some whole number over `images` rounds to what is printed."""
    low, high = cell.low, cell.high
    # In whole numbers: thousands of n are tried.
    return -(-low.numerator * images // low.denominator) <= high.numerator * images // high.denominator


def granularity(cells: list[Cell], images: int) -> Granularity:
    """Which rates cannot be of `images` images."""
    misfits = tuple(cell for cell in cells if not fits(cell, images))
    # Of the 10^d + 1 rates that can be printed with d digits, whole numbers over n reach n + 1.
    share = min(1.0, (images + 1) / float(1 / (2 * cells[0].half) + 1))
    return Granularity(images=images, misfits=misfits, chance=float(binom.sf(len(cells) - len(misfits) - 1, len(cells), share)))


def found_images(table: ResultsTable) -> Granularity | None:
    """The n that fits far more rates than chance would, if there is one: of all n, the least likely by chance.

    All n below the printed resolution are tried, and the chance is of the best of them (Bonferroni). Rates of few rows can
    be explained by many n, so None is the usual answer.
    """
    cells = rates(table)
    if len(cells) < 2:
        return None
    resolution = int(1 / (2 * cells[0].half))
    most = min(resolution, _MOST_IMAGES)
    images: npt.NDArray[np.int64] = np.arange(2, most + 1)
    fitting = np.zeros(len(images), dtype=np.int64)
    for cell in cells:
        doubled = int(2 * cell.exact * resolution)
        fitting += -(-(doubled - 1) * images // (2 * resolution)) <= (doubled + 1) * images // (2 * resolution)
    share = np.minimum(1.0, (images + 1) / (resolution + 1))
    chances = np.asarray(binom.sf(fitting - 1, len(cells), share))
    best = int(np.argmin(chances))
    if float(chances[best]) * len(images) > _BEYOND_CHANCE:
        return None
    return granularity(cells, int(images[best]))


def split_sizes(table: ResultsTable, context: Context) -> list[Finding]:
    """Can all printed rates be counts over one of the natural split sizes (or over the stated number of images)?"""
    cells = rates(table)
    sizes = dict(context.split_sizes)
    if context.claims.images is not None:
        sizes = {"stated": context.claims.images}
    if not cells or not sizes:
        return not_checked("split-size", {"column Top-1 or Top-5": cells, "claims.images or split_sizes in the context": sizes})
    judged = {name: granularity(cells, images) for name, images in sizes.items()}
    numbers = {f"misfits_of_{one.images}": float(len(one.misfits)) for one in judged.values()}
    fitting = [f"{one.images} ({name})" for name, one in judged.items() if not one.misfits]
    if fitting:
        words = f"all {len(cells)} rates are whole images of {' or '.join(fitting)}"
        return [about("split-size", cells, verdict="holds", words=words, **numbers)]
    failing = ", ".join(f"{one.images} fails {len(one.misfits)}" for one in judged.values())
    if context.claims.images is not None:
        misfits = next(iter(judged.values())).misfits
        words = f"of {len(cells)} rates, {len(misfits)} are no whole number of the stated {context.claims.images} images"
        return [about("split-size", misfits, verdict="contradicts itself", words=words, **numbers)]
    dropped = _dropped(cells, context)
    words = f"no natural split fits all {len(cells)} rates: {failing}; not excluded: means over batches" + (
        f", a dropped last batch ({'; '.join(f'{n} = {n // b} x {b}' for n, b in dropped.items())})" if dropped else ""
    )
    numbers |= {f"dropped_fits_{n}": float(b) for n, b in dropped.items()}
    return [about("split-size", cells, verdict="suspicious", words=words, **numbers)]


def _dropped(cells: list[Cell], context: Context) -> dict[int, int]:
    """Split sizes less a last partial batch that fit all rates, each with its least batch size."""
    found: dict[int, int] = {}
    for images in context.split_sizes.values():
        for batch in _DROPPED:
            whole = images - images % batch
            if whole not in (0, images) and not granularity(cells, whole).misfits:
                found.setdefault(whole, batch)
    return found


def hidden_images(table: ResultsTable, context: Context) -> list[Finding]:
    """An n that fits more rates than chance: the number of images that the table does not state, or that some cells betray."""
    cells = rates(table)
    if len(cells) < 2:
        return not_checked("hidden-images", {"two rates or more of equally many digits, in columns Top-1 and Top-5": len(cells) > 1})
    found = found_images(table)
    if found is None:
        return []
    names = [name for name, images in context.split_sizes.items() if images == found.images]
    called = f"{found.images} images" + (f" ({names[0]})" if names else "")
    fitting = len(cells) - len(found.misfits)
    anywhere = min(1.0, found.chance * int(1 / (2 * cells[0].half)))
    words = f"{fitting} of {len(cells)} rates are whole numbers of {called}; "
    words += f"as many by chance: {found.chance:.1g}, and {anywhere:.1g} for any number of images"
    numbers = {"images": float(found.images), "fitting": fitting, "rates": len(cells), "chance": found.chance, "chance_of_any": anywhere}
    if not found.misfits:
        return [about("hidden-images", cells, verdict="exact", words=words, **numbers)]
    least = next((n for n in range(2, _MOST_IMAGES) if all(fits(cell, n) for cell in cells)), None)
    if least is not None:
        numbers["least_that_fits_all"] = least
    counts = "; ".join(f"{table.labels[cell.row]}, {cell.heading} {cell.text} is {cell.value * found.images:.2f}" for cell in found.misfits)
    words = f"{words}, and the other {len(found.misfits)} are none ({counts}): not all are of the same images, counted alike"
    words += f"; the least number that fits all is {least}" if least is not None else ""
    return [about("hidden-images", found.misfits, verdict="contradicts itself", words=words, **numbers)]


def smallest_difference(table: ResultsTable, context: Context) -> list[Finding]:
    """Two rows cannot differ by less than one image."""
    column = table.column("top1")
    if len(column) < 2:
        return not_checked("whole-image", {"Top-1 of two rows or more": len(column) > 1})
    pairs = [(one, other) for at, one in enumerate(column) for other in column[at + 1 :] if one.exact != other.exact]
    if not pairs:
        return []
    one, other = min(pairs, key=lambda pair: abs(pair[0].exact - pair[1].exact))
    most = abs(one.exact - other.exact) + one.half + other.half
    needed = ceil(1 / most)
    found = found_images(table)
    images = context.claims.images or (found.images if found is not None else None)
    apart = abs(one.value - other.value)
    words = f"{one.heading} {one.text} and {other.text} are at most {float(most):.4f} apart: that takes {needed} images at least"
    numbers = {"difference": apart, "least_images": needed}
    if images is None:
        return [about("whole-image", (one, other), verdict="exact", words=words, **numbers)]
    numbers |= {"images": images, "difference_images": apart * images}
    if images >= needed:
        return [about("whole-image", (one, other), verdict="holds", words=words, **numbers)]
    words = f"{words}, and of {images} the difference is {apart * images:.2f} of one"
    return [about("whole-image", (one, other), verdict="contradicts itself", words=words, **numbers)]
