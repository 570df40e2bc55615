"""What trials can be run on: cores and GPUs, and the cores that the processes of each GPU are kept to.

A low-bit forward is thousands of launches from one core. Two such processes on shared cores would be seen in each other's latencies;
each GPU's processes are therefore kept to a share of the machine's cores, the same for every run, whatever GPUs the run may use.
"""

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lowbit_vit.schema.machine import cpu_cores, gpu_count, gpu_place

# A timing trial launches kernels from one core, and its helpers need another: with fewer for each GPU, GPUs are timed one by one.
_CORES_PER_TIMING = 2
SYSTEM = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Places:
    """What trials can be run on.

    Attributes:
        cpus: cores of all nodes.
        gpus: of all nodes.
        cores: of the node that a timing trial gets to itself, or shares with those on the node's other GPUs.
        gpu_kind: what every unit asks for, as Ray names it (H100); None: any.
        slots: timing trials that such a node takes at a time.
        gpu_cores: to which the processes of one GPU are kept; None: an equal share of a slot.
    """

    cpus: int
    gpus: int
    cores: int
    gpu_kind: str | None = None
    slots: int = 1
    gpu_cores: int | None = None

    @property
    def cores_of_gpu(self) -> int:
        """What one GPU's processes have."""
        return self.cores // self.slots if self.gpu_cores is None else self.gpu_cores


def this_machine() -> Places:
    """The cores and GPUs that this process may use."""
    cores, gpus, place = cpu_cores(), gpu_count(), gpu_place()
    # GPUs that are not visible have their cores, too.
    of_machine = max(gpus, 0 if place is None else place[1])
    share = cores // timing_slots(cores=cores, gpus=of_machine)
    return Places(cpus=cores, gpus=gpus, cores=cores, slots=timing_slots(cores=cores, gpus=gpus), gpu_cores=share)


def timing_slots(*, cores: int, gpus: int) -> int:
    """Timing trials that a machine takes at a time: one a GPU where each can have cores of its own, else one."""
    return gpus if gpus > 1 and cores >= gpus * _CORES_PER_TIMING else 1


def keep_to_cores_of_gpu() -> None:
    """Keep this thread, and every process that it starts afterwards, to the cores of the GPU that it sees.

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

    By number where the system does not name sockets and cores.
    """

    def place(core: int) -> tuple[int, int, int]:
        try:
            socket, physical = (int((system / f"cpu{core}" / "topology" / name).read_text()) for name in ("physical_package_id", "core_id"))
        except (OSError, ValueError):
            return 0, core, core
        return socket, physical, core

    return sorted(cores, key=place)
