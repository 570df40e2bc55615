"""Checks of columns that were computed from others: speedup, reduction, improvement, error, energy.

Which formula a column follows is not asked but found: each is tried on all rows, with each column and row that may be compared with.
The one that gives most of the printed numbers is named, if as many would hardly agree by chance. Only then can a cell be wrong.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import get_args

from lowbit_vit.analysis.audit.check import LEVEL, Finding, Verdict, about, at_least, check
from lowbit_vit.analysis.audit.context import Case
from lowbit_vit.analysis.audit.headings import Quantity, Rate, Time
from lowbit_vit.analysis.audit.table import Cell, Column

# What people call a speedup, a reduction or an improvement. The plainest first, which is named where several give the same.
_FORMULAS: dict[str, Callable[[float, float], float]] = {
    "old / new": lambda old, new: old / new,
    "new / old": lambda old, new: new / old,
    "(old - new) / old": lambda old, new: (old - new) / old,
    "(new - old) / old": lambda old, new: (new - old) / old,
    "new - old": lambda old, new: new - old,
    "old - new": lambda old, new: old - new,
    "(old - new) / new": lambda old, new: (old - new) / new,
    "1 + (old - new) / old": lambda old, new: 1 + (old - new) / old,
}
_ERROR = "100 % - rate"
_DIFFERENCES = ("new - old", "old - new")
# Formulas whose result is taken for another one's: said, and no fault.
_MISTAKEN = {"1 + (old - new) / old": "old / new", "(old - new) / new": "(old - new) / old"}
_COMPARED: tuple[Quantity, ...] = (*get_args(Time), "throughput", "size", "vram", *get_args(Rate))
_COMPARED += ("params", "macs", "flop", "power", "energy")
# A column follows a formula that gives this share of its numbers.
_USUAL = 0.8
# A number that is off by more than the last of these was not measured in another pass; that it is wrong takes so many others that follow.
_OTHERS, _OTHERS_SHARE, _FAR = 5, 0.9, 0.01
# Chance at which a formula is named that gives all numbers, and the readings that have half of the weight.
_NAMED, _PLAIN = 0.05, 16
_LITTLE = 1e-3
# Rounded twice, a number is off by up to this share of its last digit.
_TWICE = 0.1
# Formulas that differ by so much in a cell show it as an example.
_SEEN = 0.1
# Rows near by among which the one that is compared with is looked for.
_NEAR = 64


@dataclass(frozen=True)
class _Told:
    """What a formula gives for a row, from these cells: the value, and the least and the most that their rounding allows."""

    cells: tuple[Cell, ...]
    low: float
    value: float
    high: float
    # By how much the value changes if a cell does by 100 %: a small reduction is a difference of two large numbers.
    sway: float


@dataclass(frozen=True)
class _Reading:
    """A way in which a column may have been computed: by one of _FORMULAS, or in words of its own."""

    formula: str
    # With the columns and rows that it takes.
    words: str
    # Of the printed number.
    scale: float
    # By row.
    told: Mapping[int, _Told]
    # Whether the further column, which is the old one as a rule, is the new one.
    turned: bool = False

    @property
    def plainness(self) -> tuple[bool, int]:
        """Where it stands among the readings: plainer ones are tried first, and named where several give the same."""
        return self.turned, [*_FORMULAS, self.formula].index(self.formula)

    @property
    def says(self) -> str:
        """The formula with what it takes."""
        return f"{self.formula} ({self.words})" if self.formula in _FORMULAS else self.words

    def off(self, cell: Cell) -> float | None:
        """By what share a cell would have to change, beyond rounding, to give a printed number; None where the formula says nothing."""
        told = self.told.get(cell.row)
        if told is None:
            return None
        printed, unit = float(cell.text) * self.scale, float(cell.step) * self.scale
        # Rounded, rounded twice, or truncated towards zero.
        low = printed - (0.5 + _TWICE) * unit if printed >= 0 else printed - unit
        high = printed + unit if printed >= 0 else printed + (0.5 + _TWICE) * unit
        gap = max(told.low - high, low - told.high) - 1e-9 * abs(printed)
        return max(0.0, gap) / max(told.sway, 1e-12)

    def chance(self, cell: Cell, spread: float) -> float:
        """Chance that a number somewhere in `spread` would agree."""
        told = self.told[cell.row]
        return min(1.0, (told.high - told.low + (1.5 + _TWICE) * float(cell.step) * self.scale) / (spread * self.scale))


def _bounds(function: Callable[..., float], cells: tuple[Cell, ...]) -> _Told:
    """All that a formula may give: each is monotonic in each of its numbers."""
    corners = [function(*corner) for corner in product(*((float(cell.low), float(cell.most)) for cell in cells))]
    values = [cell.value for cell in cells]
    value = function(*values)
    sways = [abs(function(*values[:at], values[at] * (1 + _LITTLE), *values[at + 1 :]) - value) / _LITTLE for at in range(len(values))]
    return _Told(cells, min(corners), value, max(corners), max(sways))


@check("derived")
def comparisons(case: Case) -> Iterator[Finding]:
    """Does each speedup, reduction or improvement follow from the two cells that it compares, and by which formula?"""
    for column in case.table.columns:
        if column.heading.derived and column.cells:
            yield from _followed(case, column.heading.text, list(column.cells.values()), list(_comparisons(case, column)))


@check("error")
def errors(case: Case) -> Iterator[Finding]:
    """An error rate is 100 % - Top-1."""
    for pairs in (case.table.together("top1", "top1_error"), case.table.together("top5", "top5_error")):
        if pairs:
            told = {wrong.row: _bounds(lambda one: 1 - one, (right,)) for right, wrong in pairs}
            cells = [wrong for _, wrong in pairs]
            reading = _Reading(_ERROR, f"100 % - {pairs[0][0].heading}", float(cells[0].scale), told)
            yield from _followed(case, cells[0].heading, cells, [reading])


@check("energy")
def energies(case: Case) -> Iterator[Finding]:
    """Energy is power x time, of a forward or of one image."""
    cells, readings = case.table.column("energy"), []
    taken: dict[str, tuple[tuple[Quantity, ...], Callable[..., float]]] = {
        "{0} x {1}": (("power", "mean"), lambda watt, ms: watt * ms / 1000),
        "{0} / {1}": (("power", "throughput"), lambda watt, rate: watt / rate),
        "{0} x {1} / {2}": (("power", "mean", "batch"), lambda watt, ms, batch: watt * ms / 1000 / batch),
    }
    for words, (quantities, function) in taken.items():
        rows = case.table.together(*quantities)
        told = {row[0].row: _bounds(function, row) for row in rows if all(cell.low > 0 for cell in row)}
        if cells and told:
            headings = [cell.heading for cell in rows[0]]
            readings.append(_Reading(words, words.format(*headings), float(cells[0].scale), told))
    if readings:
        yield from _followed(case, cells[0].heading, cells, readings)


def _comparisons(case: Case, column: Column) -> Iterator[_Reading]:
    """All ways in which a column may compare: two columns of one quantity in one row, or two rows of one column."""
    percent = any(cell.unit == "%" for cell in column.cells.values())
    bare = not any(cell.unit for cell in column.cells.values())
    named = [column.heading.of] if column.heading.of and case.table.column(column.heading.of) else _COMPARED
    # Pairs of an old and a new cell, by words and whether they are turned.
    pairs: dict[tuple[str, bool], list[tuple[Cell, Cell]]] = {}
    for quantity in named:
        own = {cell.row: cell for cell in case.table.column(quantity)}
        heading = case.table.headings.get(quantity, "")
        for other in (other for other in case.table.columns if other.heading.quantity == quantity):
            both = [(other.cells[row], own[row]) for row in own if row in other.cells]
            pairs[f"old {other.heading.text}, new {heading}", False] = both
            pairs[f"old {heading}, new {other.heading.text}", True] = [(cell, beside) for beside, cell in both]
        for words, base in _bases(case, column).items():
            pairs[f"{heading}, old {words}", False] = [
                (own[base[row]], own[row]) for row in own if base.get(row) in own and base[row] != row
            ]
    for (words, turned), found in pairs.items():
        usable = [pair for pair in found if all(cell.low > 0 for cell in pair)]
        for formula, function in _FORMULAS.items() if usable else ():
            told = {new.row: _bounds(function, (old, new)) for old, new in usable}
            scales = (0.01,) if percent else (1.0, 0.01) if bare else (1.0,)
            for scale in (float(usable[0][1].scale),) if formula in _DIFFERENCES else scales:
                yield _Reading(formula, words, scale, told, turned)


def _bases(case: Case, column: Column) -> dict[str, dict[int, int]]:
    """For each row the one that it may be compared with, by how that one is found."""
    rows, words = case.table.rows, case.table.words
    plain = [row for row in rows if row not in column.cells or column.cells[row].value in {0, 1}]
    reference = 0 if case.context.reference is None else case.table.labels.index(case.context.reference)
    bases = {f"in {case.table.labels[row]}": dict.fromkeys(rows, row) for row in sorted({0, reference})}
    if 1 < len(plain) < len(rows):
        nearest = {row: sorted(plain, key=lambda base: (abs(base - row), base > row))[:_NEAR] for row in rows if row not in plain}
        bases["in the row without one that is named most alike"] = {
            row: max(near, key=lambda base: (len(words[base] & words[row]), -abs(base - row), base < row)) for row, near in nearest.items()
        }
    bases["in the row above"] = {row: row - 1 for row in rows if row}
    return bases


def _followed(case: Case, heading: str, cells: list[Cell], readings: list[_Reading]) -> Iterator[Finding]:
    """The formula that a column follows, and the cells that do not follow it."""
    best: tuple[int, _Reading, list[Cell]] | None = None
    fits: _Reading | None = None
    for at, reading in enumerate(sorted(readings, key=lambda one: one.plainness)):
        # Where nothing changes, every formula agrees.
        told = [cell for cell in cells if cell.row in reading.told and float(cell.text) * reading.scale not in {0.0, 1.0}]
        agree = sum(not reading.off(cell) for cell in told)
        if not told or agree < _USUAL * len(told) or (best is not None and agree <= best[0]):
            continue
        values = [float(cell.text) for cell in told]
        spread = max(max(values) - min(values), max(map(abs, values)) / 10)
        share = sum(reading.chance(cell, spread) for cell in told) / len(told)
        # Half of the weight of the search lies on the plainest readings. To accuse takes more than to name.
        searched = min(len(readings), 2 * (_PLAIN if at < _PLAIN else len(readings)))
        if searched * at_least(agree, of=len(told), share=share) <= (_NAMED if agree == len(told) else LEVEL):
            best = agree, reading, told
        elif fits is None and agree == len(told):
            fits = reading
    if best is None:
        words = f"{heading}: no formula that is known gives its numbers from other columns"
        if fits is not None:
            words = f"{heading} fits {fits.says}, in too few rows to be evidence"
        yield about(cells, verdict="not checked", words=words, cells=len(cells), readings=len(readings))
        return
    agree, reading, told = best
    # What is a little off was computed from another pass; an error rate has no other.
    far = 0.0 if reading.formula == _ERROR else _FAR
    wrong = [cell for cell in told if (reading.off(cell) or 0.0) > far]
    follow = [cell for cell in cells if reading.off(cell) == 0.0]
    yield _formula(heading, reading, follow, rows=sum(cell.row in reading.told for cell in cells), near=len(told) - agree - len(wrong))
    for cell in wrong:
        yield _misfit(case, cell, reading, agree=agree, rows=len(told), readings=readings)


def _formula(heading: str, reading: _Reading, agree: list[Cell], *, rows: int, near: int) -> Finding:
    words = f"{heading} is {reading.says} in {len(agree)} of {rows} rows" + (f", and within {_FAR:.0%} in {near} more" if near else "")
    numbers: dict[str, float] = {"rows": rows, "agree": len(agree)}
    if reading.formula not in _MISTAKEN:
        return about(agree, verdict="exact", words=words, **numbers)
    other = _MISTAKEN[reading.formula]
    told = {cell: reading.told[cell.row] for cell in agree}
    usual = {cell: _FORMULAS[other](*(one.value for one in told[cell].cells)) for cell in agree}
    off = {cell: abs(usual[cell] / told[cell].value - 1) if told[cell].value else 0.0 for cell in agree}
    furthest = next((cell for cell in agree if off[cell] > _SEEN), max(agree, key=lambda cell: off[cell]))
    words += f": {furthest.text} where {other} is {usual[furthest] / reading.scale:.2f}; a way to count, and no fault"
    return about(agree, verdict="noted", words=words, **numbers, printed=float(furthest.text), usual=usual[furthest] / reading.scale)


def _misfit(case: Case, cell: Cell, reading: _Reading, *, agree: int, rows: int, readings: list[_Reading]) -> Finding:
    """A cell that does not follow, and the other readings of it."""
    told = reading.told[cell.row]
    others = [other for other in readings if other.off(cell) == 0.0 and other.words == reading.words]
    says = reading.formula if reading.formula in _FORMULAS else reading.words
    words = (
        f"{case.label(cell)}: {cell.heading} {cell.text} does not follow from {' and '.join(one.text for one in told.cells)}: {says} is "
        f"{told.value / reading.scale:.4g} ({told.low / reading.scale:.4g} to {told.high / reading.scale:.4g} before rounding), as in "
        f"{agree} of {rows} rows"
    )
    sure = agree >= max(_OTHERS, _OTHERS_SHARE * rows)
    verdict: Verdict = "contradicts itself" if sure and not others and not _otherwise(case, cell, reading) else "suspicious"
    words += f"; {others[0].formula} would give it" if others else ": they cannot all be right" if verdict == "contradicts itself" else ""
    numbers = {"printed": float(cell.text), "computed": told.value / reading.scale, "agree": agree, "rows": rows}
    return about((*told.cells, cell), verdict=verdict, words=words, **numbers)


def _otherwise(case: Case, cell: Cell, reading: _Reading) -> bool:
    """Whether another row as the one that is compared with gives the number."""
    old, *new = reading.told[cell.row].cells
    quantity = next((what for what, heading in case.table.headings.items() if heading == old.heading), None)
    if reading.formula not in _FORMULAS or len(new) != 1 or old.row == cell.row or quantity is None:
        return False
    tried = [(other, new[0]) for other in case.table.column(quantity) if other.row != cell.row and other.low > 0]
    readings = (_Reading("", "", reading.scale, {cell.row: _bounds(_FORMULAS[reading.formula], pair)}) for pair in tried)
    return any(other.off(cell) == 0.0 for other in readings)
