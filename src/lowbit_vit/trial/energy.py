"""Joules of an image: calls back to back between two updates of the device's energy counter.

On a GPU NVML's total energy, of the whole GPU since its driver was loaded; on a CPU RAPL's, of all processor packages. Either moves in
steps: the period is found by reading the counter until it moves, and calls run for 50 periods at least, so that a step is 2 % at most.
A counter that is absent, stands still or goes back gives no energy, never 0, and one line in the log.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Literal

import pynvml
import torch

from lowbit_vit.schema.config import Device
from lowbit_vit.schema.record import Energy
from lowbit_vit.trial.gpu_state import clocks, gpu_handle

log = logging.getLogger(__name__)

POWERCAP = Path("/sys/class/powercap")
_UPDATES = 50  # of the counter during the calls, at least
_IDLE_UPDATES, _IDLE_S = 10, 0.5  # at least, each of both
_SETTLE_S = 1.0  # of calls before the first that count: NVML's power is the mean of a second, and clocks fall within one
_STALL_S = 5.0  # without an update
_CHUNK_S = 0.02  # of calls between two readings
_PAUSE_S = 0.001  # between two readings of an idle device


class _UnusableError(Exception):
    """The counter went back, or stands still."""


@dataclass(frozen=True)
class Counter:
    """A device's energy counter.

    Attributes:
        source: who counts.
        joules: reads it; only differences mean anything.
        watts: reads the power of the last second; None where there is no such reading.
    """

    source: Literal["nvml", "rapl"]
    joules: Callable[[], float]
    watts: Callable[[], float] | None = None


@dataclass(frozen=True)
class _Reading:
    seconds: float
    joules: float
    calls: int = 0


def find_counter(device: Device) -> Counter | None:
    """The device's counter, which was read once; None, and a line in the log, where there is none."""
    found = _nvml() if device == "cuda" else _rapl()
    if found is None:
        where = "NVML gives no total energy of this GPU" if device == "cuda" else f"{POWERCAP} has no processor package that can be read"
        log.warning("energy: %s; none is recorded", where)
    return found


def _nvml() -> Counter | None:
    handle = gpu_handle()
    if handle is None:
        return None
    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        pynvml.nvmlDeviceGetPowerUsage(handle)
    except pynvml.NVMLError:
        return None
    return Counter(
        source="nvml",
        joules=lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000,
        watts=lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    )


def _rapl() -> Counter | None:
    """Source: https://docs.kernel.org/power/powercap/powercap.html."""
    try:
        zones = [zone for zone in sorted(POWERCAP.glob("intel-rapl:*")) if (zone / "name").read_text().startswith("package")]
        ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        last = [int((zone / "energy_uj").read_text()) for zone in zones]
    except OSError:
        return None
    if not zones:
        return None
    total = 0

    def joules() -> float:
        nonlocal total
        for place, zone in enumerate(zones):
            now = int((zone / "energy_uj").read_text())
            total += now - last[place] if now >= last[place] else now - last[place] + ranges[place]  # it starts anew behind its range
            last[place] = now
        return total / 1e6

    return Counter(source="rapl", joules=joules)


def measure_energy(call: Callable[[], object], counter: Counter, *, batch_size: int, seconds: float, device: Device) -> Energy | None:
    """Energy of calls back to back, and the idle power before and after them.

    Args:
        call: one forward of a batch, warmed up.
        counter: of the device.
        batch_size: images a call.
        seconds: of calls, at least; more where the counter moves seldom.
        device: that the calls run on.

    Returns:
        None, and a line in the log, where the counter goes back, stands still for 5 s, or cannot be read any more.
    """
    try:
        _wait(device)
        before, update_s = _idle(counter)
        clocks_before = clocks(device)
        calls = _calls_of_a_chunk(call, device)
        first, last, watts = _count(call, counter, calls=calls, seconds=max(seconds, _UPDATES * update_s), device=device)
        clocks_during = clocks(device)
        _wait(device)
        after, _ = _idle(counter)
    except (_UnusableError, pynvml.NVMLError, OSError) as error:
        log.warning("energy, batch %d: %s; none is recorded", batch_size, error)
        return None
    return Energy(
        batch_size=batch_size,
        images=batch_size * (last.calls - first.calls),
        seconds=round(last.seconds - first.seconds, 6),
        joules=round(last.joules - first.joules, 6),
        source=counter.source,
        update_ms=round(1000 * update_s, 3),
        idle_watts_before=round(before, 3),
        idle_watts_after=round(after, 3),
        sampled_watts=round(fmean(watts), 3) if watts else None,
        clocks_before=clocks_before,
        clocks_during=clocks_during,
    )


def _idle(counter: Counter) -> tuple[float, float]:
    """Watts of the idle device between two updates of its counter, and the counter's period in s."""
    first = last = _next_update(counter, counter.joules())
    gaps: list[float] = []
    while len(gaps) < _IDLE_UPDATES or last.seconds - first.seconds < _IDLE_S:
        update = _next_update(counter, last.joules)
        gaps.append(update.seconds - last.seconds)
        last = update
    return (last.joules - first.joules) / (last.seconds - first.seconds), median(gaps)


def _next_update(counter: Counter, joules: float) -> _Reading:
    """Read until the counter is not at `joules` any more."""
    started = time.perf_counter()
    while True:
        time.sleep(_PAUSE_S)
        reading = _Reading(time.perf_counter(), counter.joules())
        if _moved(reading, joules, since=started):
            return reading


def _moved(reading: _Reading, joules: float, *, since: float) -> bool:
    """Whether the counter moved on from `joules`, where it has been since a time."""
    if reading.joules < joules:
        raise _UnusableError(f"the energy counter went back from {joules:.3f} to {reading.joules:.3f} J")
    if reading.joules == joules and reading.seconds - since > _STALL_S:
        raise _UnusableError(f"the energy counter stood still for {_STALL_S:g} s")
    return reading.joules > joules


def _calls_of_a_chunk(call: Callable[[], object], device: Device) -> int:
    """How many calls take some 20 ms."""
    started, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - started < _CHUNK_S:
        call()
        _wait(device)
        calls += 1
    return max(1, round(calls * _CHUNK_S / (time.perf_counter() - started)))


def _count(
    call: Callable[[], object], counter: Counter, *, calls: int, seconds: float, device: Device
) -> tuple[_Reading, _Reading, list[float]]:
    """Run calls in chunks; the first and the last update that count, and the power in between. The last chunk is left running."""
    done, queued = 0, _enqueue(call, calls, device)
    started = moved_at = time.perf_counter()
    joules = counter.joules()
    first: _Reading | None = None
    watts: list[float] = []
    while True:
        following = _enqueue(call, calls, device)  # before the last one is waited for: the GPU never waits for Python
        if queued is not None:
            queued.synchronize()
        queued, done = following, done + calls
        reading = _Reading(time.perf_counter(), counter.joules(), done)
        if first is not None and counter.watts is not None:
            watts.append(counter.watts())
        if not _moved(reading, joules, since=moved_at):
            continue
        joules, moved_at = reading.joules, reading.seconds
        if first is None and reading.seconds - started >= _SETTLE_S:
            first = reading
        elif first is not None and reading.seconds - first.seconds >= seconds:
            return first, reading, watts


def _enqueue(call: Callable[[], object], calls: int, device: Device) -> torch.cuda.Event | None:
    """Start so many calls; the event after them, or None on a CPU, where they are done."""
    for _ in range(calls):
        call()
    if device == "cpu":
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def _wait(device: Device) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
