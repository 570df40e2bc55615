"""The audit of any published table of results: what its numbers, and what is known beside them, say about each other.

No check needs a run. Each is a function of a case (the table and its context), in one module a family.
"""

from collections.abc import Sequence

from lowbit_vit.analysis.audit import accuracy, cells, compute, derived, latency, memory
from lowbit_vit.analysis.audit.check import GOOD, Check, Finding, Verdict
from lowbit_vit.analysis.audit.context import Case, Context, load_context
from lowbit_vit.analysis.audit.published import load_table, load_tables
from lowbit_vit.analysis.audit.table import ResultsTable

__all__ = ["CHECKS", "GOOD", "Case", "Context", "Finding", "ResultsTable", "Verdict", "audit", "load_context", "load_table", "load_tables"]

_MOST_NAMED = 30

# By name, in the order of the families and of each module; `size` also says `size-constants`.
CHECKS = {
    check.name: check
    for family in (cells, latency, accuracy, memory, compute, derived)
    for check in vars(family).values()
    if isinstance(check, Check)
}


def audit(table: ResultsTable, context: Context | None = None, *, before: Sequence[ResultsTable] = ()) -> tuple[Finding, ...]:
    """Every check's findings, in the order of CHECKS; a check that lacks its input says what it needs.

    Args:
        table: the one that findings are about.
        context: what is known beside it.
        before: other tables of the same results, whose cells must agree with its cells.

    Raises:
        ConfigError: the context names a row that the table does not have.
    """
    known = context or Context()
    case = Case(table.binary if known.megabyte == "MiB" else table, known, tuple(before))
    return (*_left_out(case), *(finding for check in CHECKS.values() for finding in check(case)))


def _left_out(case: Case) -> list[Finding]:
    """Columns that are not read, and rows that the context leaves out where it describes others."""
    found = []
    if case.table.unread:
        more = len(case.table.unread) - _MOST_NAMED
        words = f"not read: {', '.join(case.table.unread[:_MOST_NAMED])}" + (f" and {more} more" if more > 0 else "")
        found.append(Finding(check="columns", rows=(), columns=(), verdict="not checked", words=words))
    rows = tuple(row for row in case.table.rows if case.row(row) is None)
    if case.context.rows and rows:
        words = f"not checked: needs rows in the context for {', '.join(case.table.labels[row] for row in rows)}"
        found.append(Finding(check="rows", rows=rows, columns=(), verdict="not checked", words=words))
    unsized = tuple(row for row in case.table.rows if case.row(row) is not None and case.model(row) is None)
    if case.context.model is not None and unsized:
        named = ", ".join(case.table.labels[row] for row in unsized)
        words = f"not checked: needs model in the context's rows, as image sizes differ, for {named}"
        found.append(Finding(check="rows", rows=unsized, columns=(), verdict="not checked", words=words))
    return found
