"""Checks of cells by themselves: missing, zero, printed twice, finer than any clock."""

from collections import defaultdict

from lowbit_vit.analysis.audit.context import Context
from lowbit_vit.analysis.audit.finding import Finding, about
from lowbit_vit.analysis.audit.table import Cell, Quantity, ResultsTable

_COSTS: tuple[Quantity, ...] = ("size", "mean", "p50", "p95", "p99", "throughput", "vram", "cpu", "kernel", "attention")
_TIMES: tuple[Quantity, ...] = ("mean", "p50", "p95", "p99", "cpu", "kernel", "attention")
# Equal times are no accident from this many printed digits on.
_DIGITS = 5
# Clocks of CPUs and of CUPTI count nanoseconds; in ms.
_CLOCK_MS = 1e-6


def missing(table: ResultsTable, context: Context) -> list[Finding]:
    """Columns with cells that hold no number."""
    found = []
    for quantity, heading in table.headings.items():
        rows = [row for row in table.rows if table.cell(row, quantity) is None]
        if rows:
            words = f"{heading}: no number in {len(rows)} of {len(table.rows)} rows"
            numbers = {"missing": float(len(rows)), "rows": float(len(table.rows))}
            said = Finding(check="missing", rows=tuple(rows), columns=(heading,), verdict="underspecified", words=words, numbers=numbers)
            found.append(said)
    return found


def zero(table: ResultsTable, context: Context) -> list[Finding]:
    """Costs of nothing: a model has a size, and takes time."""
    found = []
    for quantity in _COSTS:
        cells = [cell for cell in table.column(quantity) if cell.exact == 0]
        if cells:
            rows = ", ".join(table.labels[cell.row] for cell in cells)
            words = f"{cells[0].heading} is {cells[0].text} in {rows}: it cannot be nothing, so it was not measured"
            found.append(about("zero", cells, verdict="impossible", words=words, cells=len(cells)))
    return found


def repeated(table: ResultsTable, context: Context) -> list[Finding]:
    """Times of different rows that agree to the last of many digits."""
    found = []
    for quantity in _TIMES:
        same: defaultdict[str, list[Cell]] = defaultdict(list)
        for cell in table.column(quantity):
            if len(cell.text.replace(".", "").lstrip("0")) >= _DIGITS:
                same[cell.text].append(cell)
        for text, cells in same.items():
            if len(cells) > 1:
                rows = ", ".join(table.labels[cell.row] for cell in cells)
                words = f"{cells[0].heading} is {text} in {rows}: two measurements do not agree in every digit"
                found.append(about("repeated", cells, verdict="suspicious", words=words, cells=len(cells)))
    return found


def digits(table: ResultsTable, context: Context) -> list[Finding]:
    """A column that was rounded by one program has equally many decimals in all its cells."""
    found = []
    for quantity, heading in table.headings.items():
        cells = table.column(quantity)
        kinds = sorted({cell.decimals for cell in cells})
        if len(kinds) > 1:
            words = f"{heading} is printed with {' and '.join(map(str, kinds))} decimals: typed, or rounded twice"
            found.append(about("digits", cells, verdict="suspicious", words=words, fewest=kinds[0], most=kinds[-1]))
    return found


def finer_than_clock(table: ResultsTable, context: Context) -> list[Finding]:
    """Times with digits below a nanosecond: an average, or another unit than the heading's."""
    found = []
    for quantity in _TIMES:
        cells = [cell for cell in table.column(quantity) if cell.exact and float(2 * cell.half) < _CLOCK_MS]
        if cells:
            digit = float(2 * cells[0].half) * 1e9
            words = (
                f"{cells[0].heading} is printed to {digit:g} ps in {len(cells)} rows, and clocks count nanoseconds: "
                f"an average of many, or the unit is 1000 times as large"
            )
            found.append(about("finer-than-clock", cells, verdict="suspicious", words=words, last_digit_ps=digit, cells=len(cells)))
    return found
