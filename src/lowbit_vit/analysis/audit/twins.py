"""Checks of what changes between rows: is it one thing at a time, and does the change show?"""

from collections import defaultdict

from lowbit_vit.analysis.audit.context import Context
from lowbit_vit.analysis.audit.finding import Finding, about, not_checked
from lowbit_vit.analysis.audit.table import Cell, Quantity, ResultsTable

_LATENCIES: tuple[Quantity, ...] = ("mean", "p50", "p95", "p99")
# Runs of one kernel on one shape differ by less, as a ratio.
_SAME_KERNEL = 1.10


def missing_baseline(table: ResultsTable, context: Context) -> list[Finding]:
    """Low-bit rows compute in a dtype in which no row keeps its weights: its gain is credited to the low-bit weights."""
    rows = {index: row for index in table.rows if (row := context.row(table, index)) is not None}
    if not rows or context.reference is None:
        return not_checked("missing-baseline", {"rows in the context": context.rows, "reference in the context": context.reference})
    present = {row.compute for row in rows.values() if not row.quantized}
    lacking = {index: row.compute for index, row in rows.items() if row.quantized and row.compute not in present}
    if not lacking:
        return []
    dtypes = " and ".join(sorted(set(lacking.values())))
    reference = context.rows.get(context.reference)
    words = f"{len(lacking)} low-bit rows compute in {dtypes}, and no row has its weights in {dtypes}"
    words += f": {context.reference} is {reference.compute}, so dtype and weights change together" if reference else ""
    said = Finding(
        check="missing-baseline", rows=tuple(lacking), columns=(), verdict="confounded", words=words, numbers={"rows": len(lacking)}
    )
    return [said]


def attention_gain(table: ResultsTable, context: Context) -> list[Finding]:
    """What a fused kernel saves on attention: against its twin, not against a row of another dtype."""
    if not table.column("attention") or not context.twins or context.reference is None:
        return not_checked(
            "attention-gain",
            {
                "column attention kernel time": table.column("attention"),
                "twins in the context": context.twins,
                "reference in the context": context.reference,
            },
        )
    reference = table.cell(table.labels.index(context.reference), "attention")
    found = []
    for twin in context.twins:
        plain, fused = (table.labels.index(name) for name in (twin.plain, twin.fused))
        before, after = table.cell(plain, "attention"), table.cell(fused, "attention")
        if after is None or after.exact == 0 or (before is not None and before.exact > 0):
            continue
        found.append(_gain_without_twin(table, twin=(plain, fused), after=after, reference=reference))
    return found


def _gain_without_twin(table: ResultsTable, *, twin: tuple[int, int], after: Cell, reference: Cell | None) -> Finding:
    plain, fused = (table.labels[row] for row in twin)
    words = f"{fused}: its twin {plain} has no attention time"
    numbers: dict[str, float] = {}
    if reference is not None and reference.exact > 0:
        numbers["gain_over_reference"] = 1 - after.value / reference.value
        words += f", and {reference.text} of {table.labels[reference.row]} is of other dtypes too ({-numbers['gain_over_reference']:.0%})"
    cells = [cell for cell in (reference, after) if cell is not None]
    totals = [cell for row in twin if (cell := table.cell(row, "kernel")) is not None]
    # All but attention is the same work, so the totals tell what the plain kernel took.
    implied = totals[0].value - totals[1].value + after.value if len(totals) == len(twin) else 0.0
    if implied > 0:
        numbers |= {"implied_plain_us": 1e3 * implied, "gain_over_twin": 1 - after.value / implied}
        words += f"; by the two totals plain attention took {1e3 * implied:.2f} us: {-numbers['gain_over_twin']:.1%} with the fused kernel"
        cells += totals
    return about("attention-gain", cells, verdict="confounded", words=words, **numbers)


def same_kernel(table: ResultsTable, context: Context) -> list[Finding]:
    """One attention kernel in one dtype does one work, whatever the weights: its times agree."""
    groups: defaultdict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in table.column("attention"):
        row = context.row(table, cell.row)
        if row is not None and cell.exact > 0:
            groups[row.attention, row.compute].append(cell)
    if not groups:
        return not_checked(
            "same-kernel",
            {
                "column attention kernel time": table.column("attention"),
                "rows in the context": context.rows,
                "attention of a row above zero": groups,
            },
        )
    found = []
    for (kernel, dtype), cells in groups.items():
        least, most = min(cells, key=lambda cell: cell.exact), max(cells, key=lambda cell: cell.exact)
        ratio = most.value / least.value
        if ratio > _SAME_KERNEL:
            words = f"{kernel} in {dtype} takes {most.text} in one row and {least.text} in another, {ratio - 1:.0%} apart on the same work"
            found.append(about("same-kernel", cells, verdict="suspicious", words=words, ratio=ratio))
    return found


def twin_latency(table: ResultsTable, context: Context) -> list[Finding]:
    """A kernel that is said to be faster is not slower in every latency column."""
    columns = [quantity for quantity in _LATENCIES if quantity in table.headings]
    if not columns or not context.twins:
        return not_checked("twin-latency", {"a column of latency": columns, "twins in the context": context.twins})
    found = []
    for twin in context.twins:
        plain, fused = (table.labels.index(name) for name in (twin.plain, twin.fused))
        pairs = [(one, other) for quantity in columns if (one := table.cell(plain, quantity)) and (other := table.cell(fused, quantity))]
        if not pairs or pairs[0][0].exact == 0 or any(other.low <= one.high for one, other in pairs):
            continue
        one, other = pairs[0]
        words = f"{twin.fused} is slower than {twin.plain} in all {len(pairs)} latency columns: {one.heading} {one.text} to {other.text}"
        numbers = {"ratio": other.value / one.value, "columns": len(pairs)}
        kernels = table.cell(plain, "kernel"), table.cell(fused, "kernel")
        if kernels[0] is not None and kernels[1] is not None:
            saved = 1e3 * (kernels[0].value - kernels[1].value)
            words += f" ({other.value - one.value:+.2f} ms), while its kernels take {saved:.2f} us less"
            numbers["kernel_saved_us"] = saved
        found.append(about("twin-latency", [cell for pair in pairs for cell in pair], verdict="not supported", words=words, **numbers))
    return found
