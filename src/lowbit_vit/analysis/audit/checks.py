"""All checks in the order in which a reader would ask them."""

from collections.abc import Callable

from lowbit_vit.analysis.audit.context import Context, check_labels
from lowbit_vit.analysis.audit.finding import Finding
from lowbit_vit.analysis.audit.latency import batch_size, mean_within_percentiles, percentile_order, slipped_digit
from lowbit_vit.analysis.audit.table import ResultsTable

# By the name that their findings bear.
CHECKS: dict[str, Callable[[ResultsTable, Context], list[Finding]]] = {
    "batch-size": batch_size,
    "slipped-digit": slipped_digit,
    "percentile-order": percentile_order,
    "mean-and-percentiles": mean_within_percentiles,
}


def audit(table: ResultsTable, context: Context | None = None) -> tuple[Finding, ...]:
    """Every check's findings, in the order of CHECKS; a check that lacks its input says what it needs.

    Raises:
        ConfigError: the context names a row that the table does not have.
    """
    known = Context() if context is None else context
    check_labels(table, known)
    read = table.binary() if known.megabyte == "MiB" else table
    return tuple(finding for check in CHECKS.values() for finding in check(read, known))
