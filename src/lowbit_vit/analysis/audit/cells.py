"""Checks of cells by themselves: missing, zero, printed twice, rounded in several ways."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from fractions import Fraction
from math import floor, fsum, log10
from typing import get_args

import numpy as np
from scipy.special import pdtrc

from lowbit_vit.analysis.audit.check import LEVEL, at_least, check
from lowbit_vit.analysis.audit.context import Case
from lowbit_vit.analysis.audit.finding import Finding, Verdict, about
from lowbit_vit.analysis.audit.headings import BINARY, BYTES, MEASURED, Quantity, Rate, Setting, Time, read_heading
from lowbit_vit.analysis.audit.table import Cell, ResultsTable

# Peak memory may be that of a CPU, kernels those of a name filter; no model does without the other costs.
_OF_A_GPU: tuple[Quantity, ...] = ("vram", "kernel", "attention")
_TIMES: tuple[Quantity, ...] = get_args(Time)
_RATES: tuple[Quantity, ...] = get_args(Rate)
# What a row was measured with: differs between rows without a fault.
_SETTINGS: tuple[Quantity, ...] = get_args(Setting)
# Digits that two measurements rarely share, and rows that a constant column has at least.
_TELLING, _ROWS = 3, 4
# Least that a cost can be, in the units of `table`: 1 ns, 1 KB, an image in a thousand seconds.
_LEAST: dict[Quantity, Fraction] = dict.fromkeys(_TIMES, Fraction(1, 10**6))
_LEAST |= {"size": Fraction(1000), "vram": Fraction(1000), "throughput": Fraction(1, 1000)}
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


def _differ(one: Cell, other: Cell) -> bool:
    """Whether two printed numbers cannot be one, rounded or truncated; nor, of bytes, with another megabyte."""
    units = {name: float(BINARY[name] / BYTES[name]) for name in BINARY}
    times = {1.0, *(units[cell.unit.lower()] for cell in (one, other) if cell.unit.lower() in units)}
    ways = [(Fraction(mine), Fraction(theirs)) for mine in times for theirs in times]
    return all(one.low * mine > other.most * theirs or other.low * theirs > one.most * mine for mine, theirs in ways)


def _printed_again(case: Case) -> Iterator[tuple[str, list[tuple[Cell, Cell]], bool]]:
    """Cells that are printed twice: where, both of each, and whether all of them may be of another setting."""
    table = case.table
    quantities = [quantity for quantity in table.headings if quantity not in _SETTINGS]
    again = [(table.names.index(name), row) for row, name in enumerate(table.names) if table.names.index(name) < row]
    times = Counter(table.names)
    repeats = len(times) > 1 and min(times.values()) > 1
    for quantity in quantities:
        yield "in rows of one name", _both(table, table, again, quantity), repeats
    for column in table.columns:
        heading = column.heading
        if heading.quantity in quantities and not heading.more and not heading.aside:
            own = [(cell, column.cells[cell.row]) for cell in table.column(heading.quantity) if cell.row in column.cells]
            yield "in two columns", own, bool(own) and all(_differ(*pair) for pair in own)
    for other in case.before:
        at = {name.casefold(): row for row, name in enumerate(other.labels)}
        shared = [(at[name.casefold()], row) for row, name in enumerate(table.labels) if name.casefold() in at]
        # Rows that state another batch or image size are of another measurement.
        stated = [_both(other, table, [pair], quantity) for quantity in _SETTINGS for pair in shared]
        apart = {cell.row for ((one, cell),) in filter(None, stated) if one.exact != cell.exact}
        shared = [pair for pair in shared if pair[1] not in apart]
        for quantity in quantities:
            pairs = _both(other, table, shared, quantity)
            both = [(one, cell) for one, cell in pairs if read_heading(one.heading).more == read_heading(cell.heading).more]
            # Where no cell agrees, the two tables are of two settings.
            yield f"here and in {other.name}", both, bool(both) and all(_differ(*pair) for pair in both)


def _both(one: ResultsTable, other: ResultsTable, rows: list[tuple[int, int]], quantity: Quantity) -> list[tuple[Cell, Cell]]:
    """Cells of two tables, where both have one."""
    pairs = [(one.cell(row, quantity), other.cell(other_row, quantity)) for row, other_row in rows]
    return [(mine, theirs) for mine, theirs in pairs if mine and theirs]


@check("printed-twice")
def printed_twice(case: Case) -> Iterator[Finding]:
    """One cell printed with two values, in this table or in this and another."""
    for where, pairs, settings in _printed_again(case):
        wrong = [pair for pair in pairs if _differ(*pair)]
        if wrong:
            one, other = wrong[0]
            values = f"{one.shown} and {other.shown} {where}, in {len(wrong)} of {len(pairs)} such cells"
            why = "two runs or settings, as all differ" if settings else "the same row and column; another run or setting would explain it"
            words = f"{case.label(other)}: {other.heading} is {values}: {why}"
            cells = [other for _, other in wrong] + [one for one, _ in wrong if where == "in rows of one name"]
            yield about(cells, verdict="noted" if settings else "suspicious", words=words, cells=len(wrong), printed=len(pairs))


@check("constant")
def constant(case: Case) -> Iterator[Finding]:
    """A measured column with one value in all rows: said, and no fault, as twins may be equal."""
    for quantity in (*MEASURED, *_RATES):
        cells = case.table.column(quantity)
        if len(cells) >= _ROWS and len({cell.text for cell in cells}) == 1 and _told(cells[0]):
            words = f"{cells[0].heading} is {cells[0].text} in all {len(cells)} rows that have it"
            yield about(cells, verdict="noted", words=words, cells=len(cells))


@check("equal-rows")
def equal_rows(case: Case) -> Iterator[Finding]:
    """Rows of different names with equal measurements: said, and no fault, as one network may have two names."""
    table = case.table
    measured = [quantity for quantity in (*MEASURED, *_RATES) if len({cell.text for cell in table.column(quantity)}) > 1]
    groups: defaultdict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for row in table.rows:
        cells = [cell for quantity in measured if (cell := table.cell(row, quantity))]
        # What is stated beside the measurements must agree as well.
        beside = [table.cell(row, quantity) for quantity in table.headings if quantity not in measured]
        if len(cells) > 1 and sum(map(_told, cells)) > 1 and len(cells) == len(measured):
            groups[*(cell.text if cell else "" for cell in beside), *(cell.text for cell in cells)].append(cells[0])
    for same in groups.values():
        if len(same) > 1:
            words = f"{', '.join(map(case.label, same[:_MOST_NAMED]))} are equal in {', '.join(table.headings[what] for what in measured)}"
            yield about(same, verdict="noted", words=f"{words}: one network under several names, or one measurement", rows=len(same))


def _told(cell: Cell) -> bool:
    """Whether a number has the digits to tell measurements apart."""
    return cell.exact > 0 and len(cell.text.replace(".", "").strip("0")) >= _TELLING


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
