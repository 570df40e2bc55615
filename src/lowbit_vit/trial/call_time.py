"""The time of one call: between CUDA events on a GPU, by `perf_counter_ns` on the CPU. Each call is waited for."""

import time
from collections.abc import Callable

import torch

from lowbit_vit.schema.config import Device


def timer(device: Device) -> Callable[..., float]:
    """What calls its first argument with the others, and returns milliseconds."""
    return ms_on_gpu if device == "cuda" else _ms_on_cpu


def ms_on_gpu(call: Callable[..., object], *arguments: object) -> float:
    """Milliseconds on the current CUDA device."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    call(*arguments)
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _ms_on_cpu(call: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter_ns()
    call(*arguments)
    return (time.perf_counter_ns() - started) / 1e6
