"""Checks of the latency columns: do mean, percentiles and throughput go together?"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import ceil, floor
from statistics import median

from lowbit_vit.analysis.audit.check import Finding, Need, Verdict, about, check
from lowbit_vit.analysis.audit.context import Case, given
from lowbit_vit.analysis.audit.headings import Quantity
from lowbit_vit.analysis.audit.table import Cell, above

# Share of the samples at or below each percentile.
PERCENTILES: dict[Quantity, Fraction] = {"p50": Fraction(50, 100), "p95": Fraction(95, 100), "p99": Fraction(99, 100)}
# Mean latency and throughput that were measured in two passes agree within a per cent (timm's 1,627 rows: within .41 %), and beyond
# the second bound two passes over one batch size are rarely apart. Throughput from the mean may be far from P50. Throughput may have
# been computed from either.
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
class _Product:
    """Latency x throughput of one row: the images of a forward, ms x images/s / 1000.

    Attributes:
        cells: latency and throughput, neither of them zero.
        stated: the row's batch size, if it is stated.
        near: two passes over one batch size may be this far apart, as a share of it.
        far: two passes are rarely as far apart as this; 1 if latency is P50.
    """

    cells: tuple[Cell, ...]
    stated: int | None
    near: Fraction
    far: Fraction

    @property
    def images(self) -> Fraction:
        """Of the two printed numbers."""
        return self.cells[0].exact * self.cells[1].exact / 1000

    @property
    def low(self) -> Fraction:
        """The least that rounding allows."""
        return self.cells[0].low * self.cells[1].low / 1000

    @property
    def high(self) -> Fraction:
        """The most that rounding or truncation allows."""
        return self.cells[0].most * self.cells[1].most / 1000

    @property
    def bound(self) -> str:
        """`far` in words."""
        return "a factor of two" if self.far == 1 else f"{float(self.far):.0%}"

    @property
    def whole(self) -> range:
        """Numbers of images that rounding allows."""
        return range(ceil(self.low), floor(self.high) + 1)

    def apart(self, batch: int) -> Fraction:
        """How far it is from a batch size, as a share of it; 0 within rounding."""
        return max(Fraction(0), self.low / batch - 1, 1 - self.high / batch)


def _products(case: Case, quantity: Quantity) -> list[_Product]:
    together = case.table.together(quantity, "throughput")
    return [_Product(cells, case.batch_size(cells[0].row), *_APART[quantity]) for cells in together if all(cell.exact for cell in cells)]


@lru_cache(maxsize=1)
def implied_batch(case: Case) -> tuple[int | None, tuple[_Product, ...]]:
    """The whole number of images that the products give in at least half of the rows, and those rows' products.

    A stated batch size counts before others where rounding leaves room for several.
    """
    best: tuple[int | None, tuple[_Product, ...]] = (None, ())
    for quantity in _APART:
        products = _products(case, quantity)
        votes = Counter(number for product in products if product.high - product.low < 1 for number in product.whole if number > 0)
        if not votes:
            continue
        stated = {product.stated for product in products}
        batch = max(votes, key=lambda number: (votes[number], number in stated, -number))
        agree = tuple(product for product in products if not product.apart(batch))
        if 2 * len(agree) >= len(products) and len(agree) > len(best[1]):
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

    rows: tuple[tuple[_Product, int], ...]
    stated: bool
    computed: bool

    @property
    def agree(self) -> list[tuple[_Product, int]]:
        """Rows within the bound of two passes."""
        return [(product, batch) for product, batch in self.rows if product.apart(batch) <= product.far]


@lru_cache(maxsize=1)
def _batches(case: Case) -> _Batches | None:
    """The stated batch sizes, where most rows agree with theirs; else the one that most rows give; else None."""
    best: _Batches | None = None
    exact = -1
    for quantity in _APART:
        products = _products(case, quantity)
        usual = implied_batch(case)[0] or _usual_batch(products)
        stated = tuple((product, product.stated) for product in products if product.stated is not None)
        common = tuple((product, usual) for product in products if usual is not None)
        for rows in (stated, common):
            sharp = [product.apart(batch) for product, batch in rows if product.high - product.low <= _SHARP * batch]
            hits = sharp.count(Fraction(0))
            batches = _Batches(rows, stated=rows is stated, computed=hits >= _FEWEST and hits >= _USUAL * len(sharp))
            # A batch size that is seen in the mean need not be in P50.
            if rows and 2 * len(batches.agree) >= len(rows):
                if hits > exact:
                    best, exact = batches, hits
                break
    return best


def _usual_batch(products: Sequence[_Product]) -> int | None:
    """The whole number of images that most rows' products come near, where throughput was measured in a pass of its own."""
    if len(products) < _FEWEST:
        return None
    batch = max(1, round(median(product.images for product in products)))
    near = sum(product.apart(batch) <= product.far for product in products if product.far < 1)
    return batch if near >= _USUAL * len(products) else None


@check("batch-size", Need("column latency", lambda case: case.table.column("mean") or _products(case, "p50")), "throughput")
def batch_size(case: Case) -> Iterator[Finding]:
    """Is throughput x latency the number of images in a forward that is stated?"""
    products = _products(case, "mean") or _products(case, "p50")
    batches = _batches(case)
    stated = sorted({product.stated for product in products if product.stated is not None})
    if stated and (batches is None or not batches.stated):
        yield _another_batch(case, products, stated)
        return
    batches = given(batches, "the batch size, as throughput was not computed from latency")
    agree = [product for product, _ in batches.agree]
    sizes = sorted({batch for _, batch in batches.agree})
    called = f"batch {sizes[0]}" if len(sizes) == 1 else f"{len(sizes)} batch sizes"
    how = "to within rounding, so it was computed from latency" if batches.computed else f"within {agree[0].bound}"
    words = f"throughput x latency is {called} in {len(agree)} of {len(batches.rows)} rows, {how}"
    yield _about_products(agree, verdict="holds" if batches.stated else "exact", words=words, batch=sizes[0])


def _about_products(products: Sequence[_Product], *, verdict: Verdict, words: str, batch: int) -> Finding:
    images = [float(product.images) for product in products]
    numbers = {"rows": len(products), "least_images": min(images), "most_images": max(images), "batch": batch}
    return about([cell for product in products for cell in product.cells], verdict=verdict, words=words, **numbers)


def _another_batch(case: Case, products: Sequence[_Product], stated: Sequence[int]) -> Finding:
    """Most products are not the stated batch size. Throughput may be of another batch, or latency of one image of the batch."""
    batch, agree = implied_batch(case)
    if batch is None:
        ratios = sorted(float(product.images / product.stated) for product in products if product.stated is not None)
        words = f"throughput x latency is {ratios[0]:.3g} to {ratios[-1]:.3g} times the stated batch size"
        words += ": measured with other batches or streams"
        cells = [cell for product in products for cell in product.cells]
        return about(cells, verdict="suspicious", words=words, least_ratio=ratios[0], most_ratio=ratios[-1])
    images = [float(product.images) for product in agree]
    words = (
        f"throughput x latency is {min(images):.4f} to {max(images):.4f} in {len(agree)} of {len(products)} rows: {batch} to within "
        f"rounding, where {' and '.join(map(str, stated[:_MOST_NAMED]))} is stated: both columns are of batch {batch}"
    )
    words += ", or of one image of a batch" if batch == 1 else ", or throughput is of several devices"
    return _about_products(agree, verdict="suspicious", words=words, batch=batch)


@check("slipped-digit", Need("the batch size, stated or to be seen in most rows", _batches))
def slipped_digit(case: Case) -> Iterator[Finding]:
    """Rows whose throughput x latency is not their batch size, where the other rows' is."""
    batches = given(_batches(case))
    # Throughput of many rows that is some per cent away was computed from something else than this latency.
    near = sum(product.apart(batch) <= product.near for product, batch in batches.rows) >= _USUAL * len(batches.rows)
    far = [
        (product, batch)
        for product, batch in batches.rows
        if product.apart(batch) > (0 if batches.computed else product.near if near and batches.stated else product.far)
    ]
    # Rows of other batch sizes are common; a single one among many is worth a look.
    many = len(far) > max(1, len(batches.rows) // 10)
    for product, batch in far:
        if batches.stated or not many or not product.whole:
            yield _slipped(case, product, batch, batches=batches)


def _verdict(product: _Product, batch: int, batches: _Batches) -> Verdict:
    """Hard where no second measurement and no other batch size explains it."""
    if batches.computed:
        return "suspicious" if product.apart(batch) <= product.near or (not batches.stated and product.whole) else "contradicts itself"
    # Images/s from P50 beside a mean with a heavy tail are too many, and those from such a mean beside P50 too few.
    too_few, too_many = product.high * _MEAN_AND_P50 < batch, product.low > batch * _MEAN_AND_P50
    return "contradicts itself" if batches.stated and (too_few if product.far < 1 else too_many) else "suspicious"


def _slipped(case: Case, product: _Product, batch: int, *, batches: _Batches) -> Finding:
    latency, throughput = product.cells
    slips = [(latency, other, (other, throughput)) for other in _one_digit_off(latency)]
    slips += [(throughput, other, (latency, other)) for other in _one_digit_off(throughput)]
    mended = [f"{cell.text} -> {other.text}" for cell, other, cells in slips if not replace(product, cells=cells).apart(batch)]
    others = sum(other.apart(size) <= (0 if batches.computed else other.far) for other, size in batches.rows if other is not product)
    words = (
        f"{case.label(latency)}: {latency.text} x {throughput.text} / 1000 is {float(product.images):.4f}, not {batch} as "
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
    return about(product.cells, verdict=_verdict(product, batch, batches), words=words, **numbers)


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


def _percentiles(case: Case) -> list[Quantity]:
    return [quantity for quantity in PERCENTILES if case.table.column(quantity)]


@check("percentile-order", Need("two columns of latency percentiles", lambda case: len(_percentiles(case)) > 1))
def percentile_order(case: Case) -> Iterator[Finding]:
    """P50 <= P95 <= P99, whatever was measured."""
    for row in case.table.rows:
        cells = [cell for quantity in PERCENTILES if (cell := case.table.cell(row, quantity)) is not None]
        for lower, upper in pairwise(cells):
            if above(lower, upper):
                words = (
                    f"{case.label(lower)}: {lower.heading} {lower.text} is above {upper.heading} {upper.text}, rounded or truncated; "
                    f"of one set of samples the two cannot both be right"
                )
                yield about((lower, upper), verdict="impossible", words=words, lower_ms=lower.value, upper_ms=upper.value)


@check("mean-and-percentiles", "mean", Need("a column of latency percentiles", _percentiles))
def mean_within_percentiles(case: Case) -> Iterator[Finding]:
    """Latency is positive, so percentiles bound its mean from below: mean >= sum of (share above the one before) x percentile."""
    for mean in case.table.column("mean"):
        cells = {quantity: cell for quantity in PERCENTILES if (cell := case.table.cell(mean.row, quantity)) is not None}
        if not cells:
            continue
        # From a percentile up to the next, samples are at least as slow as the percentile.
        shares = [PERCENTILES[quantity] for quantity in cells]
        steps = [after - share for share, after in pairwise([*shares, Fraction(1)])]
        least = sum((step * cell.low for step, cell in zip(steps, cells.values(), strict=True)), Fraction(0))
        numbers = {"mean_ms": mean.value, "least_mean_ms": float(least)}
        p99, slowest = cells.get("p99"), 1 - PERCENTILES["p99"]
        if mean.most < least:
            words = (
                f"{case.label(mean)}: the mean {mean.text} is below {float(least):.2f}, the least that these percentiles allow: "
                f"of one set of samples they cannot all be right"
            )
            yield about((mean, *cells.values()), verdict="impossible", words=words, **numbers)
        elif p99 is not None and p99.exact and mean.low > (1 + (_WAITING - 1) * slowest) * p99.most:
            times = (mean.exact - PERCENTILES["p99"] * p99.exact) / slowest / p99.exact
            words = f"{case.label(mean)}: the mean {mean.text} is above P99 {p99.text}: the slowest 1 % took {float(times):.0f} times P99"
            yield about((mean, p99), verdict="suspicious", words=words, **numbers)
