"""Checks of time against work: FLOP and bytes over the printed times, beside what the device can do at most."""

from lowbit_vit.analysis.audit.context import Card, Context, Dtype, Row
from lowbit_vit.analysis.audit.finding import Finding, Verdict, about, not_checked
from lowbit_vit.analysis.audit.latency import implied_batch
from lowbit_vit.analysis.audit.memory import parameter_bytes
from lowbit_vit.analysis.audit.table import Cell, ResultsTable, above

# Of the dense peak: no attention kernel is near it (FlashAttention-2's own paper reports up to 73 % on an A100).
_ATTENTION_AT_MOST = 0.9
# A CUDA kernel that does anything takes longer than this, ms.
_SHORTEST_KERNEL_MS = 1e-3
# Kernel time explains a rise of latency if it rises by at least this share of it.
_EXPLAINS = 0.5
_UNITS_MS = {"us": 1e-3, "ms": 1.0}


def tflops(flop: float, ms: float) -> float:
    """Rate of `flop` in `ms` milliseconds."""
    return flop / (ms * 1e-3) / 1e12


def _known(table: ResultsTable, context: Context, cells: list[Cell]) -> list[tuple[Cell, Row]]:
    """Cells above zero of rows that the context describes."""
    return [(cell, row) for cell in cells if cell.exact > 0 and (row := context.row(table, cell.row)) is not None]


def _peak(card: Card, row: Row, dtype: Dtype | None = None) -> float:
    """The rate that the row's products can have; those of fp32 may run as TF32, which is a setting of the framework."""
    peaks = card.peak_tflops
    named = dtype or row.product or row.compute
    return max(peaks[named], peaks.get("tf32", 0.0)) if named == "fp32" else peaks[named]


def _named(row: Row, card: Card) -> str:
    dtype = row.product or row.compute
    return "fp32 or TF32" if dtype == "fp32" and "tf32" in card.peak_tflops else dtype


def kernel_flop(table: ResultsTable, context: Context) -> list[Finding]:
    """FLOP of one image over total kernel time is at most the card's peak."""
    model, card = context.model, context.card
    if not table.column("kernel") or model is None or card is None or not context.rows:
        return not_checked(
            "kernel-flop",
            {
                "column kernel time": table.column("kernel"),
                "model in the context": context.model,
                "card in the context": context.card,
                "rows in the context": context.rows,
            },
        )
    found = []
    for cell, row in _known(table, context, table.column("kernel")):
        peak = _peak(card, row)
        rate = tflops(model.flop, float(cell.most))
        if rate <= peak:
            continue
        words = (
            f"{table.labels[cell.row]}: {model.flop / 1e9:.1f} GFLOP of one image in {cell.shown} is {rate:.0f} TFLOP/s, and the "
            f"{card.name} peaks at {peak:g} in {_named(row, card)}: {rate / peak:.1f} times too fast in the unit printed"
        )
        numbers = {"tflops": rate, "peak_tflops": peak, "least_us": 1e3 * cell.value * rate / peak}
        found.append(about("kernel-flop", (cell,), verdict="impossible", words=words, **numbers))
    return found


def kernel_bytes(table: ResultsTable, context: Context) -> list[Finding]:
    """Every forward reads all weights once: their bytes over total kernel time are at most the card's bandwidth."""
    model, card = context.model, context.card
    if not table.column("kernel") or model is None or card is None or not context.rows:
        return not_checked(
            "kernel-bytes",
            {
                "column kernel time": table.column("kernel"),
                "model in the context": context.model,
                "card in the context": context.card,
                "rows in the context": context.rows,
            },
        )
    found = []
    for cell, row in _known(table, context, table.column("kernel")):
        size = parameter_bytes(model, row).plain
        rate = size / (cell.value * 1e-3) / 1e9
        if rate > card.bandwidth_gb_s:
            words = (
                f"{table.labels[cell.row]}: reading {size / 1e6:.1f} MB of weights once in {cell.shown} is {rate:.0f} GB/s, "
                f"and the {card.name} has {card.bandwidth_gb_s:g}"
            )
            numbers = {"gb_s": rate, "bandwidth_gb_s": card.bandwidth_gb_s, "least_us": size / card.bandwidth_gb_s / 1e3}
            found.append(about("kernel-bytes", (cell,), verdict="impossible", words=words, **numbers))
    return found


def kernel_unit(table: ResultsTable, context: Context) -> list[Finding]:
    """Where the unit printed makes kernel time impossible: which unit and batch size would not?"""
    model, card = context.model, context.card
    wrong = {row for finding in kernel_flop(table, context) if finding.verdict == "impossible" for row in finding.rows}
    if model is None or card is None or not table.column("kernel"):
        return not_checked(
            "kernel-unit",
            {
                "column kernel time": table.column("kernel"),
                "model in the context": context.model,
                "card in the context": context.card,
                "rows in the context": context.rows,
            },
        )
    timed, _ = implied_batch(table, context)
    batches = sorted({batch for batch in (timed, context.claims.batch_size) if batch is not None}) or [1]
    found = []
    for cell, row in _known(table, context, [one for one in table.column("kernel") if one.row in wrong]):
        peak = _peak(card, row)
        mean = table.cell(cell.row, "mean")
        readings = {}
        for unit, scale in _UNITS_MS.items():
            for batch in batches:
                ms = float(cell.text) * scale
                rate = tflops(batch * model.flop, ms)
                # Kernels of one stream take no longer than the call that they are part of.
                longer = batch == timed and mean is not None and ms > mean.value
                if rate <= peak and not longer:
                    readings[unit, batch] = rate
        if len(readings) != 1:
            continue
        (unit, batch), rate = next(iter(readings.items()))
        tried = ", ".join(f"{tried_unit} at batch {tried_batch}" for tried_unit in _UNITS_MS for tried_batch in batches)
        words = (
            f"{table.labels[cell.row]}: of the readings {tried}, only {cell.text} {unit} at batch {batch} is possible: {rate:.1f} TFLOP/s, "
            f"{rate / peak:.0%} of the {card.name}'s peak in {_named(row, card)}"
        )
        numbers = {"tflops": rate, "batch": batch, "share_of_peak": rate / peak}
        found.append(about("kernel-unit", (cell,), verdict="suspicious", words=words, **numbers))
    return found


def attention_flop(table: ResultsTable, context: Context) -> list[Finding]:
    """FLOP inside attention over attention's kernel time, and that time for each block."""
    model, card = context.model, context.card
    if not table.column("attention") or model is None or card is None or not context.rows:
        return not_checked(
            "attention-flop",
            {
                "column attention kernel time": table.column("attention"),
                "model in the context": context.model,
                "card in the context": context.card,
                "rows in the context": context.rows,
            },
        )
    found = []
    for cell, row in _known(table, context, table.column("attention")):
        peak = _peak(card, row, row.compute)
        rate, each = tflops(model.attention_flop, cell.value), cell.value / model.blocks
        words = (
            f"{table.labels[cell.row]}: {model.attention_flop / 1e9:.2f} GFLOP of attention in {cell.shown} is {rate:.0f} TFLOP/s "
            f"of the {card.name}'s {peak:g} in {row.compute}, {1e3 * each:.2f} us for each of {model.blocks} blocks"
        )
        numbers = {"tflops": rate, "peak_tflops": peak, "us_each": 1e3 * each}
        if rate > peak:
            found.append(about("attention-flop", (cell,), verdict="impossible", words=words, **numbers))
        elif rate > _ATTENTION_AT_MOST * peak or each < _SHORTEST_KERNEL_MS:
            found.append(about("attention-flop", (cell,), verdict="suspicious", words=words, **numbers))
    return found


def claimed_batch_flop(table: ResultsTable, context: Context) -> list[Finding]:
    """FLOP of the claimed batch over latency is at most the peak, on the card and on the host."""
    model, card, batch = context.model, context.card, context.claims.batch_size
    if model is None or card is None or batch is None or not context.rows or not table.column("mean"):
        return not_checked(
            "batch-flop",
            {
                "column latency": table.column("mean"),
                "claims.batch_size in the context": context.claims.batch_size,
                "model in the context": context.model,
                "card in the context": context.card,
                "rows in the context": context.rows,
            },
        )
    peaks = [(cell, _peak(card, row), f"the {card.name}", _named(row, card)) for cell, row in _known(table, context, table.column("mean"))]
    host = [cell for cell, row in _known(table, context, table.column("cpu")) if row.weights == "fp32"]
    found: list[Finding] = []
    if host and context.cpu_peak_tflops is None:
        found = not_checked("batch-flop", {"cpu_peak_tflops in the context, for CPU latency": None})
    elif context.cpu_peak_tflops is not None:
        peaks += [(cell, context.cpu_peak_tflops, "the host of the context", "fp32") for cell in host]
    for cell, peak, device, dtype in peaks:
        rate = tflops(batch * model.flop, cell.value)
        if rate <= peak:
            continue
        words = (
            f"{table.labels[cell.row]}: {batch} images in {cell.shown} ({cell.heading}) are {rate:.1f} TFLOP/s, and {device} peaks "
            f"at {peak:g} in {dtype}; one image is {rate / batch:.3g}"
        )
        numbers = {"tflops": rate, "peak_tflops": peak, "batch": batch, "tflops_of_one": rate / batch}
        # Latency may be that of one image of the batch, and which host it was is a guess.
        fits = rate / batch <= peak
        words += ": as the latency of one image it is possible" if fits else ""
        verdict: Verdict = "suspicious" if fits or cell in host else "impossible"
        found.append(about("batch-flop", (cell,), verdict=verdict, words=words, **numbers))
    return found


def kernel_share(table: ResultsTable, context: Context) -> list[Finding]:
    """Kernel time is part of latency: of one stream at most all of it, and a rise of latency that it explains shows in it."""
    pairs = {
        row: (kernel, mean)
        for row in table.rows
        if (kernel := table.cell(row, "kernel")) and kernel.exact and (mean := table.cell(row, "mean")) and mean.exact
    }
    if not pairs or context.reference is None or table.labels.index(context.reference) not in pairs:
        return not_checked(
            "kernel-share",
            {
                "column kernel time": table.column("kernel"),
                "column latency": table.column("mean"),
                "reference in the context": context.reference,
                "both columns in the reference row": not pairs or context.reference is None,
            },
        )
    first_kernel, first_mean = pairs[table.labels.index(context.reference)]
    first_share = first_kernel.value / first_mean.value
    found = []
    for row, (kernel, mean) in pairs.items():
        label, share = table.labels[row], kernel.value / mean.value
        if above(kernel, mean):
            words = f"{label}: kernels take {kernel.value:.4g} ms of a forward of {mean.text} ms"
            words += ": several streams, or another batch size, would explain it"
            found.append(about("kernel-share", (kernel, mean), verdict="suspicious", words=words, share=share))
            continue
        slower = mean.value - first_mean.value
        if slower <= 0 or mean.value < 1.1 * first_mean.value:
            continue
        rise = kernel.value - first_kernel.value
        words = (
            f"{label}: latency rises {mean.value / first_mean.value:.2f} times, by {slower:.2f} ms, of which kernels are {rise:.4f} ms "
            f"({rise / slower:.2%}); they fill {share:.2%} of it, and {first_share:.2%} of {table.labels[first_kernel.row]}'s"
        )
        numbers = {"latency_ratio": mean.value / first_mean.value, "kernel_ratio": kernel.value / first_kernel.value}
        numbers |= {
            "latency_rise_ms": slower,
            "kernel_rise_ms": rise,
            "explained": rise / slower,
            "share": share,
            "reference_share": first_share,
        }
        verdict: Verdict = "holds" if rise >= _EXPLAINS * slower else "not supported"
        found.append(about("kernel-share", (first_kernel, first_mean, kernel, mean), verdict=verdict, words=words, **numbers))
    return found
