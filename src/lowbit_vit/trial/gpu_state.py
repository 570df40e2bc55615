"""The GPU's state during a timing, from NVML: other processes on it, its clocks, the memory of this process, free memory.

A timing needs a whole GPU: NVML must show this process and no other. In a container NVML may show no process, or this one under
the host's number; exclusivity is unknown then, and the profile says whether to time all the same.
"""

import logging
import os
import time
from typing import Any

import pynvml
import torch

from lowbit_vit.errors import Busy, Unavailable
from lowbit_vit.schema.config import Device, Exclusive
from lowbit_vit.schema.record import Clocks

log = logging.getLogger(__name__)

GIB = 2**30
_PATIENCE_S = 5.0  # the driver may list a process for a moment after its end


# --------------------------------------------------------------------------------------------------------- exclusivity


def exclusive(device: Device, demanded: Exclusive) -> bool | None:
    """Whether this process alone computes on the GPU; None on the CPU, or where NVML does not show it and the profile allows that.

    Raises:
        Busy: another process does, or NVML does not show it, and the profile does not allow that.
    """
    if device == "cpu":
        return None
    torch.cuda.synchronize()  # so that this process is on the GPU, too
    deadline = time.monotonic() + _PATIENCE_S
    pids = _memory_by_pid()
    while pids is not None and exclusive_among(set(pids), os.getpid()) is False and demanded != "waived" and time.monotonic() < deadline:
        time.sleep(0.25)
        pids = _memory_by_pid()
    return allowed(None if pids is None else set(pids), os.getpid(), demanded)


def exclusive_among(pids: set[int], own: int) -> bool | None:
    """Judge NVML's list of processes: True if it is this one alone, False if another is on it, None if the list does not show it.

    In a container NVML shows no process, or the host's number of this one.
    """
    others = pids - {own}
    if own in pids and not others:
        return True
    if others and (own in pids or len(others) > 1):
        return False
    return None


def allowed(pids: set[int] | None, own: int, demanded: Exclusive) -> bool | None:
    """Decide whether a timing may go on, and return the record's `exclusive`.

    Args:
        pids: NVML's list, or None where it gives none.
        own: this process.
        demanded: the profile's measurement.exclusive.

    Raises:
        Busy: it may not; the message says how to change that.
    """
    found = None if pids is None else exclusive_among(pids, own)
    if found is False and demanded != "waived":
        listed = ", ".join(map(str, sorted((pids or set()) - {own})))
        raise Busy(
            f"the GPU is used by other processes (pid {listed}); a timing needs it alone: "
            "stop them and run again, or set measurement.exclusive: waived"
        )
    if found is None and demanded == "required":
        seen = "no process" if not pids else "one process by a number that is not ours"
        raise Busy(
            f"NVML cannot tell whether this process has the GPU alone (it shows {seen}, as in a container): "
            "make sure of it and set measurement.exclusive: assumed"
        )
    return found


# ------------------------------------------------------------------------------------------------------- clocks, memory


def clocks(device: Device) -> Clocks | None:
    """The GPU's clocks, temperature and throttle reasons now; None on the CPU or where NVML does not give them."""
    handle = gpu_handle() if device == "cuda" else None
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


def process_bytes() -> int | None:
    """NVML's figure of the GPU's memory used by this process; None where it does not show it."""
    return (_memory_by_pid() or {}).get(os.getpid())


def require_memory(needed: int, *, free: int, total: int) -> None:
    """Refuse a trial that cannot fit, before anything is loaded.

    Args:
        needed: bytes, at least (`model.flops.needed_bytes`).
        free: bytes of the GPU now.
        total: bytes of the GPU.

    Raises:
        Unavailable: the GPU is too small.
        Busy: it is large enough, but others hold its memory.
    """
    if needed > total:
        raise Unavailable(f"needs at least {needed / GIB:.1f} GiB of GPU memory; this GPU has {total / GIB:.1f} GiB")
    if needed > free:
        raise Busy(
            f"the GPU has {free / GIB:.1f} of {total / GIB:.1f} GiB free and this trial needs at least {needed / GIB:.1f} GiB: "
            "stop what holds it (nvidia-smi shows it) and run again"
        )


def _memory_by_pid() -> dict[int, int | None] | None:
    """Bytes of GPU memory of each compute process that NVML lists; None where it gives no list."""
    handle = gpu_handle()
    if handle is None:
        return None
    try:
        return {process.pid: process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except pynvml.NVMLError:
        return None


def gpu_handle() -> Any | None:
    """NVML's handle of torch's current GPU; None where there is no NVML."""
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
    except pynvml.NVMLError as error:
        log.warning("NVML: %s; exclusivity, clocks and process memory are unknown", error)
        return None
