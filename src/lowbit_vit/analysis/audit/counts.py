"""Checks of accuracies as counts: a rate of n images is a whole number over n, and rounding leaves a trace of n.

The test of granularity is Brown and Heathers', "The GRIM test", Social Psychological and Personality Science 8, 2017.
"""

from collections import Counter
from itertools import pairwise
from math import ceil

from lowbit_vit.analysis.audit.context import Context
from lowbit_vit.analysis.audit.finding import LEVEL, Finding, Verdict, about, not_checked
from lowbit_vit.analysis.audit.mixtures import MOST_IMAGES, Mixture, best_mixture, least_readings
from lowbit_vit.analysis.audit.readings import PUBLIC, Reading, Split, resolution
from lowbit_vit.analysis.audit.table import Cell, ResultsTable

_NAMED = 3


def rates(table: ResultsTable) -> list[Cell]:
    """Top-1 and Top-5 of all rows: F1 is no count."""
    return [*table.column("top1"), *table.column("top5")]


def _printed_alike(cells: list[Cell]) -> list[Cell]:
    """Those of the commonest last digit, the finest of several: only rates of one resolution are compared."""
    last = {cell: cell.scale / 10**cell.decimals for cell in cells}
    number = Counter(last.values())
    chosen = max(number, key=lambda digit: (number[digit], -digit))
    return [cell for cell in cells if last[cell] == chosen]


def split_sizes(table: ResultsTable, context: Context) -> list[Finding]:
    """Are the rates whole numbers of the images that are stated, or of a split that is known?"""
    cells = rates(table)
    if not cells:
        return not_checked("split-size", {"column Top-1 or Top-5": cells})
    stated: dict[int, list[Cell]] = {}
    for cell in cells:
        images = context.images(table, cell.row)
        if images is not None:
            stated.setdefault(images, []).append(cell)
    found = [finding for images, of_them in stated.items() for finding in _stated(table, Split(images), of_them)]
    if len(cells) == sum(map(len, stated.values())):
        return found
    return [*found, *_listed([cell for cell in cells if context.images(table, cell.row) is None], context)]


def _stated(table: ResultsTable, split: Split, cells: list[Cell]) -> list[Finding]:
    """The rates of rows whose number of images is stated."""
    called = f"{split.images:,} images"
    if all(split.images >= resolution(cell) for cell in cells):
        words = f"{len(cells)} rates have too few digits to tell whether they are whole numbers of {called}"
        return [about("split-size", cells, verdict="not checked", words=words, images=split.images, rates=len(cells))]
    best = min(split.readings, key=lambda reading: len(reading.misfits(cells)))
    wrong = [cell for cell in cells if not any(reading.allows(cell) for reading in split.readings)]
    tried = f"tried: {split.images:,} and what dropped last batches leave of it; rounded half up, half to even, truncated"
    misfits = best.misfits(cells)
    numbers = {"images": split.images, "rates": len(cells), "misfits": len(wrong), "misfits_of_best_reading": len(misfits)}
    if wrong:
        return [_impossible(table, split, cell, tried=tried, numbers=numbers) for cell in wrong]
    way = "" if best.rounding == "rounded" else ", truncated"
    left = "" if best.images == split.images else f" ({best.images:,} of them: without a last batch)"
    if not misfits:
        words = f"all {len(cells)} rates are whole numbers of the stated {called}{left}{way}"
        return [about("split-size", cells, verdict="holds", words=words, **numbers)]
    shown = "; ".join(f"{table.labels[cell.row]}, {cell.heading} {cell.text}" for cell in misfits[:_NAMED])
    words = (
        f"{len(cells) - len(misfits)} of {len(cells)} rates are whole numbers of the stated {called}{left}{way}; the others need another "
        f"rounding or another dropped batch than those ({shown})"
    )
    return [about("split-size", misfits, verdict="suspicious", words=words, **numbers)]


def _impossible(table: ResultsTable, split: Split, cell: Cell, *, tried: str, numbers: dict[str, int]) -> Finding:
    below, over = split.nearest(cell)
    digits = cell.decimals + 1
    near = " and ".join(f"{float(rate / cell.scale):.{digits}f} ({rate * split.images} images)" for rate in (below, over))
    words = (
        f"{table.labels[cell.row]}: {cell.heading} {cell.text} is {float(cell.exact * split.images):.2f} of the stated {split.images:,} "
        f"images; the nearest rates are {near}; {tried}. A mean of several runs or of batches would explain it"
    )
    values = {"below": float(below), "above": float(over), **{name: float(number) for name, number in numbers.items()}}
    return about("split-size", (cell,), verdict="impossible", words=words, **values)


def _known(cells: list[Cell], context: Context) -> tuple[Reading, str, float] | None:
    """The known split that explains rates best: in which reading, its name, and the chance that one of all splits does.

    At or above what the digits resolve, any rate is of that many images.
    """
    alike = _printed_alike(cells)
    finest = max(map(resolution, cells))
    listed = {name: images for name, images in {**context.split_sizes, **PUBLIC}.items() if images < finest}
    best: tuple[Reading, str, float] | None = None
    for name, images in listed.items():
        reading = Split(images).explains(cells)
        if reading is None:
            continue
        left = "" if reading.images == images else " without a last batch"
        way = ", truncated" if reading.rounding == "truncated" else ""
        chance = min(1.0, len(listed) * len(Split(images).readings) * reading.chance(alike))
        if best is None or chance < best[2]:
            best = reading, f"{name}{left}{way}", chance
        if chance <= LEVEL:
            break
    return best


def _listed(cells: list[Cell], context: Context) -> list[Finding]:
    """Rates whose number of images is not stated: which of the known splits explains all of them?"""
    known = _known(cells, context)
    if known is None:
        words = f"the number of images is not stated, and no listed split explains all {len(cells)} rates: no evidence either way"
        return [about("split-size", cells, verdict="not checked", words=words, rates=len(cells))]
    reading, name, chance = known
    words = f"all {len(cells)} rates are whole numbers of {reading.images:,} images ({name})"
    words += "" if chance <= LEVEL else f": no evidence, since rates of other images fit some listed split as well (p = {chance:.2g})"
    verdict: Verdict = "holds" if chance <= LEVEL else "not checked"
    return [about("split-size", cells, verdict=verdict, words=words, images=reading.images, rates=len(cells), p=chance)]


def hidden_images(table: ResultsTable, context: Context) -> list[Finding]:
    """Rates whose number of images is not stated: are they better explained by two numbers of images than by one?"""
    every = rates(table)
    cells = [cell for cell in every if context.images(table, cell.row) is None]
    if every and not cells:
        return []
    alike = _printed_alike(cells) if cells else []
    different = list({cell.exact: cell for cell in alike}.values())
    if len(different) < _NAMED:
        need = {"three different rates of equally many digits, of rows without a stated number of images": False}
        return not_checked("hidden-images", need)
    known = _known(cells, context)
    if known is not None and known[2] <= LEVEL:
        return []
    mixture = best_mixture(different, listed=frozenset([*context.split_sizes.values(), *PUBLIC.values()]))
    if mixture is not None and mixture.p <= LEVEL:
        return [_two_numbers(different, mixture)]
    for reading in least_readings(different):
        p = 2 * min(MOST_IMAGES, resolution(alike[0])) * reading.chance(different)
        if p <= LEVEL:
            words = f"all {len(different)} different rates are whole numbers of {reading.images:,} images, and of no fewer (p = {p:.1g})"
            return [about("hidden-images", alike, verdict="exact", words=words, images=reading.images, rates=len(different), p=p)]
    return []


def _two_numbers(cells: list[Cell], mixture: Mixture) -> Finding:
    first = [cell for cell, fits in zip(cells, mixture.of_first, strict=True) if fits]
    rest = [cell for cell, fits in zip(cells, mixture.of_first, strict=True) if not fits]
    second = f"{mixture.second:,}" if mixture.second is not None else "another number"
    words = (
        f"{len(first)} of {len(cells)} different rates are whole numbers of {mixture.first:,} images, and {len(rest)} of {second}; no one "
        f"number explains all nearly as well (p = {mixture.p:.1g}, for all numbers up to a million). Rows of two splits would "
        f"explain it, or rates quoted with fewer digits"
    )
    fewer = min(first, rest, key=len)
    numbers = {"first": mixture.first, "second": mixture.second or 0, "of_first": len(first), "rates": len(cells), "p": mixture.p}
    return about("hidden-images", fewer, verdict="suspicious", words=words, **numbers)


def smallest_difference(table: ResultsTable, context: Context) -> list[Finding]:
    """Two rows whose rates differ do so by one image at least."""
    column = sorted(table.column("top1"), key=lambda cell: cell.exact)
    pairs = [(other.high - one.low, one, other) for one, other in pairwise(column) if one.exact != other.exact]
    if not pairs:
        return not_checked("whole-image", {"two different rates in column Top-1": pairs})
    most, one, other = min(pairs, key=lambda pair: pair[0])
    needed = ceil(1 / most)
    words = f"{one.heading} {one.text} and {other.text} are at most {float(most):.3g} apart: one image of {needed:,} at least"
    numbers = {"difference": float(other.exact - one.exact), "least_images": needed}
    images = {context.images(table, cell.row) for cell in (one, other)}
    stated = next(iter(images)) if len(images) == 1 else None
    if stated is None or stated >= needed:
        return [about("whole-image", (one, other), verdict="exact" if stated is None else "holds", words=words, **numbers)]
    words += f", and both rows state {stated:,}: they cannot both be right, unless a last batch was dropped in one of them"
    return [about("whole-image", (one, other), verdict="suspicious", words=words, images=stated, **numbers)]
