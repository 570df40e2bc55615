"""What one process of a study runs, and what it takes of a machine: a timing trial, or a chunk of a scan."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.machine import cpu_cores, gpu_count, gpu_place
from lowbit_vit.schema.plan import Weights, linear_names
from lowbit_vit.study.launch import Verb
from lowbit_vit.study.scan_partition import cut

# A process that starts and loads torch costs as much as some ten small cells: smaller chunks gain nothing. Larger ones than the
# second number gain nothing either, and a lost node would take more with it.
_CELLS_PER_CHUNK = 8
_MOST_CELLS = 64
# Scans that share one GPU: while one prepares its next cell, the other computes. Each place takes so many, one after another, where
# there are cells enough: how long a scan takes is only estimated, and the GPU that ends first then takes more of them.
_SCANS_PER_GPU = 2
_SCANS_PER_PLACE = 2
# A timing trial launches kernels from one core, and its helpers need another: with fewer for each GPU, GPUs are timed one by one.
_CORES_PER_TIMING = 2


@dataclass(frozen=True)
class Places:
    """What trials can be run on.

    Attributes:
        cpus: cores of all nodes.
        gpus: of all nodes.
        cores: of the node that a timing trial gets to itself, or shares with those on the node's other GPUs.
        gpu_kind: what every unit asks for, as Ray names it (H100); None: any.
        slots: timing trials that such a node takes at a time.
        gpu_cores: to which the processes of one GPU are kept (`cpu_affinity`); None: an equal share of a slot.
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


@dataclass(frozen=True)
class Unit:
    """What one Tune trial runs: a timing trial, or a chunk of a scan."""

    trials: tuple[Trial, ...]
    timed: bool
    threads: int
    resources: dict[str, float]

    @property
    def verb(self) -> Verb:
        """What its process does."""
        return "trial" if self.timed else "scan"


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


def make_units(missing: Sequence[Trial], places: Places, expected: Mapping[str, float]) -> list[Unit]:
    """Timing trials one by one, the other cells in chunks of those that begin alike; the longest first.

    Args:
        missing: the trials to run.
        places: what there is to run them on.
        expected: trial_id -> seconds; those that are expected to take as long stay in the grid's order.
    """
    kind = {} if places.gpu_kind is None else {f"accelerator_type:{places.gpu_kind}": 0.001}
    units = [_timing_unit(trial, places, kind) for trial in missing if trial.measurement is not None]
    units += _chunks([trial for trial in missing if trial.measurement is None], places, kind)
    return sorted(units, key=lambda unit: -sum(expected[trial.trial_id] for trial in unit.trials))


def _timing_unit(trial: Trial, places: Places, kind: dict[str, float]) -> Unit:
    on_gpu = trial.device == "cuda"
    resources: dict[str, float] = {"CPU": 1, "GPU": 1} if on_gpu else {"CPU": places.cores}
    # Trials on a node's other GPUs have the other cores; one on the CPU has them all.
    cores = places.cores_of_gpu if on_gpu else places.cores
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cores))
    return Unit(trials=(trial,), timed=True, threads=threads, resources={**resources, "profile_slot": 1, **kind})


def _chunks(scanned: Sequence[Trial], places: Places, kind: dict[str, float]) -> list[Unit]:
    if not scanned:
        return []
    on_gpu = scanned[0].device == "cuda"
    at_once = max(1, places.gpus * _SCANS_PER_GPU if on_gpu else places.cpus)
    most = at_once * _SCANS_PER_PLACE if on_gpu else at_once
    # Cells that begin with the same blocks go together: a scan computes what they share once.
    cells = sorted(
        ((blocks_of(trial), trial) for trial in scanned), key=lambda cell: [[weights.name for weights in block] for block in cell[0]]
    )
    chunks = max(min(most, math.ceil(len(scanned) / _CELLS_PER_CHUNK)), math.ceil(len(scanned) / _MOST_CELLS))
    bounds = cut([path for path, _ in cells], chunks=chunks, most=_MOST_CELLS)
    # One thread for each scan on the CPU, however many run: sums in another order would be other last bits.
    threads = max(1, places.cores_of_gpu * places.gpus // min(chunks, at_once)) if on_gpu else 1
    # Few scans get a GPU each: Ray fills one GPU before it takes the next.
    on_each = min(_SCANS_PER_GPU, math.ceil(chunks / max(1, places.gpus)))
    resources: dict[str, float] = {"CPU": 1, "GPU": 1 / on_each} if on_gpu else {"CPU": 1}
    return [
        Unit(trials=tuple(trial for _, trial in cells[start:stop]), timed=False, threads=threads, resources={**resources, **kind})
        for start, stop in pairwise(bounds)
    ]


def blocks_of(trial: Trial) -> tuple[tuple[Weights, ...], ...]:
    """Of each block, the weights of its linears."""
    names = linear_names(trial.backbone.depth, fused=trial.qkv == "fused")
    weights, each = list(trial.plan.resolve(names).values()), len(names) // trial.backbone.depth
    return tuple(tuple(weights[start : start + each]) for start in range(0, len(weights), each))
