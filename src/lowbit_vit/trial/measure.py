"""Latency, memory, kernel time and batch invariance of a model that is ready to run, and the device's own ceilings beside them.

Each in a pass of its own, for each batch size. Latency: CUDA events around each call on a GPU, `perf_counter_ns` on the CPU; a
warm-up, then raw samples, each call waited for. The other passes have modules of their own: `memory`, `trace`, `invariance`,
`ceilings`. The ceilings come last, so that their matrices disturb nothing. Exclusivity: `gpu_state`.
"""

import gc
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lowbit_vit.data.arrays import ImageSet
from lowbit_vit.data.batches import eval_batches
from lowbit_vit.data.progress import Bar, progress_bar
from lowbit_vit.model.flops import least_work
from lowbit_vit.model.precision import weight_bytes
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.schema.config import AttentionName, Device, Measurement, Views
from lowbit_vit.schema.record import LEAST_SAMPLES, KernelTime, Latency, MeasurementResult, Work
from lowbit_vit.trial.call_time import timer
from lowbit_vit.trial.ceilings import measure_ceilings
from lowbit_vit.trial.evaluate import Forward
from lowbit_vit.trial.gpu_state import clocks, exclusive
from lowbit_vit.trial.invariance import measure_invariance
from lowbit_vit.trial.memory import measure_memory
from lowbit_vit.trial.trace import trace


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
) -> MeasurementResult:
    """Run every pass for every batch size.

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

    Raises:
        Busy: another process uses the GPU, or NVML does not show it; see `gpu_state.exclusive`.
        LowbitVitError: the trace contradicts the attention label.
    """
    alone = exclusive(device, config.exclusive)
    gc.collect()  # what training and evaluation left behind is not this model's memory
    gc.freeze()  # what is alive now stays: a collection takes a second otherwise, and each capture asks for one
    try:

        def example(batch_size: int) -> Tensor:
            return _example(images, views, batch_size=batch_size, device=device, dtype=dtype)

        latency = [_latency(prepare, example(batch_size), config, device) for batch_size in config.batch_sizes]
        memory = [measure_memory(prepare, example(batch_size), device) for batch_size in config.batch_sizes]
        kernels: list[KernelTime] = []
        if config.trace:
            for timed in latency:
                batch = example(timed.batch_size)
                forward = prepare(batch)
                forward(batch)
                kernels.append(trace(forward, batch, attention=attention, device=device))
                del forward, batch
        invariance = None
        if config.invariance_images is not None:
            sizes = min(config.batch_sizes), max(config.batch_sizes)
            count = config.invariance_images
            invariance = measure_invariance(prepare, images, views, count=count, batch_sizes=sizes, device=device, dtype=dtype)
    finally:
        gc.unfreeze()
    ceilings = measure_ceilings(device, dtype)
    exclusive(device, config.exclusive)  # still: another process may have started meanwhile
    return MeasurementResult(
        exclusive=alone,
        latency=tuple(latency),
        memory=tuple(memory),
        kernels=tuple(kernels),
        work=tuple(_work(model, batch_size, dtype) for batch_size in config.batch_sizes),
        ceilings=ceilings,
        invariance=invariance,
    )


def _example(images: ImageSet, views: Views, *, batch_size: int, device: Device, dtype: torch.dtype) -> Tensor:
    """The first images of the set as one batch, repeated if there are fewer."""
    # No more than these: the whole set would be moved to the device for one batch.
    few = ImageSet(images.images[:batch_size], images.labels[:batch_size], images.ids[:batch_size])
    batch, _ = next(eval_batches(few, views, batch_size=batch_size, device=device, dtype=dtype))
    repeats = -(-batch_size // len(batch))
    # In the memory format of every evaluated batch; `repeat` forgets it.
    return batch.repeat(repeats, 1, 1, 1)[:batch_size].contiguous(memory_format=torch.channels_last) if repeats > 1 else batch


def _work(model: VisionTransformer, batch_size: int, dtype: torch.dtype) -> Work:
    return least_work(
        model.architecture,
        num_classes=model.num_classes,
        batch_size=batch_size,
        weight_bytes=weight_bytes(model),
        itemsize=dtype.itemsize,
    )


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
    gc.disable()  # a collection in the middle of a call would be counted as the model's time
    try:
        with progress_bar(f"latency, batch {len(example)}", config.samples, "calls") as bar:
            samples_ms = _sample(forward, example, config=config, device=device, bar=bar)
    finally:
        gc.enable()
    return Latency(
        batch_size=len(example),
        samples_ms=samples_ms,
        first_call_ms=first_call_ms,
        clocks_before=clocks_before,
        clocks_after=clocks(device),
    )


def _sample(forward: Forward, example: Tensor, *, config: Measurement, device: Device, bar: Bar) -> tuple[float, ...]:
    """Time single calls, in ms, until there are enough or the time is up."""
    timed = timer(device)
    deadline = time.perf_counter() + config.seconds
    samples: list[float] = []
    shown = 0
    while len(samples) < config.samples and (len(samples) < LEAST_SAMPLES or time.perf_counter() < deadline):
        samples.append(round(timed(forward, example), 4))
        # The bar is moved between calls, and rarely: its thread would take a core from the model.
        if len(samples) - shown >= max(1, config.samples // 20):
            bar.advance(len(samples) - shown)
            shown = len(samples)
    bar.advance(len(samples) - shown)
    return tuple(samples)


def _wait(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
