"""Checks of cells by themselves: missing, zero, printed twice, rounded in several ways."""

from collections import defaultdict
from fractions import Fraction
from math import exp, expm1, floor, fsum, log10

import numpy as np

from lowbit_vit.analysis.audit.context import Context
from lowbit_vit.analysis.audit.finding import LEVEL, Finding, Verdict, about, at_least
from lowbit_vit.analysis.audit.table import Cell, Quantity, ResultsTable

# What no model does without; peak memory may be that of a CPU, kernels those of a name filter.
_NEVER_ZERO: tuple[Quantity, ...] = ("size", "mean", "p50", "p95", "p99", "throughput", "cpu")
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
_LAST_IS_ZERO = 0.1
# A float that is printed whole has this many digits or more.
_WHOLE_FLOAT = 9


def missing(table: ResultsTable, context: Context) -> list[Finding]:
    """Columns with cells that hold no number: said, and no fault."""
    found = []
    for quantity, heading in table.headings.items():
        rows = [row for row in table.rows if table.cell(row, quantity) is None]
        if rows:
            words = f"{heading}: no number in {len(rows)} of {len(table.rows)} rows"
            numbers = {"missing": float(len(rows)), "rows": float(len(table.rows))}
            found.append(
                Finding(check="missing", rows=tuple(rows), columns=(heading,), verdict="not checked", words=words, numbers=numbers)
            )
    return found


def zero(table: ResultsTable, context: Context) -> list[Finding]:
    """Costs of nothing, where the printed digits would show the least cost there can be."""
    found = []
    for quantity, least in _LEAST.items():
        cells = [cell for cell in table.column(quantity) if cell.exact == 0 and cell.most < least]
        # A row that is described ran attention on the GPU.
        hard = [cell for cell in cells if quantity in _NEVER_ZERO or (quantity in _OF_A_GPU and context.row(table, cell.row))]
        groups: list[tuple[Verdict, list[Cell]]] = [("impossible", hard), ("suspicious", [cell for cell in cells if cell not in hard])]
        for verdict, group in groups:
            if group:
                rows = ", ".join(table.labels[cell.row] for cell in group[:_NEIGHBOURS])
                words = f"{group[0].heading} is {group[0].text} in {rows}: it costs something, so it was not measured"
                found.append(about("zero", group, verdict=verdict, words=words, cells=len(group)))
    return found


def repeated(table: ResultsTable, context: Context) -> list[Finding]:
    """Times of different rows that agree to the last of many digits, more of them than chance gives."""
    found = []
    for quantity in _TIMES:
        column = sorted((cell for cell in table.column(quantity) if cell.exact), key=lambda cell: cell.exact)
        same: defaultdict[str, list[Cell]] = defaultdict(list)
        for cell in column:
            if len(cell.text.replace(".", "").lstrip("0")) >= _DIGITS:
                same[cell.text].append(cell)
        equal = {text: cells for text, cells in same.items() if len(cells) > 1}
        pairs = sum(len(cells) - 1 for cells in equal.values())
        if not pairs or (p := len(_TIMES) * _at_least(pairs, _pairs_by_chance(column))) > LEVEL:
            continue
        text, cells = max(equal.items(), key=lambda item: len(item[1]))
        rows = ", ".join(table.labels[cell.row] for cell in cells[:_NEIGHBOURS])
        words = f"{cells[0].heading} is {text} in {rows}: one measurement under several names would explain it"
        words += f"; {pairs} such pairs in {len(column)} rows (p = {p:.1g})"
        all_cells = [cell for group in equal.values() for cell in group]
        found.append(about("repeated", all_cells, verdict="suspicious", words=words, cells=len(all_cells), pairs=pairs, p=p))
    return found


def _pairs_by_chance(column: list[Cell]) -> float:
    """Equal neighbours to be expected: the last digit's size over the distance of neighbours, from how densely they lie."""
    values = np.array([cell.value for cell in column])
    steps = np.array([float(2 * cell.half) for cell in column])
    reach = min(_NEIGHBOURS, len(values) - 1)
    starts = np.clip(np.arange(len(values)) - reach // 2, 0, len(values) - 1 - reach)
    spread = values[starts + reach] - values[starts]
    # Neighbours that are all equal say nothing of the density; the value itself then bounds it.
    density = reach / np.where(spread > 0, spread, values)
    return fsum(density * steps)


def _at_least(count: int, mean: float) -> float:
    """Chance of `count` or more from a Poisson distribution."""
    term = below = exp(-mean)
    for number in range(1, count):
        term *= mean / number
        below += term
    # 1 - exp(-mean) loses its digits where the mean is small.
    return -expm1(-mean) if count == 1 else max(0.0, 1 - below)


def digits(table: ResultsTable, context: Context) -> list[Finding]:
    """A column that one program printed has equally many decimals, or equally many significant digits, some zeros dropped."""
    found = []
    for quantity, heading in table.headings.items():
        cells = [cell for cell in table.column(quantity) if cell.exact]
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
        p = len(table.headings) * max(by_decimals, by_digits)
        if p <= LEVEL:
            shown = ", ".join(map(str, kinds[:_NEIGHBOURS]))
            words = (
                f"{heading} is printed with {shown} decimals; neither a fixed number of decimals nor of significant digits gives that, "
                f"zeros dropped or not (p = {p:.1g}): rows of several sources would explain it"
            )
            found.append(about("digits", cells, verdict="suspicious", words=words, fewest=kinds[0], most=kinds[-1], p=p))
    return found


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
