"""Latency, memory and kernel time of a model that is ready to run. Each in a pass of its own, for each batch size.

Latency: CUDA events around each call on a card, `perf_counter_ns` on the CPU; a warm-up, then raw samples, each call waited
for. Memory: the allocator's peaks and NVML's figure on a card; on the CPU the process's peak resident set, which holds the
interpreter and the libraries too (Linux; null elsewhere). Kernel time: see `trace`.

A timing needs the card for itself. NVML must show this process and no other; in a container it may show none of them by its
own number, and then exclusivity is recorded as unknown (null).
"""

import gc
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pynvml
import torch
from torch import Tensor

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.data.batches import eval_batches
from lowbit_vit.data.progress import Bar, progress_bar
from lowbit_vit.errors import Busy
from lowbit_vit.schema.config import AttentionName, Device, Measurement, Views
from lowbit_vit.schema.percentiles import percentile, percentile_interval
from lowbit_vit.schema.record import Clocks, Interval, KernelTime, Latency, MeasurementResult, Memory
from lowbit_vit.trial.evaluate import Forward
from lowbit_vit.trial.trace import trace

log = logging.getLogger(__name__)

LEAST_SAMPLES = 10  # kept even if they take longer than Measurement.seconds
# From 368 on the interval of P99 is finite, but its upper end is the slowest call of all; from 1000 on it is not.
LEAST_FOR_P99 = 1000


def measure(
    prepare: Callable[[Tensor], Forward],
    config: Measurement,
    images: ImageSet,
    views: Views,
    *,
    attention: AttentionName,
    device: Device,
    dtype: torch.dtype,
) -> MeasurementResult:
    """Run every pass for every batch size.

    Args:
        prepare: makes the callable to be timed, without gradients, for images of one shape: the model, a captured graph,
            compiled blocks.
        config: batch sizes, warm-up, samples.
        images: real test images, because LLM.int8's cost depends on the data; repeated if a batch holds more.
        views: how pixels are normalized.
        attention: the label that the trace must confirm.
        device: where the model is.
        dtype: of the images given to the model.

    Raises:
        Busy: another process uses the card.
        LowbitVitError: the trace contradicts the attention label.
    """
    exclusive = _exclusive(device)
    gc.collect()  # what training and evaluation left behind is not this model's memory; once, for it takes a second
    examples = [_example(images, views, batch_size=batch_size, device=device, dtype=dtype) for batch_size in config.batch_sizes]
    latency = [_latency(prepare, example, config, device) for example in examples]
    memory = [_memory(prepare, example, device) for example in examples]
    kernels: list[KernelTime] = []
    if config.trace:
        for example, timed in zip(examples, latency, strict=True):
            forward = prepare(example)
            forward(example)
            kernels.append(trace(forward, example, attention=attention, device=device, wall_us=timed.p50_ms * 1000))
    _exclusive(device)  # nobody joined meanwhile
    return MeasurementResult(exclusive=exclusive, latency=tuple(latency), memory=tuple(memory), kernels=tuple(kernels))


def _example(images: ImageSet, views: Views, *, batch_size: int, device: Device, dtype: torch.dtype) -> Tensor:
    """The first images of the set as one batch, repeated if there are fewer."""
    batch, _ = next(eval_batches(images, views, batch_size=batch_size, device=device, dtype=dtype))
    repeats = -(-batch_size // len(batch))
    return batch.repeat(repeats, 1, 1, 1)[:batch_size]


# ------------------------------------------------------------------------------------------------------------- latency


def _latency(prepare: Callable[[Tensor], Forward], example: Tensor, config: Measurement, device: Device) -> Latency:
    """First call (with preparation: capture or compilation), warm-up, samples."""
    clocks_before = _clocks(device)
    started = time.perf_counter_ns()
    forward = prepare(example)
    forward(example)
    _wait(device)
    first_call_ms = (time.perf_counter_ns() - started) / 1e6
    for _ in range(config.warmup):
        forward(example)
    _wait(device)
    gc.disable()  # a collection in the middle of a call would be counted as the model's time
    try:
        with progress_bar(f"latency, batch {len(example)}", config.samples, "calls") as bar:
            samples_ms = _sample(forward, example, config=config, device=device, bar=bar)
    finally:
        gc.enable()
    return summarize_latency(
        samples_ms, batch_size=len(example), first_call_ms=first_call_ms, clocks_before=clocks_before, clocks_after=_clocks(device)
    )


def _sample(forward: Forward, example: Tensor, *, config: Measurement, device: Device, bar: Bar) -> tuple[float, ...]:
    """Time single calls, in ms, until there are enough or the time is up."""
    call = _timed_cuda_call if device == "cuda" else _timed_cpu_call
    deadline = time.perf_counter() + config.seconds
    samples: list[float] = []
    shown = 0
    while len(samples) < config.samples and (len(samples) < LEAST_SAMPLES or time.perf_counter() < deadline):
        samples.append(round(call(forward, example), 4))
        # The bar is moved between calls, and rarely: its thread would take a core from the model.
        if len(samples) - shown >= max(1, config.samples // 20):
            bar.advance(len(samples) - shown)
            shown = len(samples)
    bar.advance(len(samples) - shown)
    return tuple(samples)


def _timed_cpu_call(forward: Forward, example: Tensor) -> float:
    started = time.perf_counter_ns()
    forward(example)
    return (time.perf_counter_ns() - started) / 1e6


def _timed_cuda_call(forward: Forward, example: Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    forward(example)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def summarize_latency(
    samples_ms: tuple[float, ...], *, batch_size: int, first_call_ms: float, clocks_before: Clocks | None, clocks_after: Clocks | None
) -> Latency:
    """Mean, P50, P95 and P99 with their intervals. P95 is null below 72 samples (no finite interval), P99 below 1000."""
    mean_ms = fmean(samples_ms)
    intervals = {q: percentile_interval(samples_ms, q) for q in (0.5, 0.95, 0.99)}
    if len(samples_ms) < LEAST_FOR_P99:
        intervals[0.99] = None

    def point(q: float, interval: Interval | None) -> float | None:
        return None if interval is None else percentile(samples_ms, q)

    return Latency(
        batch_size=batch_size,
        samples_ms=samples_ms,
        first_call_ms=first_call_ms,
        mean_ms=mean_ms,
        p50_ms=percentile(samples_ms, 0.5),
        p50_ci_ms=intervals[0.5],
        p95_ms=point(0.95, intervals[0.95]),
        p95_ci_ms=intervals[0.95],
        p99_ms=point(0.99, intervals[0.99]),
        p99_ci_ms=intervals[0.99],
        images_per_s=batch_size / mean_ms * 1000,
        clocks_before=clocks_before,
        clocks_after=clocks_after,
    )


def _wait(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


# -------------------------------------------------------------------------------------------------------------- memory


def _memory(prepare: Callable[[Tensor], Forward], example: Tensor, device: Device) -> Memory:
    """Peaks of one call, weights included. Preparation counts too: a captured graph keeps the memory of its capture."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        prepare(example)(example)
        _wait(device)
        return Memory(
            batch_size=len(example),
            peak_allocated_bytes=torch.cuda.max_memory_allocated(),
            peak_reserved_bytes=torch.cuda.max_memory_reserved(),
            process_bytes=_process_bytes(),
            peak_resident_bytes=None,
        )
    can_reset = _reset_peak_resident()
    prepare(example)(example)
    return Memory(
        batch_size=len(example),
        peak_allocated_bytes=None,
        peak_reserved_bytes=None,
        process_bytes=None,
        peak_resident_bytes=_peak_resident() if can_reset else None,
    )


def _reset_peak_resident() -> bool:
    """Set the kernel's peak of this process's resident set back to what it is now; false where that cannot be done.

    Source: https://www.kernel.org/doc/html/latest/filesystems/proc.html (clear_refs, 5).
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_resident() -> int | None:
    """VmHWM in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


# ---------------------------------------------------------------------------------------------------------- the card


def _handle() -> Any | None:
    """NVML's handle of torch's current card; None where there is no NVML."""
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
    except pynvml.NVMLError as error:
        log.warning("NVML: %s; exclusivity, clocks and process memory are unknown", error)
        return None


def _exclusive(device: Device) -> bool | None:
    """Whether this process alone computes on the card; None on the CPU or where it cannot be known.

    Raises:
        Busy: another process does.
    """
    handle = _handle() if device == "cuda" else None
    if handle is None:
        return None
    torch.cuda.synchronize()  # so that this process is on the card, too
    try:
        pids = {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except pynvml.NVMLError:
        return None
    return exclusive_among(pids, os.getpid())


def exclusive_among(pids: set[int], own: int) -> bool | None:
    """Judge NVML's list of processes: True if it is this one alone, None if it shows at most one that may be this one.

    In a container NVML shows no process, or the host's number of this one.

    Raises:
        Busy: at least one of them is another process.
    """
    others = pids - {own}
    if own in pids and not others:
        return True
    if others and (own in pids or len(others) > 1):
        listed = ", ".join(map(str, sorted(others)))
        raise Busy(f"the card is used by other processes (pid {listed}); a timing needs it alone: stop them and run again")
    return None


def _clocks(device: Device) -> Clocks | None:
    """The card's clocks, temperature and throttle reasons now."""
    handle = _handle() if device == "cuda" else None
    if handle is None:
        return None
    try:
        reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
        return Clocks(
            sm_mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            memory_mhz=pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            temperature_c=pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            throttle_reasons=throttle_reasons(reasons),
        )
    except pynvml.NVMLError:
        return None


def throttle_reasons(bits: int) -> str:
    """NVML's bit field in words; `none` where no bit is set."""
    prefix = "nvmlClocksEventReason"
    # By value, because two names may share a bit; All and None are no single bits.
    named = {
        value: name.removeprefix(prefix)
        for name, value in vars(pynvml).items()
        if name.startswith(prefix) and isinstance(value, int) and value.bit_count() == 1
    }
    return ", ".join(name for value, name in sorted(named.items()) if bits & value) or "none"


def _process_bytes() -> int | None:
    """NVML's figure of the card's memory used by this process; None where it does not show it."""
    handle = _handle()
    if handle is None:
        return None
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)
