"""What a check of a published table says: a verdict on some of its cells, in one sentence and as numbers."""

from collections.abc import Iterable, Mapping
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
    "suspicious",
    "not supported",
    "underpowered",
    "not checked",
]
# What is no fault of the table: two that agree, and one that could not be asked.
GOOD: tuple[Verdict, ...] = ("holds", "exact")


class Finding(Frozen):
    """One result of one check."""

    check: str = Field(description="the check's name, one of CHECKS")
    rows: tuple[int, ...] = Field(description="rows of the table that it is about, from 0; empty: the table as a whole")
    columns: tuple[str, ...] = Field(description="headings as printed")
    verdict: Verdict
    words: str = Field(description="one sentence, with the numbers")
    numbers: dict[str, FiniteFloat] = Field(default={}, description="the same numbers, units in the names")

    @property
    def fault(self) -> bool:
        """Whether it speaks against the table."""
        return self.verdict not in (*GOOD, "not checked")


def about(check: str, cells: Iterable[Cell], /, *, verdict: Verdict, words: str, **numbers: float) -> Finding:
    """A finding on these cells; rows in the table's order, columns in the order in which the cells come."""
    given = list(cells)
    return Finding(
        check=check,
        rows=tuple(sorted({cell.row for cell in given})),
        columns=tuple(dict.fromkeys(cell.heading for cell in given)),
        verdict=verdict,
        words=words,
        numbers={name: float(number) for name, number in numbers.items()},
    )


def not_checked(check: str, needs: Mapping[str, object]) -> list[Finding]:
    """A check that lacks its input says which: those of `needs` whose value is empty."""
    lacking = " and ".join(name for name, value in needs.items() if not value)
    return [Finding(check=check, rows=(), columns=(), verdict="not checked", words=f"not checked: needs {lacking}")]
