"""The audit of any published table of results: what its numbers, and what is known beside them, say about each other.

No check needs a run. Each is a function of the table and its context, in one module a family.
"""

from lowbit_vit.analysis.audit.checks import CHECKS, audit
from lowbit_vit.analysis.audit.context import Context, load_context
from lowbit_vit.analysis.audit.finding import GOOD, Finding, Verdict
from lowbit_vit.analysis.audit.table import ResultsTable, load_table

__all__ = ["CHECKS", "GOOD", "Context", "Finding", "ResultsTable", "Verdict", "audit", "load_context", "load_table"]
