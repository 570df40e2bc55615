"""A published table of results, as printed: every cell keeps its digits, because rounding decides what can be concluded.

Values are exact fractions in one unit a dimension: ms, bytes, images/s, images, share of 1, W, J.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from types import MappingProxyType

from lowbit_vit.analysis.audit.headings import BINARY, Heading, Quantity


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
