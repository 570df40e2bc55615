"""Checks of accuracies as counts: a rate of n images is a whole number over n, and rounding leaves a trace of n.

The test of granularity is Brown and Heathers', "The GRIM test", Social Psychological and Personality Science 8, 2017.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from math import ceil

from lowbit_vit.analysis.audit.check import LEVEL, Need, check
from lowbit_vit.analysis.audit.context import Case, Lacking
from lowbit_vit.analysis.audit.finding import Finding, about
from lowbit_vit.analysis.audit.mixtures import MOST_IMAGES, Mixture, best_mixture, least_readings
from lowbit_vit.analysis.audit.readings import PUBLIC, Reading, Split, resolution
from lowbit_vit.analysis.audit.table import Cell, ResultsTable, above

_NAMED = 3


def rates(table: ResultsTable) -> list[Cell]:
    """Top-1 and Top-5 of all rows: F1 is no count."""
    return [*table.column("top1"), *table.column("top5")]


def _not_stated(case: Case) -> list[Cell]:
    """The rates whose number of images is not stated."""
    return [cell for cell in rates(case.table) if case.images(cell.row) is None]


def _printed_alike(cells: list[Cell]) -> list[Cell]:
    """Those of the commonest last digit, the finest of several: only rates of one resolution are compared."""
    last = {cell: cell.scale / 10**cell.decimals for cell in cells}
    number = Counter(last.values())
    chosen = max(number, key=lambda digit: (number[digit], -digit), default=None)
    return [cell for cell in cells if last[cell] == chosen]


@check("top-5-order", "top1", "top5")
def order(case: Case) -> Iterator[Finding]:
    """Top-5 is at least Top-1."""
    for top1, top5 in case.table.together("top1", "top5"):
        if above(top1, top5):
            words = (
                f"{case.label(top1)}: {top1.heading} {top1.text} is above {top5.heading} {top5.text}, which counts those images too: "
                f"the two cannot both be right"
            )
            yield about((top1, top5), verdict="impossible", words=words, top1=top1.value, top5=top5.value)


@check("split-size", Need("column Top-1 or Top-5", lambda case: rates(case.table)))
def split_sizes(case: Case) -> Iterator[Finding]:
    """Are the rates whole numbers of the images that are stated, or of a split that is known?"""
    stated: defaultdict[int, list[Cell]] = defaultdict(list)
    for cell in rates(case.table):
        if (images := case.images(cell.row)) is not None:
            stated[images].append(cell)
    for images, cells in stated.items():
        yield from _stated(case, Split(images), cells)
    if _not_stated(case):
        yield _listed(case)


def _stated(case: Case, split: Split, cells: list[Cell]) -> Iterator[Finding]:
    """The rates of rows whose number of images is stated."""
    called = f"{split.images:,} images"
    if all(split.images >= resolution(cell) for cell in cells):
        words = f"{len(cells)} rates have too few digits to tell whether they are whole numbers of {called}"
        yield about(cells, verdict="not checked", words=words, images=split.images, rates=len(cells))
        return
    best = min(split.readings, key=lambda reading: len(reading.misfits(cells)))
    wrong = [cell for cell in cells if split.explains([cell]) is None]
    misfits = best.misfits(cells)
    numbers = {"images": split.images, "rates": len(cells), "misfits": len(wrong), "misfits_of_best_reading": len(misfits)}
    way = "" if best.rounding == "rounded" else ", truncated"
    left = "" if best.images == split.images else f" ({best.images:,} of them: without a last batch)"
    if wrong:
        for cell in wrong:
            yield _impossible(case, split, cell, numbers=numbers)
    elif not misfits:
        words = f"all {len(cells)} rates are whole numbers of the stated {called}{left}{way}"
        yield about(cells, verdict="holds", words=words, **numbers)
    else:
        shown = "; ".join(f"{case.label(cell)}, {cell.heading} {cell.text}" for cell in misfits[:_NAMED])
        words = (
            f"{len(cells) - len(misfits)} of {len(cells)} rates are whole numbers of the stated {called}{left}{way}; the others need "
            f"another rounding or another dropped batch than those ({shown})"
        )
        yield about(misfits, verdict="suspicious", words=words, **numbers)


def _impossible(case: Case, split: Split, cell: Cell, *, numbers: dict[str, int]) -> Finding:
    below, over = split.nearest(cell)
    near = " and ".join(f"{float(rate / cell.scale):.{cell.decimals + 1}f} ({rate * split.images} images)" for rate in (below, over))
    words = (
        f"{case.label(cell)}: {cell.heading} {cell.text} is {float(cell.exact * split.images):.2f} of the stated {split.images:,} "
        f"images; the nearest rates are {near}; tried: {split.images:,} and what dropped last batches leave of it; rounded half up, "
        f"half to even, truncated. A mean of several runs or of batches would explain it"
    )
    return about((cell,), verdict="impossible", words=words, below=float(below), above=float(over), **numbers)


@lru_cache(maxsize=1)
def _known(case: Case) -> tuple[Reading, str, float] | None:
    """The known split that explains the rates without stated images best: its reading, its name, and the chance that one of all does.

    At or above what the digits resolve, any rate is of that many images.
    """
    cells = _not_stated(case)
    alike = _printed_alike(cells)
    finest = max(map(resolution, cells))
    listed = {name: images for name, images in {**case.context.split_sizes, **PUBLIC}.items() if images < finest}
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


def _listed(case: Case) -> Finding:
    """Rates whose number of images is not stated: which of the known splits explains all of them?"""
    cells, known = _not_stated(case), _known(case)
    if known is None:
        words = f"the number of images is not stated, and no listed split explains all {len(cells)} rates: no evidence either way"
        return about(cells, verdict="not checked", words=words, rates=len(cells))
    reading, name, p = known
    words = f"all {len(cells)} rates are whole numbers of {reading.images:,} images ({name})"
    words += "" if p <= LEVEL else f": no evidence, since rates of other images fit some listed split as well (p = {p:.2g})"
    return about(cells, verdict="holds" if p <= LEVEL else "not checked", words=words, images=reading.images, rates=len(cells), p=p)


@check("hidden-images")
def hidden_images(case: Case) -> Iterator[Finding]:
    """Rates whose number of images is not stated: are they better explained by two numbers of images than by one?"""
    alike = _printed_alike(_not_stated(case))
    if rates(case.table) and not alike:
        return
    different = list({cell.exact: cell for cell in alike}.values())
    if len(different) < _NAMED:
        raise Lacking("three different rates of equally many digits, of rows without a stated number of images")
    known = _known(case)
    if known is not None and known[2] <= LEVEL:
        return
    mixture = best_mixture(different, listed=frozenset([*case.context.split_sizes.values(), *PUBLIC.values()]))
    if mixture is not None and mixture.p <= LEVEL:
        yield _two_numbers(different, mixture)
        return
    for reading in least_readings(different):
        p = 2 * min(MOST_IMAGES, resolution(alike[0])) * reading.chance(different)
        if p <= LEVEL:
            words = f"all {len(different)} different rates are whole numbers of {reading.images:,} images, and of no fewer (p = {p:.1g})"
            yield about(alike, verdict="exact", words=words, images=reading.images, rates=len(different), p=p)
            return


def _two_numbers(cells: list[Cell], mixture: Mixture) -> Finding:
    first = [cell for cell, fits in zip(cells, mixture.of_first, strict=True) if fits]
    rest = [cell for cell, fits in zip(cells, mixture.of_first, strict=True) if not fits]
    second = f"{mixture.second:,}" if mixture.second is not None else "another number"
    words = (
        f"{len(first)} of {len(cells)} different rates are whole numbers of {mixture.first:,} images, and {len(rest)} of {second}; no one "
        f"number explains all nearly as well (p = {mixture.p:.1g}, for all numbers up to a million). Rows of two splits would "
        f"explain it, or rates quoted with fewer digits"
    )
    numbers = {"first": mixture.first, "second": mixture.second or 0, "of_first": len(first), "rates": len(cells), "p": mixture.p}
    return about(first if len(first) <= len(rest) else rest, verdict="suspicious", words=words, **numbers)


def _neighbours(case: Case) -> list[tuple[Cell, Cell]]:
    """Rates of Top-1 next to each other that differ."""
    column = sorted(case.table.column("top1"), key=lambda cell: cell.exact)
    return [(one, other) for one, other in pairwise(column) if one.exact != other.exact]


@check("whole-image", Need("two different rates in column Top-1", _neighbours))
def smallest_difference(case: Case) -> Iterator[Finding]:
    """Two rows whose rates differ do so by one image at least."""
    one, other = min(_neighbours(case), key=lambda pair: pair[1].high - pair[0].low)
    most = other.high - one.low
    needed = ceil(1 / most)
    words = f"{one.heading} {one.text} and {other.text} are at most {float(most):.3g} apart: one image of {needed:,} at least"
    numbers = {"difference": float(other.exact - one.exact), "least_images": needed}
    images = {case.images(cell.row) for cell in (one, other)}
    stated = images.pop() if len(images) == 1 else None
    if stated is None or stated >= needed:
        yield about((one, other), verdict="exact" if stated is None else "holds", words=words, **numbers)
    else:
        words += f", and both rows state {stated:,}: they cannot both be right, unless a last batch was dropped in one of them"
        yield about((one, other), verdict="suspicious", words=words, images=stated, **numbers)
