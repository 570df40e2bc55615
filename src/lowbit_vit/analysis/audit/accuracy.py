"""Checks of accuracies: as counts, of which rounding leaves a trace; how small a difference they resolve; F1 beside Top-1.

A rate of n images is a whole number over n. The test of granularity is Brown and Heathers', "The GRIM test", Social Psychological and
Personality Science 8, 2017.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby, pairwise
from math import ceil
from statistics import NormalDist

from lowbit_vit.analysis.audit.check import LEVEL, Finding, Need, about, check
from lowbit_vit.analysis.audit.context import Case, Lacking, given
from lowbit_vit.analysis.audit.readings import MOST_IMAGES, PUBLIC, Mixture, Reading, Split, best_mixture, least_readings, resolution
from lowbit_vit.analysis.audit.table import Cell, ResultsTable, above

# ---------------------------------------------------------------------------------------------------------------- counts

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


# ----------------------------------------------------------------------------------------------------------- differences

_Z = NormalDist().inv_cdf(0.975)
# Share of the images on which two variants of one network disagree in being right: a usual one for low-bit weights. On the same
# images it is the variance of the difference of their rates, for one image.
DISCORDANT = 0.05
# F1 and Top-1 are of the same predictions: beyond this, and twice what the images resolve, the one moves without the other.
_F1_ALONE = 0.01
# A fine-tuned model this far below published ones was trained in another way.
_FAR_BELOW = 0.10


def _most_images(case: Case) -> int | None:
    """Test images: as stated, else the most that they can be."""
    return case.context.claims.images or case.context.test_images


IMAGES = Need("claims.images or test_images in the context", _most_images)


def _half_width(variance: float, images: int) -> float:
    """Half of the 95 % interval of a rate or a difference of rates (normal approximation), from the variance of one image."""
    return _Z * math.sqrt(variance / images)


def _unpaired(one: float, other: float, images: int) -> float:
    """Of a difference of two rates, of as many different images each."""
    return _half_width(one * (1 - one) + other * (1 - other), images)


@check("resolution", "top1", "reference", IMAGES)
def differences(case: Case) -> Iterator[Finding]:
    """Is a row's difference from the reference beyond what that many images resolve?"""
    images, reference = given(_most_images(case)), given(case.of_reference("top1"), "Top-1 in the reference row")
    for cell in case.table.column("top1"):
        if cell.row == reference.row:
            continue
        difference = cell.value - reference.value
        unpaired, paired = _unpaired(cell.value, reference.value, images), _half_width(DISCORDANT, images)
        words = (
            f"{case.label(cell)}: Top-1 differs by {100 * difference:+.2f} points; {images} images resolve "
            f"{100 * unpaired:.2f} unpaired, {100 * paired:.2f} paired at {DISCORDANT:.0%} discordance"
        )
        numbers = {
            "difference_points": 100 * difference,
            "rate_half_width_points": 100 * _half_width(reference.value * (1 - reference.value), images),
            "unpaired_half_width_points": 100 * unpaired,
            "paired_half_width_points": 100 * paired,
            "images": images,
        }
        yield about((reference, cell), verdict="holds" if abs(difference) > unpaired else "underpowered", words=words, **numbers)


@check("negligible-gain", "top1", "claims.negligible_gain", IMAGES)
def negligible_gain(case: Case) -> Iterator[Finding]:
    """Can a gain be called none on that many images?"""
    images, gain, rate = given(_most_images(case)), given(case.context.claims.negligible_gain), case.table.column("top1")[0].value
    unpaired, paired = _unpaired(rate, rate, images), _half_width(DISCORDANT, images)
    numbers = {"gain_points": 100 * gain, "unpaired_half_width_points": 100 * unpaired, "paired_half_width_points": 100 * paired}
    words = (
        f"a gain below {100 * gain:.1f} points: {images} images resolve {100 * paired:.2f} points (paired) to "
        f"{100 * unpaired:.2f} (unpaired)"
    )
    yield about((), verdict="holds" if gain >= paired else "underpowered", words=words, **numbers)


def _timed(case: Case) -> list[tuple[Cell, ...]]:
    """Latency above zero and Top-1 of the rows that have both."""
    return [pair for pair in case.table.together("mean", "top1") if pair[0].exact]


@check("frontier", "top1", "mean", "reference", IMAGES, Need("two rows", lambda case: len(_timed(case)) > 1))
def frontier(case: Case) -> Iterator[Finding]:
    """Which rows lie on the front of Top-1 and latency only by a lead that the images do not resolve?"""
    images = given(_most_images(case))
    timed = sorted(_timed(case), key=lambda pair: pair[0].exact)
    first, *groups = [list(group) for _, group in groupby(timed, key=lambda pair: pair[0].exact)]
    best = max(first, key=lambda pair: pair[1].exact)
    found = []
    for group in groups:
        faster, lower = best
        for mean, top1 in group:
            lead, ratio = top1.value - lower.value, mean.value / faster.value
            if 0 < lead < _unpaired(top1.value, lower.value, images):
                words = (
                    f"{case.label(top1)} is {ratio:.2f} times as slow as {case.label(lower)}, and lies on the front of Top-1 and "
                    f"latency by {100 * lead:.2f} points alone, less than {images} images resolve"
                )
                numbers = {"lead_points": 100 * lead, "latency_ratio": ratio, "images": images}
                found.append(about((top1, mean), verdict="underpowered", words=words, **numbers))
        best = max([*group, best], key=lambda pair: pair[1].exact)
    yield from sorted(found, key=lambda finding: finding.rows)


def _compared(case: Case) -> list[tuple[int, int]]:
    """Twins, then the reference with each other row."""
    reference = case.of_reference("top1")
    return case.twins + [(reference.row, row) for row in case.table.rows if reference is not None and row != reference.row]


@check("f1-beside-top1", "top1", "f1", Need("reference or twins in the context", _compared), IMAGES)
def f1_beside_top1(case: Case) -> Iterator[Finding]:
    """F1 that moves much further than Top-1, between twins and against the reference."""
    alone = max(_F1_ALONE, 2 * _half_width(DISCORDANT, given(_most_images(case))))
    whole = {top1.row: (top1, f1) for top1, f1 in case.table.together("top1", "f1")}
    for one, other in _compared(case):
        if one not in whole or other not in whole:
            continue
        (top1, f1), (other_top1, other_f1) = whole[one], whole[other]
        moved, f1_moved = other_top1.value - top1.value, other_f1.value - f1.value
        if abs(f1_moved - moved) <= alone or abs(f1_moved) <= abs(moved):
            continue
        twins = (one, other) in case.twins
        words = (
            f"{case.label(f1)} to {case.label(other_f1)}: F1 {f1.text} to {other_f1.text} ({100 * f1_moved:+.2f} points) while Top-1 moves "
            f"by {100 * moved:+.2f}: {'another attention kernel on the same weights' if twins else 'equal accuracy by one measure alone'}"
        )
        numbers = {"f1_points": 100 * f1_moved, "top1_points": 100 * moved}
        yield about((top1, other_top1, f1, other_f1), verdict="suspicious" if twins else "not supported", words=words, **numbers)


@check("published-accuracy", "top1", "reference", "published_top1")
def published(case: Case) -> Iterator[Finding]:
    """The reference row beside published accuracies of the same model and data."""
    reference, rates = given(case.of_reference("top1"), "Top-1 in the reference row"), case.context.published_top1
    below = [100 * (rate - reference.value) for rate in rates.values()]
    words = f"{case.label(reference)}: {100 * reference.value:.1f} % where "
    words += ", ".join(f"{100 * rate:.1f} % {source}" for source, rate in rates.items())
    far = min(rates.values()) - reference.value > _FAR_BELOW
    words += f": {min(below):.0f} to {max(below):.0f} points below" if far else ""
    numbers = {"least_points_below": min(below), "most_points_below": max(below)}
    yield about((reference,), verdict="suspicious" if far else "holds", words=words, **numbers)
