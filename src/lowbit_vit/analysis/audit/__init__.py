"""The audit of any published table of results: what its numbers, and what is known beside them, say about each other.

No check needs a run. Each is a function of a case (the table and its context), in one module a family.
"""

from lowbit_vit.analysis.audit import accuracy, cells, compute, counts, derived, latency, memory, twins
from lowbit_vit.analysis.audit.check import Check
from lowbit_vit.analysis.audit.context import Case, Context, load_context
from lowbit_vit.analysis.audit.finding import GOOD, Finding, Verdict
from lowbit_vit.analysis.audit.table import ResultsTable, load_table, load_tables

__all__ = ["CHECKS", "GOOD", "Case", "Context", "Finding", "ResultsTable", "Verdict", "audit", "load_context", "load_table", "load_tables"]

# By name, in the order of the families and of each module; `size` also says `size-constants`.
CHECKS = {
    check.name: check
    for family in (cells, latency, counts, accuracy, memory, compute, twins, derived)
    for check in vars(family).values()
    if isinstance(check, Check)
}


def audit(table: ResultsTable, context: Context | None = None) -> tuple[Finding, ...]:
    """Every check's findings, in the order of CHECKS; a check that lacks its input says what it needs.

    Raises:
        ConfigError: the context names a row that the table does not have.
    """
    known = context or Context()
    case = Case(table.binary if known.megabyte == "MiB" else table, known)
    return (*_undescribed(case), *(finding for check in CHECKS.values() for finding in check(case)))


def _undescribed(case: Case) -> list[Finding]:
    """Rows that the context leaves out where it describes others: no check that needs a format or dtype covers them."""
    rows = tuple(row for row in case.table.rows if case.row(row) is None)
    if not case.context.rows or not rows:
        return []
    words = f"not checked: needs rows in the context for {', '.join(case.table.labels[row] for row in rows)}"
    return [Finding(check="rows", rows=rows, columns=(), verdict="not checked", words=words)]
