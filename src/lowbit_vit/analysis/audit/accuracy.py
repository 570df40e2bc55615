"""Checks of what accuracies can carry: how small a difference they resolve, and F1 beside Top-1."""

import math
from collections.abc import Iterator
from itertools import groupby
from statistics import NormalDist

from lowbit_vit.analysis.audit.check import Need, check
from lowbit_vit.analysis.audit.context import Case, given
from lowbit_vit.analysis.audit.finding import Finding, about
from lowbit_vit.analysis.audit.table import Cell

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
def resolution(case: Case) -> Iterator[Finding]:
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
