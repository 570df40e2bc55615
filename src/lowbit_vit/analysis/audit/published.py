"""Reads published tables: their headings, the names of their rows, and their numbers once it is known which sign parts the decimals.

How a file is parted into cells is the work of `grids`, what a heading means that of `headings`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from lowbit_vit.analysis.audit.grids import Grid, read_grids
from lowbit_vit.analysis.audit.headings import COUNT, LABELS, MANY, NUMBERS, PIXELS, SHARE, Heading, Quantity, is_unit, read_heading, unread
from lowbit_vit.analysis.audit.table import Cell, Column, ResultsTable
from lowbit_vit.errors import DataError

Point = Literal["point", "comma"]
# A float in single precision differs from its value by up to half of this: further digits are noise.
_SINGLE = Fraction(1, 2**22)
_MISSING = ("n/a", "na", "nan", "none", "null", "-", "\N{EN DASH}", "\N{EM DASH}", "x")
# Where a value ends and its spread, its difference from another row or a remark begins.
_REMARK = re.compile(r"\s*(\N{PLUS-MINUS SIGN}|\+\s?/?\s?-|[(\[\N{UPWARDS ARROW}\N{DOWNWARDS ARROW}]).*", re.DOTALL)
_MARKS = "*\N{DAGGER}\N{DOUBLE DAGGER}\N{SECTION SIGN}_ "
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<digits>\d[\d.,'\N{RIGHT SINGLE QUOTATION MARK} ]*(?<! )|[.,]\d+)(e[+-]?\d{1,2})?\s*(?P<unit>\D*)", re.IGNORECASE
)
_WHOLE = re.compile(r"\d{3,}")
_MOST_DIGITS = 30
_NO_ROWS = "expected a line of headings and at least one row"
# Rates of a table whose highest is below this, in per cent, are those of models that guess.
_LEARNED = 0.2
# Fewer parameters or FLOP than this are a number of millions whose unit is not printed.
_FEWEST_PARAMETERS = 100_000


def load_table(path: Path, *, decimal: Point | None = None) -> ResultsTable:
    """The table of a file that holds one; see `load_tables`."""
    tables = load_tables(path, decimal=decimal)
    if len(tables) > 1:
        raise DataError(f"{path}: {len(tables)} tables; one is expected")
    return tables[0]


def load_tables(path: Path, *, decimal: Point | None = None) -> list[ResultsTable]:
    """Read the tables of results of a CSV, Markdown, LaTeX or HTML file; of several tables, those that hold no known quantity are left out.

    Args:
        path: the file.
        decimal: which sign parts the decimals, where the numbers do not tell.

    Raises:
        DataError: the file or a cell is not what it should be, or may mean two things; one line, with what to write instead.
    """
    grids = read_grids(path)
    known = [at for at, grid in enumerate(grids) if any(read_heading(cell).quantity for row in grid.rows[:4] for cell in row)]
    if not grids:
        raise DataError(f"{path}: {_NO_ROWS}")
    names = [str(path) if len(grids) == 1 else f"{path}, table {at + 1}" for at in known or [0]]
    return [table for name, at in zip(names, known or [0], strict=True) for table in _tables(name, grids[at], decimal)]


def _tables(name: str, grid: Grid, decimal: Point | None) -> Iterator[ResultsTable]:
    """The table of a grid, or one for each batch size that its headings name."""
    headings, rows, sections = _parted(name, grid.rows)
    heads = [read_heading(heading) for heading in headings]
    # A unit may stand in the first heading of a quantity alone.
    stated = {head.quantity: (head.unit, head.shown) for head in reversed(heads) if head.unit}
    for at, head in enumerate(heads):
        if head.quantity and head.quantity in stated and not head.unit and "" not in head.units:
            heads[at] = replace(head, unit=stated[head.quantity][0], shown=stated[head.quantity][1])
    columns = [_Printed(name, head, [row[at] for row in rows]) for at, head in enumerate(heads)]
    words = [column for column in columns if column.is_name]
    if not words:
        raise DataError(f"{name}: no column with the models' names; call it Model")
    label = min(words, key=lambda column: [*LABELS, column.head.name].index(column.head.name))
    names, telling = _names(label, columns, words, sections)
    sign = {"point": ".", "comma": ","}.get(decimal or "") or _decimal(name, grid.separator, columns)
    parts = _by_batch(columns)
    for batch, part in parts.items():
        quantities = _quantities(part)
        cells = {(cell.row, what): cell for what, column in quantities.items() for cell in column.cells(sign)}
        if batch:
            heading = next(column.head.text for column in part if column.head.batch)
            cells |= {(row, "batch"): Cell(row, heading, str(batch), Fraction(1), Fraction(1)) for row in range(len(rows))}
        others = {column: found for column in part if column not in {*quantities.values(), *words} and (found := column.beside(sign))}
        left = [column for column in part if column not in {label, *telling, *quantities.values()}]
        left = [column for column in left if column not in others or (column.head.more and not column.head.derived)]
        not_read = tuple(unread(column.head) for column in left if not column.head.aside and column.head.name not in NUMBERS)
        if not quantities and not_read and len(parts) == 1:
            such = "headings are such as Latency (ms), Throughput (img/s), Top-1 (%)"
            raise DataError(f"{name}: no column is known: {', '.join(not_read)}; {such}")
        yield ResultsTable(
            labels=tuple(f"{one} ({before + 1})" if (before := names[:row].count(one)) else one for row, one in enumerate(names)),
            headings=MappingProxyType({what: column.head.text for what, column in quantities.items()}),
            cells=MappingProxyType(cells),
            columns=tuple(Column(column.head, found) for column, found in others.items()),
            names=tuple(names),
            words=tuple(frozenset(" ".join(told).lower().split()) for told in zip(names, *(column.texts for column in words), strict=True)),
            unread=not_read,
            name=f"{name}, batch size {batch}" if batch and len(parts) > 1 else name,
        )


def _by_batch(columns: list["_Printed"]) -> dict[int, list["_Printed"]]:
    """The columns of each batch size that headings name.

    Columns whose headings name none go with the smallest one; if some of them depend on a batch size, which is not said, they stand
    alone under 0, or all columns do where no second one is named.
    """
    sizes = sorted({column.head.batch for column in columns} - {0})
    silent = any(column.head.silent for column in columns)
    if not sizes or (silent and len(sizes) == 1):
        return {0: columns}
    first = 0 if silent else sizes[0]
    return {size: [column for column in columns if (column.head.batch or first) == size] for size in sorted({first, *sizes})}


# ------------------------------------------------------------------------------------------------- headings, rows and their names


def _parted(name: str, grid: Sequence[list[str]]) -> tuple[list[str], list[list[str]], list[str]]:
    """One line of headings, the rows, and the title above each row; titles and notes around the table are left out."""
    first = next((at for at, row in enumerate(grid) if _named(row)), 0)
    top, start = grid[first], first + 1
    headings = list(top)
    if first and any(grid[first - 1][1:]) and len(set(grid[first - 1])) > 1:
        top = grid[first - 1]
        headings = _merged(top, grid[first])
    elif start < len(grid) and _continues(top, grid[start]):
        headings = _merged(top, grid[start])
        start += 1
    body = [row for row in grid[start:] if row != top]
    full = max((at + 1 for row in [headings, *body] for at, cell in enumerate(row[: len(headings)]) if cell), default=0)
    headings = [heading or f"column {at + 1}" if at else heading for at, heading in enumerate(headings[:full])]
    rows: list[list[str]] = []
    sections, section = [], ""
    for row in body:
        alone = {cell for cell in row if cell}
        if full > 2 and len(alone) == 1 and (not any(row[1:]) or all(row)):
            section = alone.pop()
            continue
        if len(row) < full or any(row[full:]):
            raise DataError(f"{name}: row {len(rows)}: {len(row)} cells under {full} headings")
        rows.append(row[:full])
        sections.append(section)
    if not rows:
        raise DataError(f"{name}: {_NO_ROWS}")
    return headings, rows, sections


def _named(row: Sequence[str]) -> bool:
    """Whether a line has headings: two cells, one of them known."""
    heads = [read_heading(cell) for cell in row if cell]
    return len(heads) > 1 and any(head.quantity or head.derived or head.name in LABELS for head in heads)


def _continues(top: Sequence[str], below: Sequence[str]) -> bool:
    """Whether a line goes on with the headings above it: parts of merged ones, or units."""
    words = [cell for cell in below[1:] if cell and cell not in top and cell.lower() not in _MISSING]
    return bool(words) and not any(map(_NUMBER.fullmatch, below)) and below[0] in {"", top[0]}


def _merged(top: Sequence[str], below: Sequence[str]) -> list[str]:
    headings, over = [], ""
    for at, under in enumerate(below):
        over = top[at] if at < len(top) and top[at] else over if under else ""
        shown = f"({under})" if is_unit(under) else under
        headings.append(over if under == over else f"{over} {shown}".strip())
    return headings


def _names(
    label: "_Printed", columns: Sequence["_Printed"], words: Sequence["_Printed"], sections: list[str]
) -> tuple[list[str], list["_Printed"]]:
    """The rows' names, and the further columns that were needed to tell the rows apart. A name may stand in the first row of several."""
    keys = sorted((column for column in words if column is not label), key=lambda column: column.head.name not in LABELS)
    keys += [column for column in columns if column.head.quantity in {"image_size", "batch"} and not column.head.aside]
    names: list[str] = []
    for row, own in enumerate(label.texts):
        if not own and not (names and keys):
            raise DataError(f"{label.table}: row {row}: {label.head.text or 'Model'} is empty; give the row a name")
        names.append(own or names[-1])
    keys += [column for column in columns if column not in {label, *keys} and not (column.allowed or column.head.aside)]
    titled = [f"{section} {one}".strip() for section, one in zip(sections, names, strict=True)]
    if len(set(titled)) > len(set(names)):
        names = titled
    used = []
    for column in keys:
        longer = [f"{one} {cell}".strip() for one, cell in zip(names, column.texts, strict=True)]
        if len(set(longer)) > len(set(names)):
            names = longer
            used.append(column)
    return names, used


def _quantities(columns: Sequence["_Printed"]) -> dict[Quantity, "_Printed"]:
    """The column of each quantity: the one whose heading says nothing more, else one of those that all say the same more."""
    known = [column for column in columns if column.head.quantity and not column.head.aside and column.units]
    more = {column.head.more for column in known} - {""}
    chosen: dict[Quantity | None, _Printed] = {}
    for column in sorted(known, key=lambda column: bool(column.head.more)):
        if not column.head.more or len(more) == 1:
            chosen.setdefault(column.head.quantity, column)
    return {what: column for column in known if (what := column.head.quantity) and chosen.get(what) is column}


# --------------------------------------------------------------------------------------------------------------------------- numbers


class _Printed:
    """A column of the named table, as printed; its numbers can be read once it is known which sign parts the decimals."""

    def __init__(self, table: str, head: Heading, texts: list[str]) -> None:
        self.table, self.head, self.texts = table, head, texts
        self.allowed = head.allowed
        self.numbers: dict[int, re.Match[str]] = {}
        # Of a cell, which matters if the column is read.
        self.wrong = ""
        for row, text in enumerate(texts if self.allowed else ()):
            bare = _pixels(text) if self.allowed is PIXELS else _REMARK.sub("", text.strip(_MARKS)).strip(_MARKS)
            bare = bare.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-").lower()
            # A bound, about so much, or words are no value.
            if not re.search("[0-9]", bare) or bare[0] in "<>~\N{ALMOST EQUAL TO}" or bare[0].isalpha():
                continue
            found = _NUMBER.fullmatch(bare)
            signed = found is not None and found["sign"] == "-" and not head.derived
            if found is None or signed or found["unit"] not in {"", *self.allowed} or len(found["digits"]) > 2 * _MOST_DIGITS:
                self.wrong = self.wrong or self._no_number(row)
            else:
                self.numbers[row] = found
        self.in_cells = any(number["unit"] for number in self.numbers.values())

    @property
    def is_name(self) -> bool:
        """Whether it holds words, not numbers."""
        if self.allowed or self.head.aside or self.head.name in NUMBERS:
            return False
        numbers = [_NUMBER.fullmatch(cell.strip(_MARKS)) for cell in self.texts if cell]
        return self.head.name in LABELS or 2 * numbers.count(None) > len(numbers)

    @property
    def digits(self) -> list[str]:
        """Its numbers without sign, power and unit."""
        return [number["digits"] for number in self.numbers.values()]

    @cached_property
    def units(self) -> dict[str, Fraction]:
        """The units that it may have, if those of its heading or its cells are among them; else none."""
        if self.allowed is MANY and not self.head.unit and not self.in_cells:
            whole = all(digits.isdigit() and int(digits) >= _FEWEST_PARAMETERS for digits in self.digits)
            return {**MANY, "": Fraction(1)} if self.digits and whole else {}
        given = {number["unit"] or self.head.unit for number in self.numbers.values()} or {self.head.unit}
        return self.allowed if given <= set(self.allowed) else {}

    def place(self, row: int) -> str:
        return f"{self.table}: row {row}, {self.head.text}"

    def _no_number(self, row: int) -> str:
        text = self.texts[row] if len(self.texts[row]) <= 40 else f"{self.texts[row][:40]}..."
        told = f"{text!r} is not a number such as 12.50 (at most {_MOST_DIGITS} digits), nor N/A"
        return f"{self.place(row)}: {told}; # before the heading leaves the column out"

    def cells(self, decimal: str) -> list[Cell]:
        """Its numbers; a missing one is left out.

        Raises:
            DataError: a cell is no number of the column's quantity, or a rate may be a share of 1 or per cent.
        """
        if self.wrong:
            raise DataError(self.wrong)
        texts = {row: self._plain(row, decimal) for row in self.numbers}
        unit, shown, share = self.head.unit, self.head.shown, self.units is SHARE
        if share and not unit and not self.in_cells and any(Fraction(text) > 1 for text in texts.values()):
            unit = shown = "%"
        cells = []
        significant = max(map(_significant, texts.values()), default=0)
        # A share is a quotient of counts: what single precision makes of it can be computed (audit/readings.py).
        noise = Fraction(0) if share or self.head.derived else _SINGLE
        for row, text in texts.items():
            own = self.numbers[row]["unit"]
            cell = Cell(row, self.head.text, text, self.units[own or unit], step=_step(text, significant, noise), unit=own or shown)
            if share and cell.exact > 1:
                raise DataError(f"{self.place(row)}: {text} is above 100 %")
            if self.units is COUNT and (cell.exact < 1 or cell.exact.denominator > 1):
                raise DataError(f"{self.place(row)}: {text} is no whole number of images from 1 on")
            cells.append(cell)
        rates = [cell for cell in cells if cell.exact and self.head.quantity in {"top1", "top5", "f1"}]
        most = max(rates, key=lambda cell: cell.exact, default=None)
        # Few models learn nothing.
        if most and len(rates) > 1 and self.head.unit == "%" and not self.in_cells and _LEARNED <= Fraction(most.text) <= 1:
            asked = "a share of 1, or per cent? Take (%) out of the heading, or write % into the cells"
            raise DataError(f"{self.place(most.row)}: {most.text} is the highest rate: {asked}")
        return cells

    def beside(self, decimal: str) -> dict[int, Cell]:
        """The numbers by row of a column that is compared with others only; none if something is wrong with it."""
        try:
            return {cell.row: cell for cell in self.cells(decimal)} if self.units else {}
        except DataError:
            return {}

    def _plain(self, row: int, decimal: str) -> str:
        """A number with a point and no separator."""
        sign, digits, power, _ = self.numbers[row].groups()
        group = "." if decimal == "," else ","
        found = re.fullmatch(rf"(\d{{1,3}}(?:[{group}' \N{{RIGHT SINGLE QUOTATION MARK}}]\d{{3}})+|\d*)(?:[{decimal}](\d+))?", digits)
        whole, behind = (re.sub(r"\D", "", found[1]) or "0", found[2] or "") if found else ("", "")
        if found is None or max(len(whole), len(behind)) > _MOST_DIGITS:
            raise DataError(self._no_number(row))
        text = f"{whole}.{behind}" if behind else whole
        return ("-" if sign == "-" else "") + (f"{Decimal(text + power):f}" if power else text)


def _pixels(text: str) -> str:
    """One side of square images: 224, 224x224, 3 x 224 x 224; else nothing."""
    sides = re.findall(r"\d{1,5}", text)
    return sides[-1] if sides and len(sides) <= 3 and len(set(sides[-2:])) == 1 else ""


def _decimal(name: str, separator: str, columns: Sequence[_Printed]) -> str:
    """The sign that parts decimals: the one that only can.

    Raises:
        DataError: both signs do, or the only numbers that have one may be of thousands.
    """
    told: dict[str, str] = {}
    unclear: list[tuple[_Printed, int, str]] = []
    for column in columns:
        if column.allowed is PIXELS or (column.head.aside and not column.head.derived):
            continue
        for row, number in column.numbers.items():
            digits = number["digits"]
            signs = re.findall("[.,]", digits)
            # In thousands it would be no rate.
            if re.fullmatch("[^0.,][^.,]{0,2}[.,][^.,]{3}", digits) and column.allowed is not SHARE:
                unclear.append((column, row, digits))
            elif signs:
                # The last of two signs; a sign that is there twice parts thousands, and the other one decimals.
                sign = signs[-1] if len(signs) == 1 or len(set(signs)) == 2 else "," if signs[0] == "." else "."
                told.setdefault(sign, f"{digits!r} in row {row}, {column.head.text}")
    if len(told) > 1:
        raise DataError(f"{name}: {told['.']} has a decimal point, {told[',']} a decimal comma; write one of them throughout")
    # A number may be one of thousands if it has a comma, or others of its column are whole numbers of some size.
    thousands = any("," in digits or any(map(_WHOLE.fullmatch, column.digits)) for column, _, digits in unclear)
    if told or not unclear or (separator not in {";", "\t"} and not thousands):
        return next(iter(told), ".")
    column, row, digits = unclear[0]
    meant = f"{digits} may be {digits.replace(',', '.')} or {re.sub('[.,]', '', digits)}"
    raise DataError(f"{column.place(row)}: {meant}, and no number tells: give --decimal point or --decimal comma")


def _significant(text: str) -> int:
    """Significant digits of a printed number; zeros at the end of a whole number are taken for none."""
    text = text.lstrip("-")
    return len(text.replace(".", "").lstrip("0") if "." in text else text.strip("0"))


def _step(text: str, significant: int, noise: Fraction) -> Fraction:
    """The last digit of a number that counts, in a column whose numbers have at most `significant` digits.

    1230 in a column of three significant digits is any number from 1225 to 1235. `noise` is a share of the number below which no
    digit counts.
    """
    whole, _, behind = text.lstrip("-").partition(".")
    leading = len(whole.lstrip("0"))
    by_digits = Fraction(10) ** (leading - significant) if leading else Fraction(0)
    return max(Fraction(1, 10 ** len(behind)), by_digits, abs(Fraction(text)) * noise)
