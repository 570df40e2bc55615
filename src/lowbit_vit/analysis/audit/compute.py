"""Checks of time against work: FLOP and bytes over the printed times, beside what the device can do at most."""

from collections.abc import Iterator

from lowbit_vit.analysis.audit.check import Need, check
from lowbit_vit.analysis.audit.context import Case, Dtype, Gpu, Model, Row, given
from lowbit_vit.analysis.audit.finding import Finding, Verdict, about, lacks
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
