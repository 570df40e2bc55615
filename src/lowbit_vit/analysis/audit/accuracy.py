"""Checks of what accuracies can carry: their order, how small a difference they resolve, and F1 beside Top-1."""

import math
from itertools import groupby
from statistics import NormalDist

from lowbit_vit.analysis.audit.context import Context
from lowbit_vit.analysis.audit.finding import Finding, Verdict, about, not_checked
from lowbit_vit.analysis.audit.table import Cell, ResultsTable, above

_Z = NormalDist().inv_cdf(0.975)
# Share of the images on which two variants of one network disagree in being right: a usual one for low-bit weights.
DISCORDANT = 0.05
# F1 and Top-1 are of the same predictions: beyond this, and twice what the images resolve, the one moves without the other.
_F1_ALONE = 0.01
# A fine-tuned model this far below published ones was trained in another way.
_FAR_BELOW = 0.10


def rate_half_width(rate: float, images: int) -> float:
    """Half of the 95 % interval of one rate (normal approximation)."""
    return _Z * math.sqrt(rate * (1 - rate) / images)


def unpaired_half_width(one: float, other: float, images: int) -> float:
    """Half of the 95 % interval of a difference of two rates of `images` images each, as if the images were others."""
    return _Z * math.sqrt((one * (1 - one) + other * (1 - other)) / images)


def paired_half_width(images: int, *, discordant: float = DISCORDANT) -> float:
    """The same on the same images, of which a share `discordant` is right in one model only."""
    return _Z * math.sqrt(discordant / images)


def order(table: ResultsTable, context: Context) -> list[Finding]:
    """Top-5 is at least Top-1."""
    if not table.column("top1") or not table.column("top5"):
        return not_checked("top-5-order", {"column Top-1": table.column("top1"), "column Top-5": table.column("top5")})
    found = []
    for row in table.rows:
        top1, top5 = table.cell(row, "top1"), table.cell(row, "top5")
        if top1 is not None and top5 is not None and above(top1, top5):
            words = (
                f"{table.labels[row]}: {top1.heading} {top1.text} is above {top5.heading} {top5.text}, which counts those images too: "
                f"the two cannot both be right"
            )
            numbers = {"top1": top1.value, "top5": top5.value}
            found.append(about("top-5-order", (top1, top5), verdict="impossible", words=words, **numbers))
    return found


def _images(context: Context) -> int | None:
    """Test images: as stated, else the most that they can be."""
    return context.claims.images or context.test_images


def resolution(table: ResultsTable, context: Context) -> list[Finding]:
    """Is a row's difference from the reference beyond what that many images resolve?"""
    images = _images(context)
    reference = _reference(table, context)
    if images is None or reference is None:
        return not_checked(
            "resolution",
            {
                "column Top-1": table.column("top1"),
                "reference in the context": context.reference,
                "claims.images or test_images in the context": images,
            },
        )
    found = []
    for cell in table.column("top1"):
        if cell.row == reference.row:
            continue
        difference = cell.value - reference.value
        unpaired, paired = unpaired_half_width(cell.value, reference.value, images), paired_half_width(images)
        verdict: Verdict = "holds" if abs(difference) > unpaired else "underpowered"
        words = (
            f"{table.labels[cell.row]}: Top-1 differs by {100 * difference:+.2f} points; {images} images resolve "
            f"{100 * unpaired:.2f} unpaired, {100 * paired:.2f} paired at {DISCORDANT:.0%} discordance"
        )
        numbers = {
            "difference_points": 100 * difference,
            "rate_half_width_points": 100 * rate_half_width(reference.value, images),
            "unpaired_half_width_points": 100 * unpaired,
            "paired_half_width_points": 100 * paired,
            "images": images,
        }
        found.append(about("resolution", (reference, cell), verdict=verdict, words=words, **numbers))
    return found


def negligible_gain(table: ResultsTable, context: Context) -> list[Finding]:
    """Can a gain be called none on that many images?"""
    images, gain = _images(context), context.claims.negligible_gain
    column = table.column("top1")
    if images is None or gain is None or not column:
        return not_checked(
            "negligible-gain",
            {
                "column Top-1": table.column("top1"),
                "claims.negligible_gain in the context": context.claims.negligible_gain,
                "claims.images or test_images in the context": images,
            },
        )
    rate = column[0].value
    unpaired, paired = unpaired_half_width(rate, rate, images), paired_half_width(images)
    numbers = {"gain_points": 100 * gain, "unpaired_half_width_points": 100 * unpaired, "paired_half_width_points": 100 * paired}
    resolved = f"{images} images resolve {100 * paired:.2f} points (paired) to {100 * unpaired:.2f} (unpaired)"
    words = f"a gain below {100 * gain:.1f} points: {resolved}"
    if gain >= paired:
        return [about("negligible-gain", (), verdict="holds", words=words, **numbers)]
    return [about("negligible-gain", (), verdict="underpowered", words=words, **numbers)]


def frontier(table: ResultsTable, context: Context) -> list[Finding]:
    """Which rows lie on the front of Top-1 and latency only by a lead that the images do not resolve?"""
    images = _images(context)
    rows = [(mean, top1) for row in table.rows if (top1 := table.cell(row, "top1")) and (mean := table.cell(row, "mean")) and mean.exact]
    if images is None or context.reference is None or len(rows) < 2:
        return not_checked(
            "frontier",
            {
                "column Top-1": table.column("top1"),
                "column latency": table.column("mean"),
                "reference in the context": context.reference,
                "claims.images or test_images in the context": images,
                "two rows": len(rows) > 1,
            },
        )
    found = []
    best: tuple[Cell, Cell] | None = None
    for _, group in groupby(sorted(rows, key=lambda pair: pair[0].exact), key=lambda pair: pair[0].exact):
        slower = list(group)
        if best is not None:
            found += [_lead(table, best, pair, images) for pair in slower if _unresolved(best, pair, images)]
        best = max([*slower, *([best] if best is not None else [])], key=lambda pair: pair[1].exact)
    return sorted(found, key=lambda finding: finding.rows)


def _unresolved(best: tuple[Cell, Cell], pair: tuple[Cell, Cell], images: int) -> bool:
    lead = pair[1].value - best[1].value
    return 0 < lead < unpaired_half_width(pair[1].value, best[1].value, images)


def _lead(table: ResultsTable, best: tuple[Cell, Cell], pair: tuple[Cell, Cell], images: int) -> Finding:
    (faster, lower), (mean, top1) = best, pair
    lead, ratio = 100 * (top1.value - lower.value), mean.value / faster.value
    words = (
        f"{table.labels[top1.row]} is {ratio:.2f} times as slow as {table.labels[lower.row]}, and lies on the front of Top-1 and "
        f"latency by {lead:.2f} points alone, less than {images} images resolve"
    )
    return about("frontier", (top1, mean), verdict="underpowered", words=words, lead_points=lead, latency_ratio=ratio, images=images)


def f1_beside_top1(table: ResultsTable, context: Context) -> list[Finding]:
    """F1 that moves much further than Top-1, between twins and against the reference."""
    reference = _reference(table, context)
    index = {label: row for row, label in enumerate(table.labels)}
    twins = [(index[twin.plain], index[twin.fused]) for twin in context.twins]
    pairs = twins + [(reference.row, row) for row in table.rows if reference is not None and row != reference.row]
    images = _images(context)
    if not table.column("f1") or not table.column("top1") or not pairs or images is None:
        return not_checked(
            "f1-beside-top1",
            {
                "column Top-1": table.column("top1"),
                "column F1": table.column("f1"),
                "reference or twins in the context": pairs,
                "claims.images or test_images in the context": images,
            },
        )
    alone = max(_F1_ALONE, 2 * paired_half_width(images))
    found = []
    for one, other in pairs:
        cells = [table.cell(one, "top1"), table.cell(other, "top1"), table.cell(one, "f1"), table.cell(other, "f1")]
        given = [cell for cell in cells if cell is not None]
        if len(given) < len(cells):
            continue
        top1, f1 = given[1].value - given[0].value, given[3].value - given[2].value
        if abs(f1 - top1) <= alone or abs(f1) <= abs(top1):
            continue
        verdict: Verdict = "suspicious" if (one, other) in twins else "not supported"
        means = "another attention kernel on the same weights" if (one, other) in twins else "equal accuracy by one measure alone"
        words = (
            f"{table.labels[one]} to {table.labels[other]}: F1 {given[2].text} to {given[3].text} ({100 * f1:+.2f} points) "
            f"while Top-1 moves by {100 * top1:+.2f}: {means}"
        )
        found.append(about("f1-beside-top1", given, verdict=verdict, words=words, f1_points=100 * f1, top1_points=100 * top1))
    return found


def published(table: ResultsTable, context: Context) -> list[Finding]:
    """The reference row beside published accuracies of the same model and data."""
    reference = _reference(table, context)
    if reference is None or not context.published_top1:
        return not_checked(
            "published-accuracy",
            {
                "column Top-1": table.column("top1"),
                "reference in the context": context.reference,
                "published_top1 in the context": context.published_top1,
            },
        )
    below = {source: rate - reference.value for source, rate in context.published_top1.items()}
    said = ", ".join(f"{100 * context.published_top1[source]:.1f} % {source}" for source in below)
    far = min(below.values()) > _FAR_BELOW
    words = f"{table.labels[reference.row]}: {100 * reference.value:.1f} % where {said}" + (
        f": {100 * min(below.values()):.0f} to {100 * max(below.values()):.0f} points below" if far else ""
    )
    numbers = {"least_points_below": 100 * min(below.values()), "most_points_below": 100 * max(below.values())}
    return [about("published-accuracy", (reference,), verdict="suspicious" if far else "holds", words=words, **numbers)]


def _reference(table: ResultsTable, context: Context) -> Cell | None:
    """Top-1 of the row that the others are compared with."""
    return None if context.reference is None else table.cell(table.labels.index(context.reference), "top1")
