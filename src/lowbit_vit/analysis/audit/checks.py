"""All checks in the order in which a reader would ask them."""

from collections.abc import Callable

from lowbit_vit.analysis.audit import accuracy, cells, compute, counts, latency, memory, twins
from lowbit_vit.analysis.audit.context import Context, check_labels
from lowbit_vit.analysis.audit.finding import Finding
from lowbit_vit.analysis.audit.table import ResultsTable

# By the name that their findings bear; `size` also says `size-constants`.
CHECKS: dict[str, Callable[[ResultsTable, Context], list[Finding]]] = {
    "missing": cells.missing,
    "zero": cells.zero,
    "repeated": cells.repeated,
    "digits": cells.digits,
    "batch-size": latency.batch_size,
    "slipped-digit": latency.slipped_digit,
    "percentile-order": latency.percentile_order,
    "mean-and-percentiles": latency.mean_within_percentiles,
    "top-5-order": accuracy.order,
    "split-size": counts.split_sizes,
    "hidden-images": counts.hidden_images,
    "whole-image": counts.smallest_difference,
    "resolution": accuracy.resolution,
    "negligible-gain": accuracy.negligible_gain,
    "frontier": accuracy.frontier,
    "f1-beside-top1": accuracy.f1_beside_top1,
    "published-accuracy": accuracy.published,
    "size": memory.sizes,
    "megabytes": memory.megabytes,
    "size-reduction": memory.size_reduction,
    "vram-weights": memory.weights_fit,
    "vram-batch": memory.batch_fits,
    "twin-memory": memory.twin_memory,
    "resident-models": memory.resident_models,
    "fits-already": memory.fits_already,
    "kernel-flop": compute.kernel_flop,
    "kernel-bytes": compute.kernel_bytes,
    "kernel-unit": compute.kernel_unit,
    "batch-flop": compute.claimed_batch_flop,
    "kernel-share": compute.kernel_share,
    "attention-flop": compute.attention_flop,
    "attention-gain": twins.attention_gain,
    "same-kernel": twins.same_kernel,
    "twin-latency": twins.twin_latency,
    "missing-baseline": twins.missing_baseline,
}


def audit(table: ResultsTable, context: Context | None = None) -> tuple[Finding, ...]:
    """Every check's findings, in the order of CHECKS; a check that lacks its input says what it needs.

    Raises:
        ConfigError: the context names a row that the table does not have.
    """
    known = Context() if context is None else context
    check_labels(table, known)
    read = table.binary if known.megabyte == "MiB" else table
    return (*_undescribed(read, known), *(finding for check in CHECKS.values() for finding in check(read, known)))


def _undescribed(table: ResultsTable, context: Context) -> list[Finding]:
    """Rows that the context passes over where it describes others: nothing that needs a format or dtype is asked of them."""
    rows = tuple(row for row in table.rows if context.row(table, row) is None)
    if not context.rows or not rows:
        return []
    words = f"not checked: needs rows in the context for {', '.join(table.labels[row] for row in rows)}"
    return [Finding(check="rows", rows=rows, columns=(), verdict="not checked", words=words)]
