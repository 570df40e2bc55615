"""Checks of what changes between rows: is it one thing at a time, and does the change show?"""

from collections import defaultdict
from collections.abc import Iterator

from lowbit_vit.analysis.audit.check import Need, check
from lowbit_vit.analysis.audit.context import Case
from lowbit_vit.analysis.audit.finding import Finding, about
from lowbit_vit.analysis.audit.headings import Quantity
from lowbit_vit.analysis.audit.table import Cell

_LATENCIES: tuple[Quantity, ...] = ("mean", "p50", "p95", "p99")
# Runs of one kernel on one shape differ by less, as a ratio.
_SAME_KERNEL = 1.10


@check("attention-gain", "attention", "twins", "reference")
def attention_gain(case: Case) -> Iterator[Finding]:
    """What a fused kernel saves on attention: against its twin, not against a row of another dtype."""
    times = {cell.row: cell for cell in case.table.column("attention") if cell.exact}
    reference = case.of_reference("attention")
    for plain, fused in case.twins:
        if fused not in times or plain in times:
            continue
        after = times[fused]
        words = f"{case.label(after)}: its twin {case.table.labels[plain]} has no attention time"
        numbers: dict[str, float] = {}
        if reference is not None and reference.exact:
            gain = numbers["gain_over_reference"] = 1 - after.value / reference.value
            words += f", and {reference.text} of {case.label(reference)} is of other dtypes too ({-gain:.0%})"
        cells = [cell for cell in (reference, after) if cell is not None]
        totals = [case.table.cell(row, "kernel") for row in (plain, fused)]
        # All but attention is the same work, so the totals tell what the plain kernel took.
        implied = totals[0].value - totals[1].value + after.value if totals[0] and totals[1] else 0.0
        if implied > 0:
            numbers["implied_plain_us"] = 1e3 * implied
            gain = numbers["gain_over_twin"] = 1 - after.value / implied
            words += f"; by the two totals plain attention took {1e3 * implied:.2f} us: {-gain:.1%} with the fused kernel"
            cells += [cell for cell in totals if cell is not None]
        yield about(cells, verdict="confounded", words=words, **numbers)


def _kernels(case: Case) -> dict[tuple[str, str], list[Cell]]:
    """Attention times above zero, by kernel and dtype."""
    groups: defaultdict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell, row in case.described("attention"):
        if cell.exact:
            groups[row.attention, row.compute].append(cell)
    return groups


@check("same-kernel", "attention", "rows", Need("attention of a row above zero", _kernels))
def same_kernel(case: Case) -> Iterator[Finding]:
    """One attention kernel in one dtype does one work, whatever the weights: its times agree."""
    for (kernel, dtype), cells in _kernels(case).items():
        least, most = min(cells, key=lambda cell: cell.exact), max(cells, key=lambda cell: cell.exact)
        ratio = most.value / least.value
        if ratio > _SAME_KERNEL:
            words = f"{kernel} in {dtype} takes {most.text} in one row and {least.text} in another, {ratio - 1:.0%} apart on the same work"
            yield about(cells, verdict="suspicious", words=words, ratio=ratio)


@check("twin-latency", Need("a column of latency", lambda case: any(map(case.table.column, _LATENCIES))), "twins")
def twin_latency(case: Case) -> Iterator[Finding]:
    """A kernel that is said to be faster is not slower in every latency column."""
    cell = case.table.cell
    for plain, fused in case.twins:
        pairs = [(one, other) for quantity in _LATENCIES if (one := cell(plain, quantity)) and (other := cell(fused, quantity))]
        if not pairs or pairs[0][0].exact == 0 or any(other.low <= one.high for one, other in pairs):
            continue
        one, other = pairs[0]
        words = f"{case.label(other)} is slower than {case.label(one)} in all {len(pairs)} latency columns: "
        words += f"{one.heading} {one.text} to {other.text}"
        numbers = {"ratio": other.value / one.value, "columns": len(pairs)}
        if (before := cell(plain, "kernel")) and (after := cell(fused, "kernel")):
            saved = numbers["kernel_saved_us"] = 1e3 * (before.value - after.value)
            words += f" ({other.value - one.value:+.2f} ms), while its kernels take {saved:.2f} us less"
        yield about([cell for pair in pairs for cell in pair], verdict="not supported", words=words, **numbers)


@check("missing-baseline", "rows", "reference")
def missing_baseline(case: Case) -> Iterator[Finding]:
    """Low-bit rows compute in a dtype in which no row keeps its weights: its gain is credited to the low-bit weights."""
    rows = {index: row for index in case.table.rows if (row := case.row(index)) is not None}
    present = {row.compute for row in rows.values() if not row.quantized}
    lacking = {index: row.compute for index, row in rows.items() if row.quantized and row.compute not in present}
    if lacking:
        name, dtypes = case.context.reference, " and ".join(sorted(set(lacking.values())))
        reference = case.context.rows.get(name or "")
        words = f"{len(lacking)} low-bit rows compute in {dtypes}, and no row has its weights in {dtypes}"
        words += f": {name} is {reference.compute}, so dtype and weights change together" if reference else ""
        numbers: dict[str, float] = {"rows": len(lacking)}
        yield Finding(check="missing-baseline", rows=tuple(lacking), columns=(), verdict="confounded", words=words, numbers=numbers)
