"""A published table of results, as printed: every cell keeps its digits, because rounding decides what can be concluded.

Values are exact fractions in one unit a dimension: ms, bytes, images/s, images, share of 1, W, J. How a file is parted into cells is the
work of `grids`, what a heading means that of `headings`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from lowbit_vit.analysis.audit.grids import Grid, read_grids
from lowbit_vit.analysis.audit.headings import (
    BINARY,
    COUNT,
    LABELS,
    NUMBERS,
    PIXELS,
    SHARE,
    Heading,
    Quantity,
    Units,
    is_unit,
    read_heading,
    unread,
)
from lowbit_vit.errors import DataError

Point = Literal["point", "comma"]
# A float in single precision differs from its value by up to half of this: further digits are noise.
_SINGLE = Fraction(1, 2**22)
_MISSING = ("n/a", "na", "nan", "none", "null", "-", "\N{EN DASH}", "\N{EM DASH}", "x")
# Where a value ends and its spread, its difference from another row or a remark begins.
_REMARK = re.compile(r"\s*(\N{PLUS-MINUS SIGN}|\+\s?/?\s?-|[(\[\N{UPWARDS ARROW}\N{DOWNWARDS ARROW}]).*", re.DOTALL)
_MARKS = "*\N{DAGGER}\N{DOUBLE DAGGER}\N{SECTION SIGN}_ "
_PRINTED = re.compile(r"([+-]?)\s*(\d[\d.,'\N{RIGHT SINGLE QUOTATION MARK} ]*(?<! )|[.,]\d+)(e[+-]?\d{1,2})?\s*(\D*)", re.IGNORECASE)
_MOST_DIGITS = 30
# Units of a number that compares two others.
COMPARED: Units = {"": Fraction(1), "x": Fraction(1), "\N{MULTIPLICATION SIGN}": Fraction(1), "times": Fraction(1), "%": Fraction(1, 100)}
COMPARED |= {"pp": Fraction(1, 100), "pt": Fraction(1, 100), "pts": Fraction(1, 100), "points": Fraction(1, 100)}
# Rates of a table whose highest is below this, in per cent, are those of models that guess.
_LEARNED = 0.2
# Fewer parameters or FLOP than this are a number of millions whose unit is not printed.
_FEWEST_PARAMETERS = 100_000


@dataclass(frozen=True)
class Cell:
    """One printed number.

    Attributes:
        row: from 0.
        heading: as printed.
        text: as printed, with a point and without separators.
        scale: the printed unit in the unit of its dimension.
        step: the last digit that counts, in the unit that is printed.
        unit: as printed, of the heading or the cell.
    """

    row: int
    heading: str
    text: str
    scale: Fraction
    step: Fraction
    unit: str = ""

    @cached_property
    def exact(self) -> Fraction:
        """The printed value in the dimension's unit."""
        return Fraction(self.text) * self.scale

    @property
    def value(self) -> float:
        """The same as a float."""
        return float(self.exact)

    @property
    def shown(self) -> str:
        """As printed, with its unit."""
        return f"{self.text} {self.unit}".strip()

    @property
    def decimals(self) -> int:
        """Digits behind the point, as printed."""
        return len(self.text.partition(".")[2])

    @cached_property
    def half(self) -> Fraction:
        """Half of the last digit that counts, in the dimension's unit."""
        return self.scale * self.step / 2

    @cached_property
    def low(self) -> Fraction:
        """Least value that is printed so, rounded or truncated."""
        return self.exact - self.half

    @cached_property
    def high(self) -> Fraction:
        """Greatest value that is rounded to what is printed."""
        return self.exact + self.half

    @cached_property
    def most(self) -> Fraction:
        """Greatest value that is printed so, rounded or truncated."""
        return self.exact + 2 * self.half


def above(one: Cell, other: Cell) -> bool:
    """Whether `one` was greater than `other` before both were rounded, or both truncated."""
    return one.low > other.high and one.exact >= other.most


@dataclass(frozen=True)
class Column:
    """A column beside those that `ResultsTable.headings` names: one more of a quantity, or one that compares.

    Attributes:
        heading: what its heading says.
        cells: its numbers by row; those of one that compares may be negative.
    """

    heading: Heading
    cells: Mapping[int, Cell]


@dataclass(frozen=True)
class ResultsTable:
    """A table with one row a model.

    Attributes:
        labels: name of each row, all different: of as many columns as tell the rows apart.
        headings: heading of each quantity that the table has.
        cells: those that hold a number, by row and quantity; a cell that is not here is printed as missing.
        columns: further columns.
        names: of each row before equal ones were numbered.
        words: of each row, all that names it.
        unread: columns that nothing is read from, with what to write if something should.
        name: file, and which of its tables.
    """

    labels: tuple[str, ...]
    headings: MappingProxyType[Quantity, str]
    cells: MappingProxyType[tuple[int, Quantity], Cell]
    columns: tuple[Column, ...] = ()
    names: tuple[str, ...] = ()
    words: tuple[frozenset[str], ...] = ()
    unread: tuple[str, ...] = ()
    name: str = ""

    @property
    def rows(self) -> range:
        """Indices of the rows."""
        return range(len(self.labels))

    def cell(self, row: int, quantity: Quantity) -> Cell | None:
        """A number, or None where the table has none."""
        return self.cells.get((row, quantity))

    def column(self, quantity: Quantity) -> list[Cell]:
        """The numbers of a column, from top to bottom."""
        return [cell for row in self.rows if (cell := self.cell(row, quantity)) is not None]

    def together(self, *quantities: Quantity) -> list[tuple[Cell, ...]]:
        """The numbers of each row that has all of these quantities."""
        rows = [[self.cells.get((row, quantity)) for quantity in quantities] for row in self.rows]
        return [tuple(cell for cell in cells if cell is not None) for cells in rows if None not in cells]

    @cached_property
    def binary(self) -> "ResultsTable":
        """The same table with KB, MB and GB read as powers of 1024."""
        cells = {key: replace(cell, scale=BINARY[cell.unit.lower()]) for key, cell in self.cells.items() if cell.unit.lower() in BINARY}
        return replace(self, cells=MappingProxyType({**self.cells, **cells}))


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
    known = [any(read_heading(cell).quantity for row in grid.rows[:4] for cell in row) for grid in grids]
    kept = [at for at in range(len(grids)) if known[at] or not any(known)]
    if not kept:
        raise DataError(f"{path}: expected a line of headings and at least one row")
    return [
        _table(str(path) if len(grids) == 1 else f"{path}, table {at + 1}", grids[at], decimal) for at in kept[: None if any(known) else 1]
    ]


def _table(name: str, grid: Grid, decimal: Point | None) -> ResultsTable:
    headings, rows, sections = _parted(name, grid.rows)
    heads = [read_heading(heading) for heading in headings]
    # A unit may stand in the first heading of a quantity alone.
    shown = {head.quantity: head for head in reversed(heads) if head.unit}
    heads = [
        replace(head, unit=shown[head.quantity].unit, shown=shown[head.quantity].shown) if _bare(head, shown) else head for head in heads
    ]
    printed = [[row[at] for row in rows] for at in range(len(headings))]
    words = [at for at, head in enumerate(heads) if _is_name(head, printed[at])]
    label = _label(name, heads, words)
    names, told_by = _names(name, label, heads=heads, printed=printed, words=words, sections=sections)
    reader = _Reader(name, grid.separator, decimal, heads, printed)
    quantities = _quantities(reader)
    cells = {(cell.row, what): cell for what, at in quantities.items() for cell in reader.cells(at)}
    others = {at: found for at in range(len(heads)) if at not in {*quantities.values(), *words} and (found := reader.beside(at))}
    passed = [at for at in range(len(heads)) if at not in {label, *told_by, *quantities.values()}]
    left = [at for at in passed if not heads[at].aside and heads[at].name not in NUMBERS and (at not in others or heads[at].more)]
    left = [at for at in left if not (heads[at].derived and at in others)]
    not_read = tuple(unread(heads[at]) for at in left)
    if not quantities and not_read:
        raise DataError(
            f"{name}: no column is known: {', '.join(not_read)}; headings are such as Latency (ms), Throughput (img/s), Top-1 (%)"
        )
    return ResultsTable(
        labels=_numbered(names),
        headings=MappingProxyType({what: headings[at] for what, at in quantities.items()}),
        cells=MappingProxyType(cells),
        columns=tuple(Column(heads[at], found) for at, found in others.items()),
        names=tuple(names),
        words=tuple(frozenset(" ".join([names[row], *(printed[at][row] for at in words)]).lower().split()) for row in range(len(rows))),
        unread=not_read,
        name=name,
    )


# ------------------------------------------------------------------------------------------------- headings, rows and their names


def _parted(name: str, grid: Sequence[list[str]]) -> tuple[list[str], list[list[str]], list[str]]:
    """One line of headings, the rows, and the title above each row; titles and notes around the table are left out."""
    first = next((at for at, row in enumerate(grid) if _named(row)), 0)
    top = grid[first]
    if first and any(grid[first - 1][1:]) and len(set(grid[first - 1])) > 1:
        top, headings, start = grid[first - 1], _merged(grid[first - 1], top), first + 1
    elif first + 1 < len(grid) and _continues(top, grid[first + 1]):
        headings, start = _merged(top, grid[first + 1]), first + 2
    else:
        headings, start = list(top), first + 1
    body = [row for row in grid[start:] if row != top]
    full = max((at + 1 for row in [headings, *body] for at, cell in enumerate(row[: len(headings)]) if cell), default=0)
    headings = [heading or f"column {at + 1}" if at else heading for at, heading in enumerate(headings[:full])]
    rows: list[list[str]] = []
    sections: list[str] = []
    section = ""
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
        raise DataError(f"{name}: expected a line of headings and at least one row")
    return headings, rows, sections


def _named(row: Sequence[str]) -> bool:
    """Whether a line has headings: two cells, one of them known."""
    heads = [read_heading(cell) for cell in row if cell]
    return len(heads) > 1 and any(head.quantity or head.derived or head.name in LABELS for head in heads)


def _bare(head: Heading, shown: Mapping[Quantity | None, Heading]) -> bool:
    return head.quantity in shown and not head.unit and "" not in head.units


def _continues(top: Sequence[str], below: Sequence[str]) -> bool:
    """Whether a line goes on with the headings above it: parts of merged ones, or units."""
    words = [cell for cell in below[1:] if cell and cell not in top and cell.lower() not in _MISSING]
    numbers = any(_PRINTED.fullmatch(cell) for cell in below if cell)
    return bool(words) and not numbers and below[0] in {"", top[0]}


def _merged(top: Sequence[str], below: Sequence[str]) -> list[str]:
    headings, over = [], ""
    for at, under in enumerate(below):
        over = top[at] if at < len(top) and top[at] else over if under else ""
        shown = f"({under})" if is_unit(under) else under
        headings.append(over if under == over else f"{over} {shown}".strip())
    return headings


def _is_name(head: Heading, cells: Sequence[str]) -> bool:
    """Whether a column holds words, not numbers."""
    if head.quantity or head.derived or head.aside or head.name in NUMBERS:
        return False
    filled = [cell for cell in cells if cell]
    return head.name in LABELS or 2 * sum(not _PRINTED.fullmatch(cell.strip(_MARKS)) for cell in filled) > len(filled)


def _label(name: str, heads: Sequence[Heading], words: Sequence[int]) -> int:
    """The column with the models' names."""
    named = sorted((LABELS.index(heads[at].name), at) for at in words if heads[at].name in LABELS)
    if not named and not words:
        raise DataError(f"{name}: no column with the models' names; call it Model")
    return named[0][1] if named else words[0]


def _names(
    name: str, label: int, *, heads: Sequence[Heading], printed: Sequence[Sequence[str]], words: Sequence[int], sections: Sequence[str]
) -> tuple[list[str], list[int]]:
    """The rows' names, and the further columns that were needed to tell the rows apart. A name may stand in the first row of several."""
    names: list[str] = []
    keys = [at for at in words if at != label]
    keys.sort(key=lambda at: heads[at].name not in LABELS)
    keys += [at for at, head in enumerate(heads) if head.quantity in {"image_size", "batch"} and not head.aside]
    for row, own in enumerate(printed[label]):
        if not own and not (names and keys):
            raise DataError(f"{name}: row {row}: {heads[label].text or 'Model'} is empty; give the row a name")
        names.append(own or names[-1])
    keys += [at for at, head in enumerate(heads) if at not in keys and not (head.quantity or head.derived or head.aside or at == label)]
    used = []
    for at, cells in [(None, sections), *((at, printed[at]) for at in keys)]:
        longer = [f"{cell} {one}" if at is None and cell else f"{one} {cell}".strip() for one, cell in zip(names, cells, strict=True)]
        if len(set(names)) < len(names) and len(set(longer)) > len(set(names)):
            names = longer
            used += [] if at is None else [at]
    return names, used


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Names of which the second and later equal ones bear a number."""
    seen: Counter[str] = Counter()
    labels = []
    for one in names:
        seen[one] += 1
        labels.append(one if seen[one] == 1 else f"{one} ({seen[one]})")
    return tuple(labels)


def _quantities(reader: "_Reader") -> dict[Quantity, int]:
    """The column of each quantity: the one whose heading says nothing more, else one of those that all say the same more."""
    known = [(at, head) for at, head in enumerate(reader.heads) if head.quantity and not head.aside and reader.units(at)]
    more = {head.more for _, head in known if head.more}
    chosen: dict[Quantity, int] = {}
    for at, head in sorted(known, key=lambda one: (bool(one[1].more), one[0])):
        if head.quantity is not None and (not head.more or len(more) == 1):
            chosen.setdefault(head.quantity, at)
    return dict(sorted(chosen.items(), key=lambda one: one[1]))


# --------------------------------------------------------------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class _Number:
    """A printed number before its decimal sign is known."""

    row: int
    sign: str
    digits: str
    power: str
    unit: str


class _Reader:
    """Reads the numbers of a table's columns, once it is known which sign parts the decimals.

    Raises:
        DataError: a cell is no number, or the sign is ambiguous.
    """

    def __init__(
        self, name: str, separator: str, decimal: Point | None, heads: Sequence[Heading], printed: Sequence[Sequence[str]]
    ) -> None:
        self.name, self.heads, self.printed = name, heads, printed
        # What is wrong with a column, which matters if the column is read.
        self.wrong: dict[int, str] = {}
        self.numbers = {at: list(self._numbers(at)) for at, head in enumerate(heads) if head.quantity or head.derived}
        self.decimal = {"point": ".", "comma": ","}.get(decimal or "") or self._decimal(separator)

    def _no_number(self, at: int, row: int) -> str:
        text = self.printed[at][row]
        shown = repr(text if len(text) <= 40 else f"{text[:40]}...")
        told = f"{shown} is not a number such as 12.50 (at most {_MOST_DIGITS} digits), nor N/A"
        return f"{self.place(at, row)}: {told}; # before the heading leaves the column out"

    def place(self, at: int, row: int) -> str:
        """A cell's place in messages."""
        return f"{self.name}: row {row}, {self.heads[at].text}"

    def units(self, at: int) -> Units:
        """The units of a column whose unit is known, of the heading or of its cells; else none."""
        head = self.heads[at]
        units = COMPARED if head.derived else head.units
        numbers = self.numbers.get(at, [])
        if units is head.units and "" not in units and "g" in units and not head.unit and not any(number.unit for number in numbers):
            whole = all(number.digits.isdigit() and int(number.digits) >= _FEWEST_PARAMETERS for number in numbers)
            return {**units, "": Fraction(1)} if whole and numbers else {}
        given = {number.unit or head.unit for number in numbers} or {head.unit}
        return units if given <= set(units) else {}

    def _numbers(self, at: int) -> Iterator[_Number]:
        head = self.heads[at]
        for row, text in enumerate(self.printed[at]):
            bare = _pixels(text) if head.units is PIXELS else _REMARK.sub("", text.strip(_MARKS)).strip(_MARKS)
            bare = bare.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")
            # A bound, about so much, or words are no value.
            if not re.search("[0-9]", bare) or bare[0] in "<>~\N{ALMOST EQUAL TO}" or bare[0].isalpha():
                continue
            found = _PRINTED.fullmatch(bare)
            unit = "" if found is None else found[4].strip().lower()
            allowed = {"", *(COMPARED if head.derived else head.units)}
            if found is None or (found[1] == "-" and not head.derived) or unit not in allowed or len(found[2]) > 2 * _MOST_DIGITS:
                self.wrong.setdefault(at, self._no_number(at, row))
                continue
            yield _Number(row, found[1], found[2], found[3] or "", unit)

    def _decimal(self, separator: str) -> str:
        """The sign that parts decimals: the one that only can."""
        told: dict[str, str] = {}
        open_: list[tuple[int, _Number]] = []
        for at, numbers in self.numbers.items():
            if self.heads[at].units is PIXELS or (self.heads[at].aside and not self.heads[at].derived):
                continue
            for number in numbers:
                sign = _decimal_sign(number.digits)
                if sign == "?" and self.heads[at].units is SHARE:
                    # In thousands it would be no rate.
                    sign = "," if "," in number.digits else "."
                if sign == "?":
                    open_.append((at, number))
                elif sign:
                    told.setdefault(sign, f"{number.digits!r} in row {number.row}, {self.heads[at].text}")
        if len(told) > 1:
            raise DataError(f"{self.name}: {told['.']} has a decimal point, {told[',']} a decimal comma; write one of them throughout")
        if told or not open_:
            return next(iter(told), ".")
        at, number = open_[0]
        if separator not in {";", "\t"} and not any(self._beside_whole(at, number) for at, number in open_):
            return "."
        plain = re.sub("[.,]", "", number.digits)
        raise DataError(
            f"{self.place(at, number.row)}: {number.digits} may be {number.digits.replace(',', '.')} or {plain}, and no number tells: "
            f"give --decimal point or --decimal comma"
        )

    def _beside_whole(self, at: int, number: _Number) -> bool:
        """Whether a number may be one of thousands, as others of its column are whole numbers of some size, or has a comma."""
        return "," in number.digits or any(len(other.digits) > 2 and other.digits.isdigit() for other in self.numbers[at])

    def cells(self, at: int) -> list[Cell]:
        """The numbers of a column; a missing one is left out."""
        if at in self.wrong:
            raise DataError(self.wrong[at])
        head, numbers, units = self.heads[at], self.numbers[at], self.units(at)
        texts = {number.row: self._plain(at, number) for number in numbers}
        unit = head.shown
        if units is SHARE and not head.unit and not any(number.unit for number in numbers):
            unit = "%" if any(Fraction(text) > 1 for text in texts.values()) else ""
        cells = []
        significant = max(map(_significant, texts.values()), default=0)
        # A share is a quotient of counts: what single precision makes of it can be computed (audit/readings.py).
        noise = Fraction(0) if units is SHARE or units is COMPARED else _SINGLE
        for number in numbers:
            text, own = texts[number.row], number.unit or (head.unit if unit == head.shown else unit)
            value = Fraction(text) * units[own]
            if units is SHARE and value > 1:
                raise DataError(f"{self.place(at, number.row)}: {text} is above 100 %")
            if units is COUNT and (value < 1 or value.denominator > 1):
                raise DataError(f"{self.place(at, number.row)}: {text} is no whole number of images from 1 on")
            step = _step(text.lstrip("-"), significant, noise)
            cells.append(Cell(number.row, head.text, text, units[own], step=step, unit=number.unit or unit))
        if not any(number.unit for number in numbers):
            self._ask_of_shares(at, cells)
        return cells

    def beside(self, at: int) -> dict[int, Cell]:
        """The numbers by row of a column that is compared with others only; none if something is wrong with it."""
        try:
            return {cell.row: cell for cell in self.cells(at)} if self.units(at) else {}
        except DataError:
            return {}

    def _ask_of_shares(self, at: int, cells: Iterable[Cell]) -> None:
        """Several rates of at most 1 % may be shares of 1 under a heading in per cent: asked, as few models learn nothing."""
        given = [cell for cell in cells if cell.exact]
        if self.heads[at].quantity in {"top1", "top5", "f1"} and self.heads[at].unit == "%" and len(given) > 1:
            most = max(given, key=lambda cell: cell.exact)
            if _LEARNED <= Fraction(most.text) <= 1:
                raise DataError(
                    f"{self.place(at, most.row)}: {most.text} is the highest rate: a share of 1, or per cent? Take (%) out of the heading, "
                    f"or write % into the cells"
                )

    def _plain(self, at: int, number: _Number) -> str:
        """The number with a point and no separator."""
        group = "." if self.decimal == "," else ","
        pattern = rf"(\d{{1,3}}(?:[{group}' \N{{RIGHT SINGLE QUOTATION MARK}}]\d{{3}})+|\d*)(?:[{self.decimal}](\d+))?"
        found = re.fullmatch(pattern, number.digits)
        whole, behind = (re.sub(r"\D", "", found[1]) or "0", found[2] or "") if found else ("", "")
        if found is None or max(len(whole), len(behind)) > _MOST_DIGITS:
            raise DataError(self._no_number(at, number.row))
        text = f"{whole}.{behind}" if behind else whole
        return ("-" if number.sign == "-" else "") + (f"{Decimal(text + number.power):f}" if number.power else text)


def _pixels(text: str) -> str:
    """One side of square images: 224, 224x224, 3 x 224 x 224; else nothing."""
    sides = re.findall(r"\d{1,5}", text)
    return sides[-1] if sides and len(sides) <= 3 and len(set(sides[-2:])) == 1 else ""


def _decimal_sign(digits: str) -> str:
    """The sign that parts the decimals of a printed number; "": there is none; "?": it may also part thousands."""
    signs = [character for character in digits if character in ".,"]
    if not signs:
        return ""
    if len(signs) > 1:
        # The last of two signs; a sign that is there twice parts thousands, and the other one decimals.
        return signs[-1] if len(set(signs)) > 1 else "." if signs[0] == "," else ","
    head, _, tail = digits.partition(signs[0])
    return "?" if len(tail) == 3 and 1 <= len(head) <= 3 and head[0] != "0" else signs[0]


def _significant(text: str) -> int:
    """Significant digits of a printed number; zeros at the end of a whole number are taken for none."""
    text = text.lstrip("-")
    return len(text.replace(".", "").lstrip("0") if "." in text else text.strip("0"))


def _step(text: str, significant: int, noise: Fraction) -> Fraction:
    """The last digit of a number that counts, in a column whose numbers have at most `significant` digits.

    1230 in a column of three significant digits is any number from 1225 to 1235. `noise` is a share of the number below which no
    digit counts.
    """
    leading = len(text.partition(".")[0].lstrip("0"))
    by_digits = Fraction(10) ** (leading - significant) if leading else Fraction(0)
    return max(Fraction(1, 10 ** len(text.partition(".")[2])), by_digits, Fraction(text) * noise)
