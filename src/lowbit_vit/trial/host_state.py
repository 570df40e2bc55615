"""What the host was like while latencies were taken: pressure on its CPUs, stolen time, the speed of Python and of a launch.

An eager forward waits for Python. On a virtual machine a core can be half as fast for seconds while the guest sees no stolen time, so
the speed of a loop of plain Python is taken between the calls, too.
"""

import os
import time
from pathlib import Path
from statistics import median

import torch

from lowbit_vit.schema.config import Device
from lowbit_vit.schema.metrics import DISTURBED_PRESSURE
from lowbit_vit.schema.record import Host

_LOOK_SECONDS = 0.1
_LOOPS = 5_000  # some 0.2 ms
_LAUNCHES = 50


def wait_for_quiet(most_seconds: float) -> None:
    """Return when little else wants a CPU, or after that time; the record says then what the calls were beside."""
    deadline = time.perf_counter() + most_seconds
    while (before := cpu_waiting_us()) is not None:
        started = time.perf_counter()
        time.sleep(_LOOK_SECONDS)
        waited = ((cpu_waiting_us() or before) - before) / 1e6
        if waited <= DISTURBED_PRESSURE * (time.perf_counter() - started) or time.perf_counter() > deadline:
            return


class HostWatch:
    """Looks at the host from its making until `seen`; `sample` in between adds to the medians.

    Args:
        device: that the calls run on; launches are timed on a GPU alone.
    """

    def __init__(self, device: Device) -> None:
        self._target = torch.zeros(1, device="cuda") if device == "cuda" else None
        self._loops_ns: list[float] = []
        self._launches_us: list[float] = []
        self.sample()
        self._started = time.perf_counter(), cpu_waiting_us(), _cpu_ticks()

    def sample(self) -> tuple[float, float | None]:
        """Time a loop of plain Python, ns a turn, and, on a GPU that has nothing to do, launches of a small kernel, us each."""
        before = time.perf_counter_ns()
        for _ in range(_LOOPS):
            pass
        self._loops_ns.append((time.perf_counter_ns() - before) / _LOOPS)
        if self._target is not None:
            before = time.perf_counter_ns()
            for _ in range(_LAUNCHES):
                self._target.add_(1)
            self._launches_us.append((time.perf_counter_ns() - before) / _LAUNCHES / 1000)
            torch.cuda.synchronize()
        return self._loops_ns[-1], self._launches_us[-1] if self._launches_us else None

    def seen(self) -> Host:
        """The host since the watch was made."""
        started, waiting, (stolen, ticks) = self._started
        waiting_now, (stolen_now, ticks_now) = cpu_waiting_us(), _cpu_ticks()
        wall_us = (time.perf_counter() - started) * 1e6
        waited = None if waiting is None or waiting_now is None else waiting_now - waiting
        return Host(
            launch_us=round(median(self._launches_us), 3) if self._launches_us else None,
            python_loop_ns=round(median(self._loops_ns), 3),
            python_loop_most_ns=round(max(self._loops_ns), 3),
            cpu_pressure=None if waited is None else round(min(1.0, waited / wall_us), 4),
            steal=round((stolen_now - stolen) / (ticks_now - ticks), 4) if ticks_now > ticks else None,
            load=round(os.getloadavg()[0], 2),
            core_mhz=_core_mhz(),
        )


def cpu_waiting_us() -> int | None:
    """Microseconds since the start of the system in which some task waited for a CPU (PSI); None where the kernel does not say.

    Source: https://docs.kernel.org/accounting/psi.html.
    """
    try:
        some = Path("/proc/pressure/cpu").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    return int(some.rpartition("total=")[2])


def _cpu_ticks() -> tuple[int, int]:
    """Ticks of all cores that the hypervisor gave to others, and all ticks; zeros where there is no /proc/stat."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return 0, 0
    ticks = [int(value) for value in line.split()[1:9]]  # the last two, of guests, are counted in the first ones
    return ticks[7], sum(ticks)


def _core_mhz() -> float | None:
    """Median clock of the cores as Linux shows it; a virtual machine shows its nominal one. None where it shows none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    clocks = [float(line.rpartition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return median(clocks) if clocks else None
