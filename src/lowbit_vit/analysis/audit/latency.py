"""Checks of the latency columns: do mean, percentiles and throughput go together?"""

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor

from lowbit_vit.analysis.audit.context import Context
from lowbit_vit.analysis.audit.finding import Finding, Verdict, about, not_checked
from lowbit_vit.analysis.audit.table import Cell, Quantity, ResultsTable

# Share of the samples at or below each percentile.
PERCENTILES: dict[Quantity, Fraction] = {"p50": Fraction(50, 100), "p95": Fraction(95, 100), "p99": Fraction(99, 100)}
# A throughput measured in a pass of its own agrees with batch / latency about this well.
_APART = Fraction(5, 4)


def _images(latency: Cell, throughput: Cell) -> tuple[Fraction, Fraction]:
    """Least and greatest images a forward that these two printed cells (ms, images/s) allow."""
    return latency.low * throughput.low / 1000, latency.high * throughput.high / 1000


def implied_batch(table: ResultsTable, context: Context) -> tuple[int | None, tuple[tuple[Cell, Cell], ...]]:
    """The whole number of images that throughput x latency gives in at least half of the rows, and those rows' cells.

    Throughput may have been computed from the mean or from P50; the one that fits more rows counts. The claimed batch size
    counts before others where rounding leaves room for several.
    """
    best: tuple[int | None, tuple[tuple[Cell, Cell], ...]] = (None, ())
    for quantity in ("mean", "p50"):
        pairs = _pairs(table, quantity)
        votes: Counter[int] = Counter()
        for latency, throughput in pairs:
            low, high = _images(latency, throughput)
            votes.update(range(max(1, ceil(low)), floor(high) + 1))
        if not votes:
            continue
        claimed = context.claims.batch_size
        batch = max(votes, key=lambda n: (votes[n], n == claimed, -n))
        agree = tuple(pair for pair in pairs if _images(*pair)[0] <= batch <= _images(*pair)[1])
        if 2 * len(agree) >= len(pairs) and len(agree) > len(best[1]):
            best = (batch, agree)
    return best


def _pairs(table: ResultsTable, quantity: Quantity) -> list[tuple[Cell, Cell]]:
    """Latency and throughput of the rows that have both."""
    return [
        (latency, throughput)
        for row in table.rows
        if (latency := table.cell(row, quantity)) is not None and (throughput := table.cell(row, "throughput")) is not None
    ]


def batch_size(table: ResultsTable, context: Context) -> list[Finding]:
    """Throughput x latency is the number of images in a forward: the claimed one, and one in all rows."""
    pairs = _pairs(table, "mean") or _pairs(table, "p50")
    if not pairs:
        return not_checked(
            "batch-size", {"column latency": table.column("mean"), "column throughput": table.column("throughput"), "rows with both": pairs}
        )
    claimed = context.claims.batch_size
    batch, agree = implied_batch(table, context)
    if batch is None:
        return _measured_apart(table, pairs, claimed=claimed)
    products = [latency.value * throughput.value / 1000 for latency, throughput in agree]
    words = (
        f"throughput x latency is {min(products):.4f} to {max(products):.4f} in {len(agree)} of {len(pairs)} rows: "
        f"batch {batch} to within rounding, so throughput was computed from latency"
    )
    cells = [cell for pair in agree for cell in pair]
    verdict: Verdict = "holds"
    if claimed is None:
        verdict = "exact"
    elif claimed != batch:
        verdict, words = "contradicts itself", f"{words}, and the batch size is {batch}, not {claimed}"
    numbers = {"batch": batch, "rows": len(agree), "least_images": min(products), "most_images": max(products)}
    return [about("batch-size", cells, verdict=verdict, words=words, **numbers)]


def _measured_apart(table: ResultsTable, pairs: list[tuple[Cell, Cell]], *, claimed: int | None) -> list[Finding]:
    """Throughput that is no quotient of latency: it was measured in a pass of its own, and agrees only roughly."""
    if claimed is None:
        return not_checked("batch-size", {"claims.batch_size in the context, as throughput was not computed from latency": claimed})
    found = []
    for latency, throughput in pairs:
        images = latency.value * throughput.value / 1000
        near = claimed / _APART <= images <= claimed * _APART
        words = f"{table.labels[latency.row]}: throughput x latency is {images:.4g} images, the batch size {claimed}"
        verdict: Verdict = "holds" if near else "contradicts itself"
        found.append(about("batch-size", (latency, throughput), verdict=verdict, words=words, images=images, claimed=claimed))
    return found


def slipped_digit(table: ResultsTable, context: Context) -> list[Finding]:
    """A row whose throughput x latency is not what the other rows give: which single digit would mend it?"""
    batch, agree = implied_batch(table, context)
    if batch is None or len(agree) < 2:
        return not_checked("slipped-digit", {"throughput computed from latency, in two rows or more": False})
    quantity: Quantity = "mean" if agree[0][0].heading == table.headings.get("mean") else "p50"
    found = []
    for latency, throughput in _pairs(table, quantity):
        if (latency, throughput) in agree:
            continue
        mended = [f"{latency.text} -> {cell.text}" for cell in _one_digit_off(latency) if _fits(cell, throughput, batch)]
        mended += [f"{throughput.text} -> {cell.text}" for cell in _one_digit_off(throughput) if _fits(latency, cell, batch)]
        images = latency.value * throughput.value / 1000
        words = f"{table.labels[latency.row]}: {latency.text} x {throughput.text} / 1000 is {images:.4f}, not {batch}; " + (
            f"one digit mends it: {' or '.join(mended)}" if mended else "no single digit mends it"
        )
        numbers = {"images": images, "latency_for_throughput": 1000 * batch / throughput.value if throughput.exact else 0.0}
        numbers |= {"throughput_for_latency": 1000 * batch / latency.value if latency.exact else 0.0, "mended_by": len(mended)}
        found.append(about("slipped-digit", (latency, throughput), verdict="contradicts itself", words=words, **numbers))
    return found


def _one_digit_off(cell: Cell) -> list[Cell]:
    """The cell with each of its digits replaced by each other digit."""
    return [
        replace(cell, text=f"{cell.text[:at]}{digit}{cell.text[at + 1 :]}")
        for at, old in enumerate(cell.text)
        if old != "."
        for digit in "0123456789"
        if digit != old
    ]


def _fits(latency: Cell, throughput: Cell, batch: int) -> bool:
    low, high = _images(latency, throughput)
    return low <= batch <= high


def percentile_order(table: ResultsTable, context: Context) -> list[Finding]:
    """P50 <= P95 <= P99, whatever was measured."""
    columns = [quantity for quantity in PERCENTILES if quantity in table.headings]
    if len(columns) < 2:
        return not_checked("percentile-order", {"two columns of latency percentiles": len(columns) > 1})
    found = []
    for row in table.rows:
        cells = [cell for quantity in columns if (cell := table.cell(row, quantity)) is not None]
        for lower, upper in pairwise(cells):
            if lower.low > upper.high:
                words = f"{table.labels[row]}: {lower.heading} {lower.text} is above {upper.heading} {upper.text}; percentiles never fall"
                number = {"lower_ms": lower.value, "upper_ms": upper.value}
                found.append(about("percentile-order", (lower, upper), verdict="impossible", words=words, **number))
    return found


def mean_within_percentiles(table: ResultsTable, context: Context) -> list[Finding]:
    """Latency is positive, so percentiles bound its mean from below: mean >= sum of (share above the one before) x percentile."""
    columns = [quantity for quantity in PERCENTILES if quantity in table.headings]
    if "mean" not in table.headings or not columns:
        return not_checked("mean-and-percentiles", {"column latency": "mean" in table.headings, "a column of latency percentiles": columns})
    found = []
    for row in table.rows:
        mean = table.cell(row, "mean")
        cells = {quantity: cell for quantity in columns if (cell := table.cell(row, quantity)) is not None}
        if mean is None or not cells:
            continue
        # From a percentile up to the next, samples are at least as slow as the percentile.
        shares = [PERCENTILES[quantity] for quantity in cells]
        steps = [after - share for share, after in pairwise([*shares, Fraction(1)])]
        least = sum((step * cell.low for step, cell in zip(steps, cells.values(), strict=True)), Fraction(0))
        numbers = {"mean_ms": mean.value, "least_mean_ms": float(least)}
        if mean.high < least:
            words = f"{table.labels[row]}: the mean {mean.text} is below {float(least):.2f}, the least that these percentiles allow"
            found.append(about("mean-and-percentiles", (mean, *cells.values()), verdict="impossible", words=words, **numbers))
        elif "p99" in cells and mean.low > cells["p99"].high:
            words = f"{table.labels[row]}: the mean {mean.text} is above P99 {cells['p99'].text}: the slowest 1 % would carry the mean"
            found.append(about("mean-and-percentiles", (mean, cells["p99"]), verdict="suspicious", words=words, **numbers))
    return found
