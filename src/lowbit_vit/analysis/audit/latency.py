"""Checks of the latency columns: do mean, percentiles and throughput go together?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from statistics import median

from lowbit_vit.analysis.audit.context import Context
from lowbit_vit.analysis.audit.finding import Finding, Verdict, about, not_checked
from lowbit_vit.analysis.audit.table import Cell, Quantity, ResultsTable, above

# Share of the samples at or below each percentile.
PERCENTILES: dict[Quantity, Fraction] = {"p50": Fraction(50, 100), "p95": Fraction(95, 100), "p99": Fraction(99, 100)}
# Throughput may have been computed from either.
_LATENCIES: tuple[Quantity, ...] = ("mean", "p50")
# Mean latency and throughput that were measured in two passes agree within a per cent (timm's 1,627 rows: within .41 %), and beyond
# the second bound two passes over one batch size are rarely apart. Throughput from the mean may be far from P50.
_APART: dict[Quantity, tuple[Fraction, Fraction]] = {"mean": (Fraction(1, 100), Fraction(5, 100)), "p50": (Fraction(1), Fraction(1))}
# The mean is at least half of P50, whichever of the two throughput came from. How far above P50 it is, has no bound.
_MEAN_AND_P50 = 2
# A product that is known this well tells a quotient from a second measurement.
_SHARP = Fraction(4, 1000)
# Throughput counts as computed from latency where this share of at least so many such products is a batch size to the last digit.
_USUAL = Fraction(4, 5)
_FEWEST = 3
_MOST_NAMED = 3
# A mean above P99 is carried by the slowest 1 %: a few calls that wait take this many times as long.
_WAITING = 10


@dataclass(frozen=True)
class Product:
    """Latency x throughput of one row: the images of a forward, within what rounding allows."""

    quantity: Quantity
    latency: Cell
    throughput: Cell
    stated: int | None

    @property
    def near(self) -> Fraction:
        """Two passes over one batch size may be this far apart."""
        return _APART[self.quantity][0]

    @property
    def far(self) -> Fraction:
        """Two passes over one batch size are rarely as far apart as this."""
        return _APART[self.quantity][1]

    @property
    def row(self) -> int:
        """Row of the table."""
        return self.latency.row

    @property
    def bound(self) -> str:
        """The same in words."""
        return "a factor of two" if self.far == 1 else f"{float(self.far):.0%}"

    @property
    def images(self) -> Fraction:
        """The product of the two printed numbers, ms x images/s / 1000."""
        return self.latency.exact * self.throughput.exact / 1000

    @property
    def low(self) -> Fraction:
        """The least that rounding allows."""
        return self.latency.low * self.throughput.low / 1000

    @property
    def high(self) -> Fraction:
        """The most that rounding or truncation allows."""
        return self.latency.most * self.throughput.most / 1000

    def apart(self, batch: int) -> Fraction:
        """How far it is from a batch size, as a share of it; 0 within rounding."""
        return max(Fraction(0), self.low / batch - 1, 1 - self.high / batch)

    def sharp(self, batch: int) -> bool:
        """Whether its digits tell a quotient of that batch size from a second measurement."""
        return self.high - self.low <= _SHARP * batch

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """The two that it is made of."""
        return self.latency, self.throughput


def products(table: ResultsTable, context: Context, quantity: Quantity) -> list[Product]:
    """One for each row that has both cells, none of them zero."""
    return [
        Product(quantity, latency, throughput, context.batch_size(table, row))
        for row in table.rows
        if (latency := table.cell(row, quantity)) and latency.exact and (throughput := table.cell(row, "throughput")) and throughput.exact
    ]


def implied_batch(table: ResultsTable, context: Context) -> tuple[int | None, tuple[Product, ...]]:
    """The whole number of images that the products give in at least half of the rows, and those rows' products.

    A stated batch size counts before others where rounding leaves room for several.
    """
    best: tuple[int | None, tuple[Product, ...]] = (None, ())
    for quantity in _LATENCIES:
        given = products(table, context, quantity)
        votes: Counter[int] = Counter()
        for product in given:
            if product.high - product.low < 1:
                votes.update(range(max(1, ceil(product.low)), floor(product.high) + 1))
        if not votes:
            continue
        stated = {product.stated for product in given}
        batch = max(votes, key=lambda number: (votes[number], number in stated, -number))
        agree = tuple(product for product in given if not product.apart(batch))
        if 2 * len(agree) >= len(given) and len(agree) > len(best[1]):
            best = (batch, agree)
    return best


@dataclass(frozen=True)
class _Batches:
    """The batch size that each row's product is compared with.

    Attributes:
        rows: each product with its batch size.
        stated: whether the batch sizes are the stated ones; else the one that most rows give.
        computed: whether throughput was computed from this latency.
    """

    rows: tuple[tuple[Product, int], ...]
    stated: bool
    computed: bool


def _batches(table: ResultsTable, context: Context) -> _Batches | None:
    """The stated batch sizes, where most rows agree with theirs; else the one that most rows give; else None."""
    best: _Batches | None = None
    exact = -1
    common, _ = implied_batch(table, context)
    for quantity in _LATENCIES:
        given = products(table, context, quantity)
        if not given:
            continue
        stated = [(product, product.stated) for product in given if product.stated is not None]
        agree = [product for product, batch in stated if product.apart(batch) <= product.far]
        if stated and 2 * len(agree) >= len(stated):
            rows, of_text = stated, True
        else:
            usual = common or _usual_batch(given)
            if usual is None:
                continue
            rows, of_text = [(product, usual) for product in given], False
            # Seen in the mean, it need not be in P50.
            if 2 * sum(product.apart(usual) <= product.far for product in given) < len(given):
                continue
        sharp = [(product, batch) for product, batch in rows if product.sharp(batch)]
        hits = sum(not product.apart(batch) for product, batch in sharp)
        computed = hits >= _FEWEST and hits >= _USUAL * len(sharp)
        if hits > exact:
            best, exact = _Batches(tuple(rows), of_text, computed), hits
    return best


def _usual_batch(given: Sequence[Product]) -> int | None:
    """The whole number of images that most rows' products come near, where throughput was measured in a pass of its own."""
    if len(given) < _FEWEST:
        return None
    batch = max(1, round(median(product.images for product in given)))
    near = sum(product.apart(batch) <= product.far for product in given if product.far < 1)
    return batch if near >= _USUAL * len(given) else None


def batch_size(table: ResultsTable, context: Context) -> list[Finding]:
    """Is throughput x latency the number of images in a forward that is stated?"""
    every = products(table, context, "mean") or products(table, context, "p50")
    if not every:
        return not_checked("batch-size", {"column latency": table.column("mean"), "column throughput": table.column("throughput")})
    batches = _batches(table, context)
    stated = sorted({product.stated for product in every if product.stated is not None})
    if stated and (batches is None or not batches.stated):
        return [_another_batch(every, stated, implied_batch(table, context))]
    if batches is None:
        return not_checked("batch-size", {"the batch size, as throughput was not computed from latency": None})
    agree = [(product, batch) for product, batch in batches.rows if product.apart(batch) <= product.far]
    sizes = sorted({batch for _, batch in agree})
    called = f"batch {sizes[0]}" if len(sizes) == 1 else f"{len(sizes)} batch sizes"
    how = "to within rounding, so it was computed from latency" if batches.computed else f"within {agree[0][0].bound}"
    words = f"throughput x latency is {called} in {len(agree)} of {len(batches.rows)} rows, {how}"
    images = [float(product.images) for product, _ in agree]
    numbers = {"rows": len(agree), "least_images": min(images), "most_images": max(images), "batch": sizes[0]}
    cells = [cell for product, _ in agree for cell in product.cells]
    return [about("batch-size", cells, verdict="holds" if batches.stated else "exact", words=words, **numbers)]


def _another_batch(every: Sequence[Product], stated: Sequence[int], implied: tuple[int | None, tuple[Product, ...]]) -> Finding:
    """Most products are not the stated batch size. Throughput may be of another batch, or latency of one image of the batch."""
    batch, agree = implied
    said = " and ".join(map(str, stated[:_MOST_NAMED]))
    if batch is None:
        ratios = sorted(float(product.images / product.stated) for product in every if product.stated is not None)
        words = f"throughput x latency is {ratios[0]:.3g} to {ratios[-1]:.3g} times the stated batch size"
        words += ": measured with other batches or streams"
        cells = [cell for product in every for cell in product.cells]
        return about("batch-size", cells, verdict="suspicious", words=words, least_ratio=ratios[0], most_ratio=ratios[-1])
    images = [float(product.images) for product in agree]
    words = (
        f"throughput x latency is {min(images):.4f} to {max(images):.4f} in {len(agree)} of {len(every)} rows: {batch} to within rounding, "
        f"where {said} is stated: both columns are of batch {batch}"
    )
    words += ", or of one image of a batch" if batch == 1 else ", or throughput is of several devices"
    numbers = {"batch": batch, "rows": len(agree), "least_images": min(images), "most_images": max(images)}
    return about("batch-size", [cell for product in agree for cell in product.cells], verdict="suspicious", words=words, **numbers)


def slipped_digit(table: ResultsTable, context: Context) -> list[Finding]:
    """Rows whose throughput x latency is not their batch size, where the other rows' is."""
    batches = _batches(table, context)
    if batches is None:
        return not_checked("slipped-digit", {"the batch size, stated or to be seen in most rows": False})
    # Throughput of many rows that is some per cent away was computed from something else than this latency.
    near = sum(product.apart(batch) <= product.near for product, batch in batches.rows) >= _USUAL * len(batches.rows)
    far = [
        (product, batch)
        for product, batch in batches.rows
        if product.apart(batch) > (0 if batches.computed else product.near if near and batches.stated else product.far)
    ]
    # Rows of other batch sizes are common; a single one among many is worth a look.
    many = len(far) > max(1, len(batches.rows) // 10)
    return [
        _slipped(table, product, batch, batches=batches, verdict=_verdict(product, batch, batches))
        for product, batch in far
        if batches.stated or not many or not _is_whole(product)
    ]


def _verdict(product: Product, batch: int, batches: _Batches) -> Verdict:
    """Hard where no second measurement and no other batch size explains it."""
    if batches.computed:
        return "suspicious" if product.apart(batch) <= product.near or (not batches.stated and _is_whole(product)) else "contradicts itself"
    # Images/s from P50 beside a mean with a heavy tail are too many, and those from such a mean beside P50 too few.
    too_few, too_many = product.high * _MEAN_AND_P50 < batch, product.low > batch * _MEAN_AND_P50
    return "contradicts itself" if batches.stated and (too_few if product.quantity == "mean" else too_many) else "suspicious"


def _is_whole(product: Product) -> bool:
    return ceil(product.low) <= floor(product.high)


def _slipped(table: ResultsTable, product: Product, batch: int, *, batches: _Batches, verdict: Verdict) -> Finding:
    latency, throughput = product.cells
    slips = [(latency, cell, replace(product, latency=cell)) for cell in _one_digit_off(latency)]
    slips += [(throughput, cell, replace(product, throughput=cell)) for cell in _one_digit_off(throughput)]
    mended = [f"{cell.text} -> {other.text}" for cell, other, changed in slips if not changed.apart(batch)]
    others = sum(other.apart(size) <= (0 if batches.computed else other.far) for other, size in batches.rows if other is not product)
    words = (
        f"{table.labels[product.row]}: {latency.text} x {throughput.text} / 1000 is {float(product.images):.4f}, not {batch} as "
        f"{'stated' if batches.stated else 'in other rows'}; {others} rows agree "
        f"{'to the last digit' if batches.computed else f'within {product.bound}'}"
    )
    words += f": one digit mends it, {' or '.join(mended[:_MOST_NAMED])}" if mended else ": the two cannot both be right"
    numbers = {
        "images": float(product.images),
        "batch": batch,
        "latency_for_throughput": float(1000 * batch / throughput.exact),
        "throughput_for_latency": float(1000 * batch / latency.exact),
        "mended_by": len(mended),
    }
    return about("slipped-digit", product.cells, verdict=verdict, words=words, **numbers)


def _one_digit_off(cell: Cell) -> list[Cell]:
    """The cell with each of its digits replaced by each other digit."""
    texts = [
        f"{cell.text[:at]}{digit}{cell.text[at + 1 :]}"
        for at, old in enumerate(cell.text)
        if old != "."
        for digit in "0123456789"
        if digit != old
    ]
    return [replace(cell, text=text) for text in texts if float(text)]


def percentile_order(table: ResultsTable, context: Context) -> list[Finding]:
    """P50 <= P95 <= P99, whatever was measured."""
    columns = [quantity for quantity in PERCENTILES if quantity in table.headings]
    if len(columns) < 2:
        return not_checked("percentile-order", {"two columns of latency percentiles": len(columns) > 1})
    found = []
    for row in table.rows:
        cells = [cell for quantity in columns if (cell := table.cell(row, quantity)) is not None]
        for lower, upper in pairwise(cells):
            if above(lower, upper):
                words = (
                    f"{table.labels[row]}: {lower.heading} {lower.text} is above {upper.heading} {upper.text}, rounded or truncated; "
                    f"of one set of samples the two cannot both be right"
                )
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
        if mean.most < least:
            words = (
                f"{table.labels[row]}: the mean {mean.text} is below {float(least):.2f}, the least that these percentiles allow: "
                f"of one set of samples they cannot all be right"
            )
            found.append(about("mean-and-percentiles", (mean, *cells.values()), verdict="impossible", words=words, **numbers))
        elif "p99" in cells and cells["p99"].exact and mean.low > (1 + (_WAITING - 1) * (1 - PERCENTILES["p99"])) * cells["p99"].most:
            slowest = (mean.exact - PERCENTILES["p99"] * cells["p99"].exact) / (1 - PERCENTILES["p99"]) / cells["p99"].exact
            words = f"{table.labels[row]}: the mean {mean.text} is above P99 {cells['p99'].text}"
            words += f": the slowest 1 % took {float(slowest):.0f} times P99"
            found.append(about("mean-and-percentiles", (mean, cells["p99"]), verdict="suspicious", words=words, **numbers))
    return found
