"""Latency, energy, memory, kernel time and batch invariance of a model that is ready to run, and the device's own ceilings beside them.

Each in a pass of its own, for each batch size. Latency: CUDA events around each call on a GPU, `perf_counter_ns` on the CPU; a
warm-up, then raw samples, each call waited for. Energy, memory and kernels: `energy`, `memory`, `trace`. The ceilings come last, so
that their matrices disturb nothing. Exclusivity: `gpu_state`.
"""

import gc
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.data.batches import eval_batches
from lowbit_vit.data.progress import Bar, progress_bar
from lowbit_vit.model.flops import least_work
from lowbit_vit.model.precision import weight_bytes
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.schema.config import AttentionName, Device, Measurement, Views
from lowbit_vit.schema.record import LEAST_SAMPLES, Ceilings, Energy, Invariance, KernelTime, Latency, MeasurementResult
from lowbit_vit.trial.energy import find_counter, measure_energy
from lowbit_vit.trial.evaluate import Forward, Logits, predict, spread_rows
from lowbit_vit.trial.gpu_state import clocks, exclusive
from lowbit_vit.trial.host_state import HostWatch, wait_for_quiet
from lowbit_vit.trial.memory import measure_memory
from lowbit_vit.trial.trace import trace

_MOST_WAITING_S = 30.0  # for a quiet host, and no longer than a quarter of what a batch size is sampled for
_SIDE = {"cuda": 8192, "cpu": 1024}
_COPIED = {"cuda": 512 * 2**20, "cpu": 64 * 2**20}  # bytes of one tensor: beyond any cache
_CEILING_SECONDS = {"cuda": 0.25, "cpu": 0.3}  # of each of the two; on an H100 all calls take less
_CEILING_WARMUP = 2
_CEILING_CALLS = (3, 50)  # least and most


def measure(
    prepare: Callable[[Tensor], Forward],
    config: Measurement,
    images: ImageSet,
    views: Views,
    *,
    model: VisionTransformer,
    attention: AttentionName,
    device: Device,
    dtype: torch.dtype,
    repeat: bool = False,
) -> MeasurementResult:
    """Run every pass for every batch size; of a repeat, the latency alone.

    Args:
        prepare: makes the callable to be timed, without gradients, for images of one shape: the model, a captured graph,
            compiled blocks.
        config: batch sizes, warm-up, samples, what else to do.
        images: real test images, because LLM.int8's cost depends on the data; repeated if a batch holds more.
        views: how pixels are normalized.
        model: what `prepare` makes callable: its sizes and bytes are counted.
        attention: the label that the trace must confirm.
        device: where the model is.
        dtype: of the images given to the model.
        repeat: whether another process measured all of it.

    Raises:
        Busy: another process uses the GPU, or NVML does not show it; see `gpu_state.exclusive`.
        LowbitVitError: the trace contradicts the attention label.
    """
    alone = exclusive(device, config.exclusive)
    gc.collect()  # what training and evaluation left behind is not this model's memory
    gc.freeze()  # what is alive now stays: a collection takes a second otherwise, and each capture asks for one
    example = partial(_example, images, views, device=device, dtype=dtype)
    wait_for_quiet(min(_MOST_WAITING_S, config.seconds / 4))
    try:
        latency = [_latency(prepare, example(batch_size=size), config, device) for size in config.batch_sizes]
        if repeat:
            exclusive(device, config.exclusive)  # still: another process may have started meanwhile
            return MeasurementResult(exclusive=alone, latency=tuple(latency), memory=(), kernels=(), work=(), ceilings=None)
        memory = [measure_memory(prepare, example(batch_size=size), device) for size in config.batch_sizes]
        energy = _energy(prepare, example, config, device)
        kernels: list[KernelTime] = []
        if config.trace:
            for size in config.batch_sizes:
                batch = example(batch_size=size)
                forward = prepare(batch)
                forward(batch)
                kernels.append(trace(forward, batch, attention=attention, device=device))
                del forward, batch
        invariance = None
        if config.invariance_images is not None:
            invariance = measure_invariance(
                prepare,
                images,
                views,
                count=config.invariance_images,
                batch_sizes=(min(config.batch_sizes), max(config.batch_sizes)),
                device=device,
                dtype=dtype,
            )
    finally:
        gc.unfreeze()
    ceilings = measure_ceilings(device, dtype)
    exclusive(device, config.exclusive)
    held = weight_bytes(model)
    return MeasurementResult(
        exclusive=alone,
        latency=tuple(latency),
        memory=tuple(memory),
        kernels=tuple(kernels),
        work=tuple(
            least_work(model.architecture, num_classes=model.num_classes, batch_size=size, weight_bytes=held, itemsize=dtype.itemsize)
            for size in config.batch_sizes
        ),
        ceilings=ceilings,
        invariance=invariance,
        energy=energy,
    )


def _example(images: ImageSet, views: Views, *, batch_size: int, device: Device, dtype: torch.dtype) -> Tensor:
    """The first images of the set as one batch, repeated if there are fewer."""
    # No more than these: the whole set would be moved to the device for one batch.
    few = ImageSet(images.images[:batch_size], images.labels[:batch_size], images.ids[:batch_size])
    batch, _ = next(eval_batches(few, views, batch_size=batch_size, device=device, dtype=dtype))
    repeats = -(-batch_size // len(batch))
    # In the memory format of every evaluated batch; `repeat` forgets it.
    return batch.repeat(repeats, 1, 1, 1)[:batch_size].contiguous(memory_format=torch.channels_last) if repeats > 1 else batch


# ------------------------------------------------------------------------------------------------------------- latency


def _latency(prepare: Callable[[Tensor], Forward], example: Tensor, config: Measurement, device: Device) -> Latency:
    """First call (with preparation: capture or compilation), warm-up, samples."""
    clocks_before = clocks(device)
    started = time.perf_counter_ns()
    forward = prepare(example)
    forward(example)
    _wait(device)
    first_call_ms = (time.perf_counter_ns() - started) / 1e6
    for _ in range(config.warmup):
        forward(example)
    _wait(device)
    host = HostWatch(device)
    gc.disable()  # a collection in the middle of a call would be counted as the model's time
    try:
        with progress_bar(f"latency, batch {len(example)}", config.samples, "calls") as bar:
            samples_ms = _sample(forward, example, config=config, device=device, bar=bar, host=host)
    finally:
        gc.enable()
    return Latency(
        batch_size=len(example),
        samples_ms=samples_ms,
        first_call_ms=first_call_ms,
        clocks_before=clocks_before,
        clocks_after=clocks(device),
        host=host.seen(),
    )


def _sample(forward: Forward, example: Tensor, *, config: Measurement, device: Device, bar: Bar, host: HostWatch) -> tuple[float, ...]:
    """Time single calls, in ms, until there are enough or the time is up; look at the host in between."""
    deadline = time.perf_counter() + config.seconds
    samples: list[float] = []
    shown = 0
    while len(samples) < config.samples and (len(samples) < LEAST_SAMPLES or time.perf_counter() < deadline):
        samples.append(round(call_ms(device, forward, example), 4))
        # The bar is moved between calls, and rarely: its thread would take a core from the model.
        if len(samples) - shown >= max(1, config.samples // 20):
            bar.advance(len(samples) - shown)
            shown = len(samples)
            host.sample()
    bar.advance(len(samples) - shown)
    return tuple(samples)


def _wait(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def call_ms(device: Device, call: Callable[..., object], *arguments: object) -> float:
    """Milliseconds of one call that is waited for: between events of the current CUDA device, or by `perf_counter_ns` on the CPU."""
    if device == "cpu":
        started = time.perf_counter_ns()
        call(*arguments)
        return (time.perf_counter_ns() - started) / 1e6
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    call(*arguments)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


# -------------------------------------------------------------------------------------------------------------- energy


def _energy(
    prepare: Callable[[Tensor], Forward], example: Callable[..., Tensor], config: Measurement, device: Device
) -> tuple[Energy, ...]:
    """Energy of each batch size; of none where the profile does not ask for it, or the device has no counter."""
    counter = None if config.energy_seconds is None else find_counter(device)
    if config.energy_seconds is None or counter is None:
        return ()
    found = []
    for size in config.batch_sizes:
        batch = example(batch_size=size)
        forward = prepare(batch)
        forward(batch)
        call = partial(forward, batch)
        found.append(measure_energy(call, counter, batch_size=size, seconds=config.energy_seconds, device=device))
    return tuple(energy for energy in found if energy is not None)


# ---------------------------------------------------------------------------------------------------- batch invariance


def measure_invariance(
    prepare: Callable[[Tensor], Forward],
    images: ImageSet,
    views: Views,
    *,
    count: int,
    batch_sizes: tuple[int, int],
    device: Device,
    dtype: torch.dtype,
) -> Invariance:
    """Predict the same images at two batch sizes: does a prediction depend on how many images share its batch?

    Kernels are chosen by shape, so another batch size may round otherwise; LLM.int8 with a threshold takes its outlier columns from
    the whole batch, so there an image's logits depend on its batch-mates.

    Args:
        prepare: as for `measure`.
        images: the test images, of which `count` are taken at equal distances (neighbours are often of one class).
        views: how pixels are normalized.
        count: at most; all images if there are fewer.
        batch_sizes: the two.
        device: where the model is.
        dtype: of the images given to the model.
    """
    chosen = images.take(spread_rows(len(images.labels), count))
    first, second = (
        predict(prepare, chosen, views, batch_size=size, device=device, dtype=dtype, title=f"batch invariance, batch {size}")
        for size in batch_sizes
    )
    return compare_logits(first, second, batch_sizes=batch_sizes)


def compare_logits(first: Logits, second: Logits, *, batch_sizes: tuple[int, int]) -> Invariance:
    """Compare logits float32 [N, K] of the same images."""
    return Invariance(
        images=len(first),
        batch_sizes=batch_sizes,
        flips=int((first.argmax(axis=1) != second.argmax(axis=1)).sum()),
        max_abs_logit_difference=float(np.abs(first - second).max()),
        bit_equal=bool(np.array_equal(first, second)),
    )


# ------------------------------------------------------------------------------------------------------------ ceilings


def measure_ceilings(device: Device, dtype: torch.dtype) -> Ceilings:
    """Time one square matrix product in `dtype` and one copy: attainable ceilings of a roofline; medians; half a second in all.

    Source: Williams et al., "Roofline: An Insightful Visual Performance Model", 2009, https://doi.org/10.1145/1498765.1498785.
    PyTorch's own product and copy are measured in the process of each timing; the data sheet's numbers are others.
    TF32 counts for fp32 where the caller has switched it on (`model.precision.matmul_mode`). For int8 weights this is the ceiling
    of the compute dtype, not of integer products.
    """
    side = _fitting(_SIDE[device], device, dtype)
    return Ceilings(
        matmul_flops_per_s=2 * side**3 / _matmul_seconds(side, device, dtype),
        matmul_side=side,
        copy_bytes_per_s=2 * _COPIED[device] / _copy_seconds(_COPIED[device], device),
        copy_bytes=2 * _COPIED[device],
    )


def _matmul_seconds(side: int, device: Device, dtype: torch.dtype) -> float:
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    return _seconds(lambda: torch.mm(left, right, out=product), device)


def _copy_seconds(size: int, device: Device) -> float:
    source = torch.zeros(size, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return _seconds(lambda: target.copy_(source), device)


def _fitting(side: int, device: Device, dtype: torch.dtype) -> int:
    """Halve the side until its three matrices take at most half of the GPU's free memory."""
    if device == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        while side > 256 and 3 * side**2 * dtype.itemsize > free / 2:
            side //= 2
    return side


def _seconds(call: Callable[[], object], device: Device) -> float:
    """Median seconds of a call: warm-up, then as many calls as the time allows."""
    deadline = time.perf_counter() + _CEILING_SECONDS[device]
    for _ in range(_CEILING_WARMUP):
        call_ms(device, call)
    samples: list[float] = []
    least, most = _CEILING_CALLS
    while len(samples) < most and (len(samples) < least or time.perf_counter() < deadline):
        samples.append(call_ms(device, call))
    return median(samples) / 1000
