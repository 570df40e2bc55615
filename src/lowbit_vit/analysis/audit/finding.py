"""What a check of a published table says: a verdict on some of its cells, in one sentence and as numbers."""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, FiniteFloat
from scipy.special import bdtrc

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
# What no honest reading of the table allows; every other fault is a doubt, or a gap in what is stated.
HARD: tuple[Verdict, ...] = ("impossible", "contradicts itself")
# A check that goes by chance doubts a sound table at most this often, all its numbers and readings tried together.
LEVEL = 0.002


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
        return self.verdict not in (*GOOD, "not checked")

    @property
    def hard(self) -> bool:
        """Whether no honest reading of the table allows it."""
        return self.verdict in HARD


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


def at_least(count: int, *, of: int, share: float) -> float:
    """Chance that `count` or more of `of` have a property that each has with the chance `share`."""
    return float(bdtrc(count - 1, of, share)) if count else 1.0
