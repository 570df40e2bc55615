"""What one process of a study runs, and what it takes of a machine: a timing trial, or a chunk of a scan; the longest first.

A study whose longest trial starts last waits for that one trial on an otherwise idle cluster. How long one takes is known from
records of earlier trials like it. A scan computes blocks that its cells share once, so its length is not the number of its cells:
consecutive cells, which begin alike, are cut into scans of about the same cost, each with the high-precision path in front.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.machine import environment_number
from lowbit_vit.schema.plan import HighPrecision, Weights, linear_names, shared_blocks
from lowbit_vit.study.launch import Verb
from lowbit_vit.study.places import Places

# A process that starts and loads torch costs as much as some ten small cells: smaller chunks gain nothing. Larger ones than the
# second number gain nothing either, and a lost node would take more with it.
_CELLS_PER_CHUNK = 8
_MOST_CELLS = 64
# Scans that share one GPU: while one prepares its next cell, the other computes. Each place takes so many, one after another, where
# there are cells enough: how long a scan takes is only estimated, and the GPU that ends first then takes more of them.
_SCANS_PER_GPU = 2
_SCANS_PER_PLACE = 2
# What one block costs in a format, in blocks of 16 bits: kernels of a ViT-L/16 at batch 32 on an H200, eager, int8 with threshold 0
# (reports/reference/h200). Elsewhere the ratios differ, and scans are a little less equal.
_OF_FORMAT = {"high": 1.0, "nf4": 1.0, "int8": 2.2}
_OF_CELL = 1.0  # what every cell costs beside its blocks: conversions, the head, sums over the images

BlockFormats = tuple[tuple[Weights, ...], ...]  # of each block, the weights of its linears


@dataclass(frozen=True)
class Unit:
    """What one Tune trial runs: a timing trial, a round of repeats (a process after another, on one GPU), or a chunk of a scan."""

    trials: tuple[Trial, ...]
    verb: Verb
    threads: int
    resources: dict[str, float]


def make_units(missing: Sequence[Trial], places: Places, expected: Mapping[str, float]) -> list[Unit]:
    """Timing trials one by one, their repeats in rounds, the other cells in chunks of those that begin alike; the longest first.

    Args:
        missing: the trials to run.
        places: what there is to run them on.
        expected: trial_id -> seconds; those that are expected to take as long stay in the grid's order.
    """
    kind = {} if places.gpu_kind is None else {f"accelerator_type:{places.gpu_kind}": 0.001}
    rounds: dict[tuple[int, str], list[Trial]] = {}
    for trial in (trial for trial in missing if trial.process):
        rounds.setdefault((trial.process, trial.device), []).append(trial)
    alone = [(trial,) for trial in missing if trial.measurement is not None and not trial.process]
    units = [_timing_unit(trials, places, kind) for trials in (*alone, *map(tuple, rounds.values()))]
    units += _chunks([trial for trial in missing if trial.measurement is None], places, kind)
    return sorted(units, key=lambda unit: -sum(expected[trial.trial_id] for trial in unit.trials))


def _timing_unit(trials: tuple[Trial, ...], places: Places, kind: dict[str, float]) -> Unit:
    on_gpu = trials[0].device == "cuda"
    resources: dict[str, float] = {"CPU": 1, "GPU": 1} if on_gpu else {"CPU": places.cores}
    # Trials on a node's other GPUs have the other cores; one on the CPU has them all.
    cores = places.cores_of_gpu if on_gpu else places.cores
    threads = int(environment_number("OMP_NUM_THREADS", max(1, cores), least=1))
    return Unit(trials=trials, verb="trial", threads=threads, resources={**resources, "profile_slot": 1, **kind})


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
        Unit(trials=tuple(trial for _, trial in cells[start:stop]), verb="scan", threads=threads, resources={**resources, **kind})
        for start, stop in pairwise(bounds)
    ]


def blocks_of(trial: Trial) -> BlockFormats:
    """Of each block, the weights of its linears."""
    names = linear_names(trial.backbone.depth, fused=trial.qkv == "fused")
    weights, each = list(trial.plan.resolve(names).values()), len(names) // trial.backbone.depth
    return tuple(tuple(weights[start : start + each]) for start in range(0, len(weights), each))


# ------------------------------------------------------------------------------------------------- cuts between scans


def cut(paths: Sequence[BlockFormats], *, chunks: int, most: int) -> list[int]:
    """Cut consecutive cells so that the most expensive chunk costs as little as it can, to a thousandth.

    Args:
        paths: of each cell, all of one depth, in the order in which they are scanned.
        chunks: how many at most.
        most: cells of a chunk, at most; `chunks` times `most` is enough for all.

    Returns:
        The bounds: chunk i holds the cells bounds[i] up to bounds[i + 1].
    """
    begun, going_on = _costs(paths)
    low, high = 0.0, sum(begun)
    while high - low > high / 1000:
        middle = (low + high) / 2
        if len(_fill(begun, going_on, most=most, budget=middle)) - 1 <= chunks:
            high = middle
        else:
            low = middle
    return _fill(begun, going_on, most=most, budget=high)


def cost(paths: Sequence[BlockFormats]) -> float:
    """Of one scan of these cells, in this order, in blocks of 16 bits; beside the high-precision path."""
    begun, going_on = _costs(paths)
    return begun[0] + sum(going_on)


def _costs(paths: Sequence[BlockFormats]) -> tuple[list[float], list[float]]:
    """What each cell costs as a scan's first, and what it costs after the one before it (of the very first: nothing)."""
    high_precision = tuple(tuple(HighPrecision() for _ in block) for block in paths[0])
    begun = [_cost(path, shared_blocks(high_precision, path)) for path in paths]
    after_another = [_cost(path, shared_blocks(before, path)) for before, path in pairwise(paths)]
    return begun, [0.0, *map(min, begun[1:], after_another)]


def _fill(begun: Sequence[float], going_on: Sequence[float], *, most: int, budget: float) -> list[int]:
    """Bounds of chunks that each take cells as long as the budget lasts; a cell that is over it has a chunk to itself."""
    bounds, cost = [0], begun[0]
    for index in range(1, len(begun)):
        cost += going_on[index]
        if cost > budget or index - bounds[-1] == most:
            bounds.append(index)
            cost = begun[index]
    return [*bounds, len(begun)]


def _cost(path: BlockFormats, start: int) -> float:
    """Of a cell whose blocks before `start` are there already."""
    return _OF_CELL + sum(_OF_FORMAT.get(weights.format, 1.0) / len(block) for block in path[start:] for weights in block)


# --------------------------------------------------------------------------------------------------- expected seconds


def expected_seconds(trials: Sequence[Trial], folder: Path) -> dict[str, float]:
    """Expect of each trial what the median of those like it took: of its own kind, else of its study.

    Args:
        trials: of one study.
        folder: with records of that study, whatever made them: a record of older code has a duration, too.

    Returns:
        trial_id -> seconds; infinite where nothing like it has run, so that it starts before all that is known.
    """
    by_kind: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for path in folder.glob("[!.]*.json"):
        # Read as JSON alone: 10,000 records are validated elsewhere, and one that is damaged has no duration.
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            record = json.loads(path.read_bytes())
            seconds = sum(record["durations_s"].values())
            if seconds > 0:
                by_kind[_kind(record["trial"])].append(seconds)
    of_all = [seconds for group in by_kind.values() for seconds in group]
    typical = statistics.median(of_all) if of_all else float("inf")
    known = {kind: statistics.median(seconds) for kind, seconds in by_kind.items()}
    return {trial.trial_id: known.get(_kind(trial.model_dump(mode="json")), typical) for trial in trials}


def _kind(trial: dict[str, Any]) -> tuple[str, ...]:
    formats = sorted({rule["weights"]["format"] for rule in trial["plan"]["rules"]} - {"high"})
    axes = ("attention", "adaptation", "execution", "device")
    repeat = "repeat" if trial.get("process") else ""
    return (*formats, trial["plan"]["compute_dtype"], *(trial[axis] for axis in axes), repeat)
