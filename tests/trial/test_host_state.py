"""The host's state beside a timing: what the kernel counts, and what a loop of Python takes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowbit_vit.trial import host_state
from lowbit_vit.trial.host_state import HostWatch, cpu_waiting_us


@pytest.mark.skipif(cpu_waiting_us() is None, reason="this kernel counts no pressure (/proc/pressure/cpu)")
def test_more_tasks_than_cores_are_pressure() -> None:
    cores = len(os.sched_getaffinity(0))
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * cores)]
    try:
        time.sleep(0.3)  # until all of them run
        watch = HostWatch("cpu")
        time.sleep(0.5)
        seen = watch.seen()
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert seen.cpu_pressure is not None
    assert seen.cpu_pressure > 0.5


def test_what_the_kernel_does_not_say_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    seen = HostWatch("cpu").seen()
    assert (seen.cpu_pressure, seen.steal, seen.launch_us, seen.core_mhz) == (None, None, None, None)


def test_the_slowest_loop_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 5_000, 0, 50_000, 0, 10_000])  # ns; loops of 1, 10 and 2 ns a turn
    watch = HostWatch.__new__(HostWatch)
    monkeypatch.setattr(host_state, "_LOOPS", 5_000)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(clock))
    watch._target, watch._loops_ns, watch._launches_us = None, [], []
    for _ in range(3):
        watch.sample()
    watch._started = 0.0, None, (0, 0)
    seen = watch.seen()
    assert (seen.python_loop_ns, seen.python_loop_most_ns) == (2, 10)
