"""Checks of cells by themselves: missing, zero, printed twice, rounded in several ways."""

from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from math import floor, fsum, log10

import numpy as np
from scipy.special import pdtrc

from lowbit_vit.analysis.audit.check import LEVEL, at_least, check
from lowbit_vit.analysis.audit.context import Case
from lowbit_vit.analysis.audit.finding import Finding, Verdict, about
from lowbit_vit.analysis.audit.table import Cell, Quantity

# Peak memory may be that of a CPU, kernels those of a name filter; no model does without the other costs.
_OF_A_GPU: tuple[Quantity, ...] = ("vram", "kernel", "attention")
_TIMES: tuple[Quantity, ...] = ("mean", "p50", "p95", "p99", "cpu", "kernel", "attention")
_RATES: tuple[Quantity, ...] = ("top1", "top5", "f1")
# Least that a cost can be, in the units of `table`: 1 ns, 1 KB, an image in a thousand seconds.
_LEAST: dict[Quantity, Fraction] = {
    **dict.fromkeys(_TIMES, Fraction(1, 10**6)),
    "size": Fraction(1000),
    "vram": Fraction(1000),
    "throughput": Fraction(1, 1000),
}
# Fewer equal digits are common.
_DIGITS = 5
# Rows on both sides of a time that tell how densely times lie there.
_NEIGHBOURS = 10
_MOST_NAMED = 10
_LAST_IS_ZERO = 0.1
# A float that is printed whole has this many digits or more.
_WHOLE_FLOAT = 9


@check("missing")
def missing(case: Case) -> Iterator[Finding]:
    """Columns with cells that hold no number: said, and no fault."""
    table = case.table
    for quantity, heading in table.headings.items():
        rows = tuple(row for row in table.rows if table.cell(row, quantity) is None)
        if rows:
            words = f"{heading}: no number in {len(rows)} of {len(table.rows)} rows"
            numbers: dict[str, float] = {"missing": len(rows), "rows": len(table.rows)}
            yield Finding(check="missing", rows=rows, columns=(heading,), verdict="not checked", words=words, numbers=numbers)


@check("zero")
def zero(case: Case) -> Iterator[Finding]:
    """Costs of nothing, where the printed digits would show the least cost there can be."""
    for quantity, least in _LEAST.items():
        groups: dict[Verdict, list[Cell]] = {"impossible": [], "suspicious": []}
        for cell in case.table.column(quantity):
            if cell.exact == 0 and cell.most < least:
                # A row that is described ran attention on the GPU.
                groups["impossible" if quantity not in _OF_A_GPU or case.row(cell.row) else "suspicious"].append(cell)
        for verdict, cells in groups.items():
            if cells:
                rows = ", ".join(map(case.label, cells[:_MOST_NAMED]))
                words = f"{cells[0].heading} is {cells[0].text} in {rows}: it costs something, so it was not measured"
                yield about(cells, verdict=verdict, words=words, cells=len(cells))


@check("repeated")
def repeated(case: Case) -> Iterator[Finding]:
    """Times of different rows that agree to the last of many digits, more of them than chance gives."""
    for quantity in _TIMES:
        column = sorted((cell for cell in case.table.column(quantity) if cell.exact), key=lambda cell: cell.exact)
        same: defaultdict[str, list[Cell]] = defaultdict(list)
        for cell in column:
            if len(cell.text.replace(".", "").lstrip("0")) >= _DIGITS:
                same[cell.text].append(cell)
        equal = [cells for cells in same.values() if len(cells) > 1]
        every = [cell for cells in equal for cell in cells]
        pairs = len(every) - len(equal)
        if not pairs or (p := len(_TIMES) * float(pdtrc(pairs - 1, _pairs_by_chance(column)))) > LEVEL:
            continue
        cells = max(equal, key=len)
        rows = ", ".join(map(case.label, cells[:_MOST_NAMED]))
        words = (
            f"{cells[0].heading} is {cells[0].text} in {rows}: one measurement under several names would explain it; "
            f"{pairs} such pairs in {len(column)} rows (p = {p:.1g})"
        )
        yield about(every, verdict="suspicious", words=words, cells=len(every), pairs=pairs, p=p)


def _pairs_by_chance(column: list[Cell]) -> float:
    """Equal neighbours to be expected: the last digit's size over the distance of neighbours, from how densely they lie."""
    values = np.array([cell.value for cell in column])
    steps = np.array([float(2 * cell.half) for cell in column])
    reach = min(_NEIGHBOURS, len(values) - 1)
    starts = np.clip(np.arange(len(values)) - reach // 2, 0, len(values) - 1 - reach)
    spread = values[starts + reach] - values[starts]
    # Neighbours that are all equal say nothing of the density; the value itself then bounds it.
    return fsum(reach / np.where(spread > 0, spread, values) * steps)


@check("digits")
def digits(case: Case) -> Iterator[Finding]:
    """A column that one program printed has equally many decimals, or equally many significant digits, some zeros dropped."""
    for quantity, heading in case.table.headings.items():
        cells = [cell for cell in case.table.column(quantity) if cell.exact]
        kinds = sorted({cell.decimals for cell in cells})
        if len(kinds) < 2 or kinds[-1] >= _WHOLE_FLOAT:
            continue
        # Rates of 100 or 1,000 images end in zeros as often as not.
        share = 1.0 if quantity in _RATES else _LAST_IS_ZERO
        by_decimals = _zeros_dropped([(cell, cell.decimals, kinds[-1]) for cell in cells], share)
        # 9.999 may have become 10.00 with one digit more.
        rounded_up = [cell for cell in cells if cell.text.replace(".", "").strip("0") == "1"]
        significant = max((_leading(cell) + cell.decimals for cell in cells if cell.decimals and cell not in rounded_up), default=0)
        # A whole number of more digits is printed as it is.
        by_digits = _zeros_dropped([(cell, _leading(cell) + cell.decimals, max(significant, _leading(cell))) for cell in cells], share)
        p = len(case.table.headings) * max(by_decimals, by_digits)
        if p <= LEVEL:
            words = (
                f"{heading} is printed with {', '.join(map(str, kinds[:_MOST_NAMED]))} decimals; neither a fixed number of decimals nor "
                f"of significant digits gives that, zeros dropped or not (p = {p:.1g}): rows of several sources would explain it"
            )
            yield about(cells, verdict="suspicious", words=words, fewest=kinds[0], most=kinds[-1], p=p)


def _zeros_dropped(cells: list[tuple[Cell, int, int]], share: float) -> float:
    """Chance of so many cells with fewer digits than they should have, if zeros at the end are left out; each with has and should."""
    short = [cell for cell, has, should in cells if has < should]
    # A program that drops zeros leaves none, but for one behind the point.
    if any(cell.decimals > 1 and cell.text.endswith("0") for cell in short):
        return 0.0
    return at_least(len(short), of=len(cells), share=share)


def _leading(cell: Cell) -> int:
    """Digits before the point; below 1, less the zeros behind it."""
    whole = cell.text.partition(".")[0].lstrip("0")
    return len(whole) if whole else 1 + floor(log10(float(cell.text)))
