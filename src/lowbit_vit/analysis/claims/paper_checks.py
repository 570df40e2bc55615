"""Checks that need no run: the audit's findings, sentences against the table, sums, what is stated, and what agrees.

Every number comes from the paper's table, from the claim's own parameters, or from the audit of that table.
"""

from collections.abc import Callable
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from lowbit_vit.analysis.audit import CHECKS, GOOD
from lowbit_vit.analysis.claims.context import Check, ClaimContext, Outcome, bounds, within
from lowbit_vit.schema.claim import Cell, Verdict
from lowbit_vit.schema.plan import Frozen

# What findings of the audit are called: by its checks, one of which says two things.
RULES = (*CHECKS, "size-constants")
# The audit's faults, gravest first.
GRAVITY: tuple[Verdict, ...] = (
    "impossible",
    "contradicts itself",
    "understated",
    "confounded",
    "not supported",
    "underpowered",
    "suspicious",
    "underspecified",
)
# Of one or two numbers, and the sum in words.
_FORMULAS: dict[str, tuple[Callable[..., float], str]] = {
    "quotient": (lambda one, other: one / other, "{0} / {1} = {value}"),
    "difference": (lambda one, other: one - other, "{0} - {1} = {value}"),
    "percent less": (lambda one, other: 100 * (1 - one / other), "{0} is {value} % less than {1}"),
    "mib of 4-byte words": (lambda words: 4 * words / 2**20, "4 x {0} bytes = {value} MiB"),
}


class PrintCheck(Check):
    """A check of what is printed, which no run can mend."""

    of_print: ClassVar[bool] = True


class AuditCheck(PrintCheck):
    """What the audit of the printed table finds by these of its checks: in the claim's own cell, else in rows and columns."""

    check: Literal["audit"]
    rules: tuple[str, ...] = Field(min_length=1, description="names of the audit's checks")
    rows: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _rules_exist(self) -> Self:
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown:
            raise ValueError(f"no audit check is called {unknown[0]!r}; there are: {', '.join(RULES)}")
        return self

    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome | None:
        """The gravest finding that the check asks about; None where the audit found nothing, which proves nothing either."""
        rows, columns = (self.rows, self.columns) if cell is None else ((cell.row,), (cell.column,))
        found = [
            finding
            for finding in context.audit
            if finding.check in self.rules
            and (rows is None or set(finding.rows) & set(rows))
            and (columns is None or set(finding.columns) & set(columns))
        ]
        faults = [finding for finding in found if finding.fault]
        if faults:
            gravest = next(verdict for verdict in GRAVITY if any(finding.verdict == verdict for finding in faults))
            return Outcome(gravest, _sentence(next(finding.words for finding in faults if finding.verdict == gravest)))
        good = [finding for finding in found if finding.verdict in GOOD]
        return Outcome("holds", _sentence(good[0].words)) if good else None


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}" + ("" if words.endswith(".") else ".")


class TableCheck(PrintCheck):
    """A sentence against the table that it sums up: one cell over another of the same column."""

    check: Literal["table"]
    column: str
    of_row: int = Field(ge=0)
    to_row: int = Field(ge=0)
    at_least: float | None = None
    at_most: float | None = None

    @property
    def cells(self) -> tuple[Cell, Cell]:
        """The two cells."""
        return Cell(row=self.of_row, column=self.column), Cell(row=self.to_row, column=self.column)

    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome:
        """`holds` where the quotient of the two cells lies in the bounds, else `contradicts itself`."""
        one, other = (float(context.printed(place).text) for place in self.cells)
        ratio = one / other
        inside = within(ratio, self.at_least, self.at_most)
        allowed = f"{'within' if inside else 'outside'} {bounds(self.at_least, self.at_most)}"
        return Outcome("holds" if inside else "contradicts itself", f"{self.column}: {one:g} / {other:g} = {ratio:.3f}, {allowed}.")


class SumCheck(PrintCheck):
    """Numbers that are to follow from each other: a formula over `numbers` gives `printed` within half of its last digit."""

    check: Literal["sum"]
    formula: Literal["quotient", "difference", "percent less", "mib of 4-byte words"]
    numbers: tuple[float, ...] = Field(min_length=1)
    printed: float
    digits: int = Field(ge=0, description="decimals of `printed`")

    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome:
        """`holds` where the formula gives the printed number to its last digit, else `contradicts itself`."""
        formula, words = _FORMULAS[self.formula]
        value = formula(*self.numbers)
        agrees = abs(value - self.printed) <= 0.5 * 10**-self.digits + 1e-9
        computed = words.format(*(f"{number:,.15g}" for number in self.numbers), value=f"{value:,.{self.digits + 1}f}")
        return Outcome("holds" if agrees else "contradicts itself", f"{computed}; printed: {self.printed:,.{self.digits}f}.")


class StatedCheck(PrintCheck):
    """Whether the paper states what a repetition needs, or shows what a conclusion rests on: key `stated` of the ledger."""

    check: Literal["stated"]
    what: Literal["method", "result"] = Field(description="unstated, a method is underspecified and a conclusion not supported")
    needs: tuple[str, ...] = Field(min_length=1)

    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome:
        """`holds` where the paper states all that is needed, else `underspecified` or `not supported`, naming what is not there."""
        absent = ", ".join(need for need in self.needs if context.stated[need] is None)
        if absent:
            method = self.what == "method"
            return Outcome("underspecified" if method else "not supported", f"Not {'stated' if method else 'shown'}: {absent}.")
        places = dict.fromkeys(stated.place for need in self.needs if (stated := context.stated[need]) is not None)
        return Outcome("holds", f"Stated in {', '.join(places)}.")


class Statement(Frozen):
    """A value that somebody's words give to one thing."""

    quote: str = Field(min_length=1)
    place: str = Field(min_length=1)
    value: str = Field(min_length=1)
    source: str | None = Field(default=None, description="public address; null: the paper itself")


class AgreeCheck(PrintCheck):
    """Whether statements about one thing give it one value."""

    check: Literal["agree"]
    about: str = Field(min_length=1)
    statements: tuple[Statement, ...] = Field(min_length=2)

    def evaluate(self, context: ClaimContext, cell: Cell | None) -> Outcome:
        """`holds` where all statements give one value; else `contradicts itself`, or `not supported` where a source says otherwise."""
        told = "; ".join(f"{item.place}: {item.value}" for item in self.statements)
        inside = {item.value for item in self.statements if item.source is None}
        differ = len({item.value for item in self.statements}) > 1
        verdict: Verdict = "contradicts itself" if len(inside) > 1 else "not supported" if differ else "holds"
        return Outcome(verdict, _sentence(f"{self.about}: {told}"))


PaperCheck = AuditCheck | TableCheck | SumCheck | StatedCheck | AgreeCheck
