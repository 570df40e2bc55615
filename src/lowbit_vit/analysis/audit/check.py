"""A check is one function from a case to findings, with its name and what it needs declared by the decorator `check`.

A finding is a verdict on some of the table's cells, in one sentence and as numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from pydantic import Field, FiniteFloat
from scipy.special import bdtrc

from lowbit_vit.analysis.audit.context import Case, Lacking
from lowbit_vit.analysis.audit.headings import QUANTITIES, Quantity
from lowbit_vit.analysis.audit.table import Cell
from lowbit_vit.schema.plan import Frozen

# In the order in which they are shown, the worst first.
Verdict = Literal[
    "impossible",
    "contradicts itself",
    "understated",
    "confounded",
    "not supported",
    "suspicious",
    "underpowered",
    "underspecified",
    "noted",
    "holds",
    "exact",
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


# A check that goes by chance doubts a sound table at most this often, all its numbers and readings tried together.
LEVEL = 0.002
_COLUMNS = {
    "size": "model size",
    "mean": "latency",
    "vram": "peak VRAM",
    "top1": "Top-1",
    "top5": "Top-5",
    "f1": "F1",
    "kernel": "kernel time",
    "attention": "attention kernel time",
}


@dataclass(frozen=True)
class Need:
    """What a check cannot do without.

    Attributes:
        name: in the message of a check that lacks it.
        given: whether a case has it, by truth.
    """

    name: str
    given: Callable[[Case], object]


@dataclass(frozen=True)
class Check:
    """A check with its name, what it needs, and the function that yields its findings."""

    name: str
    needs: tuple[Need, ...]
    find: Callable[[Case], Iterator[Finding]]

    def __call__(self, case: Case) -> list[Finding]:
        """The findings, or one that names what the case lacks."""
        lacking = [need.name for need in self.needs if not need.given(case)]
        try:
            found = [lacks(*lacking)] if lacking else list(self.find(case))
        except Lacking as need:
            found = [lacks(str(need))]
        return [finding.model_copy(update={"check": finding.check or self.name}) for finding in found]


def check(name: str, *needs: Quantity | Need | str) -> Callable[[Callable[[Case], Iterator[Finding]]], Check]:
    """Declare a check.

    Args:
        name: the name that its findings bear.
        needs: each a column's quantity, a key of the context such as `claims.batch_size`, or a Need; named in this order.
    """
    return lambda find: Check(name, tuple(map(_need, needs)), find)


def _need(key: Need | Any) -> Need:
    if isinstance(key, Need):
        return key
    if key in QUANTITIES:
        return Need(f"column {_COLUMNS.get(key, key)}", lambda case: case.table.column(key))
    if key == "model":
        return Need("model in the context", lambda case: any(case.model(row) for row in case.table.rows))
    return Need(f"{key} in the context", lambda case: attrgetter(key)(case.context))


def at_least(count: int, *, of: int, share: float) -> float:
    """Chance that `count` or more of `of` have a property that each has with the chance `share`."""
    return float(bdtrc(count - 1, of, share)) if count else 1.0
