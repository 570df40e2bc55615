"""A published table of results, as printed: every cell keeps its digits, because rounding decides what can be concluded.

Headings name a quantity and its unit, such as `Latency P95 (ms)` or `latency_p95_ms`. Values are exact fractions in one unit a
dimension: ms, bytes, images/s, images, share of 1.
"""

import csv
import difflib
import re
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from lowbit_vit.errors import DataError

Quantity = Literal[
    "size", "mean", "p50", "p95", "p99", "throughput", "vram", "cpu", "top1", "top5", "f1", "kernel", "attention", "images", "batch"
]
_TIME = {"s": Fraction(1000), "ms": Fraction(1), "us": Fraction(1, 1000), "µs": Fraction(1, 1000), "ns": Fraction(1, 10**6)}
_BYTES = {name: Fraction(size) for name, size in (("b", 1), ("kb", 10**3), ("mb", 10**6), ("gb", 10**9))}
_BYTES |= {"kib": Fraction(2**10), "mib": Fraction(2**20), "gib": Fraction(2**30)}
_RATE = dict.fromkeys(("img/s", "images/s", "imgs/s", "samples/s", "fps"), Fraction(1))
_SHARE = {"": Fraction(1), "%": Fraction(1, 100)}
_COUNT = {"": Fraction(1)}
_BINARY = {"kb": Fraction(2**10), "mb": Fraction(2**20), "gb": Fraction(2**30)}

# Names as they are met in tables, without unit, in lower case; the first is the one that messages suggest.
QUANTITIES: dict[Quantity, tuple[dict[str, Fraction], tuple[str, ...]]] = {
    "size": (_BYTES, ("model size", "size", "file size", "disk size", "size on disk")),
    "mean": (_TIME, ("latency", "mean latency", "latency mean", "average latency")),
    "p50": (_TIME, ("latency p50", "p50", "p50 latency", "median latency", "latency median")),
    "p95": (_TIME, ("latency p95", "p95", "p95 latency")),
    "p99": (_TIME, ("latency p99", "p99", "p99 latency")),
    "throughput": (_RATE, ("throughput",)),
    "vram": (_BYTES, ("peak vram", "vram", "peak memory", "peak gpu memory")),
    "cpu": (_TIME, ("cpu latency", "latency cpu")),
    "top1": (_SHARE, ("top 1 acc", "top 1 accuracy", "top 1", "top1", "accuracy")),
    "top5": (_SHARE, ("top 5 acc", "top 5 accuracy", "top 5", "top5")),
    "f1": (_SHARE, ("f1 score", "f1", "macro f1", "f1 macro")),
    "kernel": (_TIME, ("total cuda kernel time", "cuda kernel time", "kernel time", "total kernel time")),
    "attention": (_TIME, ("attention kernel time", "attention time")),
    "images": (_COUNT, ("images", "test images", "eval images", "number of images")),
    "batch": (_COUNT, ("batch size", "batch")),
}
# A float in single precision differs from its value by up to half of this: further digits are noise.
_SINGLE = Fraction(1, 2**22)
# `Latency (ms)` or `Latency [ms]`.
_BRACKETED = re.compile(r"(.*?)\s*[(\[]([^)\]]*)[)\]]")
LABELS = ("model", "name", "variant", "method", "arm")
NUMBERS = ("row", "index")
MISSING = ("", "n/a", "na", "nan", "none", "null", "-", "\N{EN DASH}", "\N{EM DASH}")


@dataclass(frozen=True)
class Cell:
    """One printed number.

    Attributes:
        row: from 0.
        heading: as printed.
        text: as printed.
        scale: unit of the heading in the unit of its dimension.
        step: the last digit that counts, in the heading's unit.
    """

    row: int
    heading: str
    text: str
    scale: Fraction
    step: Fraction

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
        """As printed, with the heading's unit."""
        bracketed = _BRACKETED.fullmatch(self.heading)
        return f"{self.text} {bracketed[2] if bracketed else _split(self.heading)[1]}".strip()

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
class ResultsTable:
    """A table with one row a model.

    Attributes:
        labels: name of each row, all different.
        headings: heading of each quantity that the table has.
        cells: those that hold a number, by row and quantity; a cell that is not here is printed as missing.
    """

    labels: tuple[str, ...]
    headings: MappingProxyType[Quantity, str]
    cells: MappingProxyType[tuple[int, Quantity], Cell]

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
        cells = {
            key: replace(cell, scale=_BINARY[unit]) for key, cell in self.cells.items() if (unit := _split(cell.heading)[1]) in _BINARY
        }
        return replace(self, cells=MappingProxyType({**self.cells, **cells}))


def load_table(path: Path) -> ResultsTable:
    """Read a CSV of results; a column whose heading starts with # is left out.

    Raises:
        DataError: the file, a heading, a unit or a cell is not what it should be; one line, with the nearest that is.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such table")
    try:
        lines = [[cell.strip() for cell in line] for line in csv.reader(path.read_text(encoding="utf-8-sig").splitlines())]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV in UTF-8: {error}") from None
    lines = [line for line in lines if any(line)]
    if len(lines) < 2:
        raise DataError(f"{path}: expected a line of headings and at least one row")
    headings, *rows = lines
    columns = _columns(path, headings)
    if "label" not in columns:
        raise DataError(f"{path}: no column with the models' names; call it Model")
    for row, line in enumerate(rows):
        if len(line) != len(headings):
            raise DataError(f"{path}: row {row}: {len(line)} cells under {len(headings)} headings")
    index = columns.pop("label")
    labels = [line[index] for line in rows]
    named = {what: headings[at] for what, at in columns.items() if what != "label"}
    cells: dict[tuple[int, Quantity], Cell] = {}
    for quantity, heading in named.items():
        printed = [line[columns[quantity]] for line in rows]
        cells |= {(cell.row, quantity): cell for cell in _cells(path, printed, heading=heading, units=QUANTITIES[quantity][0])}
    number = Counter(labels)
    twice = [label for label in labels if number[label] > 1 or not label]
    if twice:
        raise DataError(f"{path}: {headings[index]} {twice[0]!r} must be there and be there once; give each row its own name")
    return ResultsTable(labels=tuple(labels), headings=MappingProxyType(named), cells=MappingProxyType(cells))


def _columns(path: Path, headings: list[str]) -> dict[Quantity | Literal["label"], int]:
    """The position of each column that counts."""
    known: dict[Quantity | Literal["label"], int] = {}
    for index, heading in enumerate(headings):
        name, unit = _split(heading)
        if heading.startswith("#") or name in NUMBERS:
            continue
        what = "label" if name in LABELS else next((quantity for quantity, (_, names) in QUANTITIES.items() if name in names), None)
        if what is None:
            raise DataError(f"{path}: heading {heading!r} is not known{_nearest(name, unit)}; a heading that starts with # is left out")
        if what in known:
            raise DataError(f"{path}: heading {heading!r} is the second column of {what}; start one of the two with # to leave it out")
        if what != "label" and unit not in QUANTITIES[what][0]:
            units = [allowed for allowed in QUANTITIES[what][0] if allowed]
            said = f"unit {unit!r} is not known" if unit else "the unit is missing"
            raise DataError(f"{path}: heading {heading!r}: {said}; allowed: {', '.join(units)}; write such as {name} ({units[0]})")
        known[what] = index
    return known


def _split(heading: str) -> tuple[str, str]:
    """Name and unit of a heading, both in lower case: `Latency (ms)`, `latency [ms]`, `latency_ms`."""
    text = heading.lower().replace("\N{GREEK SMALL LETTER MU}", "\N{MICRO SIGN}").strip()
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed:
        return " ".join(re.findall(r"[a-z0-9#]+", bracketed[1])), bracketed[2].strip()
    words = re.findall(r"[a-zµ0-9#%]+", text)
    units = {unit for allowed, _ in QUANTITIES.values() for unit in allowed}
    if len(words) > 1 and words[-1] in units:
        return " ".join(words[:-1]), words[-1]
    return " ".join(words), ""


def _nearest(name: str, unit: str) -> str:
    """The known heading nearest to an unknown one, with the given unit if it has that one."""
    names = {known: (known, units) for units, names in QUANTITIES.values() for known in names}
    near = difflib.get_close_matches(name, [*names, *LABELS], n=1, cutoff=0.5)
    if not near:
        every = ", ".join(names[0] for _, names in QUANTITIES.values())
        return f"; known: model, {every}"
    units = [allowed for allowed in names[near[0]][1] if allowed] if near[0] in names else []
    shown = unit if unit in units else next(iter(units), "")
    return f" (did you mean {near[0]}{f' ({shown})' if shown else ''}?)"


def _cells(path: Path, printed: list[str], *, heading: str, units: dict[str, Fraction]) -> list[Cell]:
    """The numbers of a column; a missing one is left out."""
    given = {row: text for row, text in enumerate(printed) if text.lower() not in MISSING}
    scale = units[_split(heading)[1]]
    for row, text in given.items():
        place = f"{path}: row {row}, {heading}"
        if not re.fullmatch(r"\d{1,30}(\.\d{1,30})?", text):
            shown = text if len(text) <= 40 else f"{text[:40]}..."
            raise DataError(f"{place}: {shown!r} is not a number such as 12.50 (no separators, no sign, at most 30 digits), nor N/A")
        if units is _SHARE and Fraction(text) * scale > 1:
            least = "100 %" if "%" in heading else "1; if it is in percent, write (%) into the heading"
            raise DataError(f"{place}: {text} is above {least}")
        if units is _COUNT and (Fraction(text) < 1 or Fraction(text).denominator > 1):
            raise DataError(f"{place}: {text} is no whole number of images from 1 on")
    significant = max(map(_significant, given.values()), default=0)
    # A share is a quotient of counts: what single precision makes of it can be computed (audit/readings.py).
    noise = Fraction(0) if units is _SHARE else _SINGLE
    return [Cell(row, heading, text, scale, step=_step(text, significant, noise)) for row, text in given.items()]


def _significant(text: str) -> int:
    """Significant digits of a printed number; zeros at the end of a whole number are taken for none."""
    return len(text.replace(".", "").lstrip("0") if "." in text else text.strip("0"))


def _step(text: str, significant: int, noise: Fraction) -> Fraction:
    """The last digit of a number that counts, in a column whose numbers have at most `significant` digits.

    1230 in a column of three significant digits is any number from 1225 to 1235. `noise` is a share of the number below which no
    digit counts.
    """
    leading = len(text.partition(".")[0].lstrip("0"))
    by_digits = Fraction(10) ** (leading - significant) if leading else Fraction(0)
    return max(Fraction(1, 10 ** len(text.partition(".")[2])), by_digits, Fraction(text) * noise)
