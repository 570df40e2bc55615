"""CPU cores of its own for each GPU of a machine, so that one GPU's host process never waits for another's.

A low-bit forward is thousands of launches from one core. Two such processes that the kernel moves about on shared cores would be
seen in each other's latencies; each GPU's processes are therefore kept to a share of the machine's cores, the same for every run,
whatever GPUs the run may use.
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

from lowbit_vit.schema.machine import gpu_place
from lowbit_vit.study.units import timing_slots

SYSTEM = Path("/sys/devices/system/cpu")


def keep_to_cores_of_gpu() -> None:
    """Keep this thread, and every process that it starts from now on, to the cores of the GPU that it sees.

    Does nothing where no GPU is visible, or the machine has one, or too few cores to give each GPU its own.
    """
    place = gpu_place()
    if place is None:
        return
    index, gpus = place
    # The main thread's: this thread may have been kept to a GPU's before.
    cores = neighbours(os.sched_getaffinity(os.getpid()))
    if timing_slots(cores=len(cores), gpus=gpus) > 1:
        os.sched_setaffinity(threading.get_native_id(), cores_of_gpu(cores, index=index, gpus=gpus))


def cores_of_gpu(cores: list[int], *, index: int, gpus: int) -> list[int]:
    """An equal share of the cores.

    Args:
        cores: that may be used, in the order of `neighbours`.
        index: of the GPU, from 0.
        gpus: of the machine.
    """
    share = len(cores) // gpus
    return cores[index * share : (index + 1) * share]


def neighbours(cores: Iterable[int], *, system: Path = SYSTEM) -> list[int]:
    """In an order that keeps a socket together, and in it the threads of one physical core: shares of two GPUs do not meet in a core.

    Where the system does not say what belongs together, by number.
    """

    def place(core: int) -> tuple[int, int, int]:
        try:
            socket, physical = (int((system / f"cpu{core}" / "topology" / name).read_text()) for name in ("physical_package_id", "core_id"))
        except (OSError, ValueError):
            return 0, core, core
        return socket, physical, core

    return sorted(cores, key=place)
