"""What a check of a published table says: a verdict on some of its cells, in one sentence and as numbers."""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, FiniteFloat

from lowbit_vit.analysis.audit.table import Cell
from lowbit_vit.schema.plan import Frozen

Verdict = Literal[
    "holds",
    "exact",
    "contradicts itself",
    "impossible",
    "understated",
    "confounded",
    "underspecified",
    "noted",
    "suspicious",
    "not supported",
    "underpowered",
    "not checked",
]
# No fault of the table; "noted", which sound tables have as well, and "not checked" are none either.
GOOD: tuple[Verdict, ...] = ("holds", "exact")
# What no honest reading of the table allows; every other fault is a doubt, or a gap in what is stated.
HARD: tuple[Verdict, ...] = ("impossible", "contradicts itself")


class Finding(Frozen):
    """One result of one check."""

    check: str = Field(description="the check's name, one of CHECKS")
    rows: tuple[int, ...] = Field(description="rows of the table that it is about, from 0; empty: the table as a whole")
    columns: tuple[str, ...] = Field(description="headings as printed")
    verdict: Verdict
    words: str = Field(description="one sentence, with the numbers")
    numbers: dict[str, FiniteFloat] = Field(default={}, description="the same numbers, units in the names; p: chance after correction")

    @property
    def fault(self) -> bool:
        """Whether it speaks against the table."""
        return self.verdict not in (*GOOD, "noted", "not checked")

    @property
    def hard(self) -> bool:
        """Whether no honest reading of the table allows it."""
        return self.verdict in HARD


def about(cells: Iterable[Cell], /, *, verdict: Verdict, words: str, **numbers: float) -> Finding:
    """A finding on these cells; rows in the table's order, columns in the order of the cells. `Check` fills in its name."""
    cells = list(cells)
    return Finding(
        check="",
        rows=tuple(sorted({cell.row for cell in cells})),
        columns=tuple(dict.fromkeys(cell.heading for cell in cells)),
        verdict=verdict,
        words=words,
        numbers={name: float(number) for name, number in numbers.items()},
    )


def lacks(*needs: str) -> Finding:
    """The finding of a check that lacks its input."""
    return about((), verdict="not checked", words=f"not checked: needs {' and '.join(needs)}")
