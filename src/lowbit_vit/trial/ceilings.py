"""What the device itself can do, measured in the process of each timing: the ceilings of its roofline.

Source: Williams et al., "Roofline: An Insightful Visual Performance Model", 2009, https://doi.org/10.1145/1498765.1498785.
Attainable ceilings, measured with PyTorch's own matrix product and copy; not the data sheet's.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from lowbit_vit.schema.config import Device
from lowbit_vit.schema.record import Ceilings
from lowbit_vit.trial.call_time import timer

SIDE = {"cuda": 8192, "cpu": 1024}
COPIED = {"cuda": 512 * 2**20, "cpu": 64 * 2**20}  # bytes of one tensor: beyond any cache
_SECONDS = {"cuda": 0.25, "cpu": 0.3}  # of each of the two; on an H100 all calls take less
_WARMUP = 2
_CALLS = (3, 50)  # least and most


def measure_ceilings(device: Device, dtype: torch.dtype) -> Ceilings:
    """Time one square matrix product in `dtype` and one copy; medians; half a second in all.

    TF32 counts for fp32 where the caller has switched it on (`model.precision.matmul_mode`). For int8 weights this is the ceiling
    of the compute dtype, not of integer products.
    """
    side = _fitting(SIDE[device], device, dtype)
    return Ceilings(
        matmul_flops_per_s=2 * side**3 / _matmul_seconds(side, device, dtype),
        matmul_side=side,
        copy_bytes_per_s=2 * COPIED[device] / _copy_seconds(COPIED[device], device),
        copy_bytes=2 * COPIED[device],
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
    timed = timer(device)
    deadline = time.perf_counter() + _SECONDS[device]
    for _ in range(_WARMUP):
        timed(call)
    samples: list[float] = []
    least, most = _CALLS
    while len(samples) < most and (len(samples) < least or time.perf_counter() < deadline):
        samples.append(timed(call))
    return median(samples) / 1000
