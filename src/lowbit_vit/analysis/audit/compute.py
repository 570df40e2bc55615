"""Checks of time against work, and of kernels between rows: FLOP and bytes over the printed times beside what the device can do at most,
and whether a faster kernel, changed alone, shows.
"""

from collections import defaultdict
from collections.abc import Iterator

from lowbit_vit.analysis.audit.check import Finding, Need, Verdict, about, check, lacks
from lowbit_vit.analysis.audit.context import Case, Dtype, Gpu, Model, Row, given
from lowbit_vit.analysis.audit.headings import Quantity
from lowbit_vit.analysis.audit.latency import implied_batch
from lowbit_vit.analysis.audit.memory import parameter_bytes
from lowbit_vit.analysis.audit.table import Cell, above

# Of the dense peak: no attention kernel is near it (FlashAttention-2's own paper reports up to 73 % on an A100).
_ATTENTION_AT_MOST = 0.9
# A CUDA kernel that does anything takes longer than this, ms.
_SHORTEST_KERNEL_MS = 1e-3
# Kernel time explains a rise of latency if it rises by at least this share of it.
_EXPLAINS = 0.5
# Latency that rises by less needs no explanation.
_SLOWER = 1.1
_UNITS_MS = {"us": 1e-3, "ms": 1.0}


def tflops(flop: float, ms: float) -> float:
    """Rate of `flop` in `ms` milliseconds."""
    return flop / (ms * 1e-3) / 1e12


def _timed(case: Case, quantity: Quantity) -> list[tuple[Cell, Row, Model]]:
    """Times above zero of rows that the context describes."""
    return [(cell, row, model) for cell, row, model in case.sized(quantity) if cell.exact > 0]


def _peak(gpu: Gpu, dtype: Dtype) -> tuple[float, str]:
    """The rate of products in a dtype, TFLOP/s, and its name; those of fp32 may run as TF32, which is a setting of the framework."""
    peaks = gpu.peak_tflops
    if dtype == "fp32" and "tf32" in peaks:
        return max(peaks["fp32"], peaks["tf32"]), "fp32 or TF32"
    return peaks[dtype], dtype


def _too_fast(case: Case) -> Iterator[tuple[Cell, Model, float, float, str]]:
    """Total kernel times in which not even one image's FLOP can be done: with their rate, the peak, and the dtype of the peak."""
    for cell, row, model in _timed(case, "kernel"):
        rate, (peak, dtype) = tflops(model.flop, float(cell.most)), _peak(case.gpu, row.product or row.compute)
        if rate > peak:
            yield cell, model, rate, peak, dtype


def _batched(case: Case) -> bool:
    """Whether some row's batch size is stated."""
    return any(case.batch_size(row) is not None for row in case.table.rows)


@check("kernel-flop", "kernel", "model", "gpu", "rows")
def kernel_flop(case: Case) -> Iterator[Finding]:
    """FLOP of one image over total kernel time is at most the GPU's peak."""
    for cell, model, rate, peak, dtype in _too_fast(case):
        words = (
            f"{case.label(cell)}: {model.flop / 1e9:.1f} GFLOP of one image in {cell.shown} is {rate:.0f} TFLOP/s, and the "
            f"{case.gpu.name} peaks at {peak:g} in {dtype}: {rate / peak:.1f} times too fast in the unit printed"
        )
        least_us = 1e3 * cell.value * rate / peak
        yield about((cell,), verdict="impossible", words=words, tflops=rate, peak_tflops=peak, least_us=least_us)


@check("kernel-bytes", "kernel", "model", "gpu", "rows")
def kernel_bytes(case: Case) -> Iterator[Finding]:
    """Every forward reads all weights once: their bytes over total kernel time are at most the GPU's bandwidth."""
    most = case.gpu.bandwidth_gb_s
    for cell, row, model in _timed(case, "kernel"):
        size = parameter_bytes(model, row).plain
        rate = size / (cell.value * 1e-3) / 1e9
        if rate > most:
            words = (
                f"{case.label(cell)}: reading {size / 1e6:.1f} MB of weights once in {cell.shown} is {rate:.0f} GB/s, "
                f"and the {case.gpu.name} has {most:g}"
            )
            yield about((cell,), verdict="impossible", words=words, gb_s=rate, bandwidth_gb_s=most, least_us=size / most / 1e3)


@check("kernel-unit", "kernel", "model", "gpu", "rows")
def kernel_unit(case: Case) -> Iterator[Finding]:
    """Where the unit printed makes kernel time impossible: which unit and batch size would not?"""
    timed, _ = implied_batch(case)
    for cell, model, _, peak, dtype in _too_fast(case):
        batches = sorted({batch for batch in (timed, case.batch_size(cell.row)) if batch is not None}) or [1]
        mean = case.table.cell(cell.row, "mean")
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
        (unit, batch), rate = readings.popitem()
        tried = ", ".join(f"{tried_unit} at batch {tried_batch}" for tried_unit in _UNITS_MS for tried_batch in batches)
        words = (
            f"{case.label(cell)}: of the readings {tried}, only {cell.text} {unit} at batch {batch} is possible: {rate:.1f} TFLOP/s, "
            f"{rate / peak:.0%} of the {case.gpu.name}'s peak in {dtype}"
        )
        yield about((cell,), verdict="suspicious", words=words, tflops=rate, batch=batch, share_of_peak=rate / peak)


@check("batch-flop", "mean", Need("the batch size, in the context or in a column", _batched), "model", "gpu", "rows")
def claimed_batch_flop(case: Case) -> Iterator[Finding]:
    """FLOP of the stated batch over latency is at most the peak, on the GPU and on the host."""
    of_host = case.context.cpu_peak_tflops
    peaks = [
        (cell, model, *_peak(case.gpu, row.product or row.compute), f"the {case.gpu.name}") for cell, row, model in _timed(case, "mean")
    ]
    host = [(cell, model) for cell, row, model in _timed(case, "cpu") if row.weights == "fp32"]
    if of_host is not None:
        peaks += [(cell, model, of_host, "fp32", "the host of the context") for cell, model in host]
    elif host:
        yield lacks("cpu_peak_tflops in the context, for CPU latency")
    for cell, model, peak, dtype, device in peaks:
        batch = case.batch_size(cell.row)
        if batch is None:
            continue
        rate = tflops(batch * model.flop, cell.value)
        if rate <= peak:
            continue
        words = (
            f"{case.label(cell)}: {batch} images in {cell.shown} ({cell.heading}) are {rate:.1f} TFLOP/s, and {device} peaks "
            f"at {peak:g} in {dtype}; one image is {rate / batch:.3g}"
        )
        # Latency may be that of one image of the batch, and which host it was is a guess.
        fits = rate / batch <= peak
        words += ": as the latency of one image it is possible" if fits else ""
        numbers = {"tflops": rate, "peak_tflops": peak, "batch": batch, "tflops_of_one": rate / batch}
        yield about((cell,), verdict="suspicious" if fits or (cell, model) in host else "impossible", words=words, **numbers)


@check("kernel-share", "kernel", "mean", "reference")
def kernel_share(case: Case) -> Iterator[Finding]:
    """Kernel time is part of latency: of one stream at most all of it, and a rise of latency that it explains shows in it."""
    pairs = {case.label(kernel): (kernel, mean) for kernel, mean in case.table.together("kernel", "mean") if kernel.exact and mean.exact}
    first_kernel, first_mean = given(pairs.get(given(case.context.reference)), "both columns in the reference row")
    first_share = first_kernel.value / first_mean.value
    for kernel, mean in pairs.values():
        share, slower = kernel.value / mean.value, mean.value - first_mean.value
        if above(kernel, mean):
            words = f"{case.label(mean)}: kernels take {kernel.value:.4g} ms of a forward of {mean.text} ms"
            words += ": several streams, or another batch size, would explain it"
            yield about((kernel, mean), verdict="suspicious", words=words, share=share)
        elif slower > 0 and mean.value >= _SLOWER * first_mean.value:
            rise, times = kernel.value - first_kernel.value, mean.value / first_mean.value
            words = (
                f"{case.label(mean)}: latency rises {times:.2f} times, by {slower:.2f} ms, of which kernels are {rise:.4f} ms "
                f"({rise / slower:.2%}); they fill {share:.2%} of it, and {first_share:.2%} of {case.label(first_mean)}'s"
            )
            numbers = {
                "latency_ratio": times,
                "kernel_ratio": kernel.value / first_kernel.value,
                "latency_rise_ms": slower,
                "kernel_rise_ms": rise,
                "explained": rise / slower,
                "share": share,
                "reference_share": first_share,
            }
            verdict: Verdict = "holds" if rise >= _EXPLAINS * slower else "not supported"
            yield about((first_kernel, first_mean, kernel, mean), verdict=verdict, words=words, **numbers)


@check("attention-flop", "attention", "model", "gpu", "rows")
def attention_flop(case: Case) -> Iterator[Finding]:
    """FLOP inside attention over attention's kernel time, and that time for each block."""
    for cell, row, model in _timed(case, "attention"):
        peak, _ = _peak(case.gpu, row.compute)
        rate, each = tflops(model.attention_flop, cell.value), cell.value / model.blocks
        words = (
            f"{case.label(cell)}: {model.attention_flop / 1e9:.2f} GFLOP of attention in {cell.shown} is {rate:.0f} TFLOP/s "
            f"of the {case.gpu.name}'s {peak:g} in {row.compute}, {1e3 * each:.2f} us for each of {model.blocks} blocks"
        )
        if rate > _ATTENTION_AT_MOST * peak or each < _SHORTEST_KERNEL_MS:
            verdict: Verdict = "impossible" if rate > peak else "suspicious"
            yield about((cell,), verdict=verdict, words=words, tflops=rate, peak_tflops=peak, us_each=1e3 * each)


# ---------------------------------------------------------------------------------------------------------- between rows

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
