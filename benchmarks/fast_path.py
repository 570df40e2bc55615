"""The fast path against what else a user could pick, in one run on one GPU: ViT-L/16, batch 1 and 32, bf16, random weights.

    python benchmarks/fast_path.py                  every side, and the products' ceilings; more than 5 minutes, most of them compiling
    python benchmarks/fast_path.py --group gemlite  one group alone, into a record of its own; steps: each step undone
    python benchmarks/fast_path.py --tiles          every candidate tile at every shape instead; a minute
    python benchmarks/fast_path.py --sustained      ratios after a second and after a minute without a pause, batch 32

Sides come in groups: this package and bitsandbytes, then torchao and gemlite where they are installed; gemlite last, for it tunes its
kernels for minutes. Sides of a group are timed in turns, `ROUNDS` times, so that a slow spell of the GPU meets all of them, and the
reference, bf16 with compiled blocks in a CUDA graph, takes part in every group. What is said of each side is the median of all its
samples and its ratio to the reference in its group, and of one forward of ours the time of each kernel. A side that cannot run is in the
record with the reason. Speed depends on weights only through LLM.int8's outliers, which random weights hardly have, so that side is
flattered.

The sides are in `fast_path_sides.py`, the bound that the products set in `fast_path_ceilings.py`.
"""

import argparse
import gc
import importlib.metadata
import importlib.util
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # not in its __all__
from torch.profiler import ProfilerActivity, profile

from fast_path_ceilings import all_tiles, ceilings
from fast_path_sides import BY_NAME, GROUPS, OURS, REFERENCE, REFERENCE_SIDE, Forward
from lowbit_vit.errors import Unavailable
from lowbit_vit.schema.machine import provenance
from lowbit_vit.trial.measure import call_ms
from lowbit_vit.trial.trace import own_times

RECORDS = Path(__file__).parent / "records"
BATCHES = (1, 32)
ROUNDS, CALLS = 5, 40  # 200 samples a side
WARMUP = 10
SUSTAINED = ("bf16, compiled, GELU by our pass, graph", "fp8, graph", "W8A8, graph")
MINUTE_S, IN_A_ROW = 60.0, 20
NAME_LENGTH = 80  # templates' names run to a thousand characters


def main() -> None:
    """Time what was asked for and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", action="store_true", help="time every candidate tile at every shape instead")
    parser.add_argument("--group", choices=BY_NAME, help="time this group alone, beside the reference")
    parser.add_argument("--sustained", action="store_true", help="time 8-bit and bf16 in turns for a minute without a pause instead")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        raise Unavailable("benchmarks/fast_path.py needs CUDA")
    facts = provenance("python benchmarks/fast_path.py")
    machine = {"gpu": facts.gpu, "driver": facts.driver, "cuda": facts.cuda, "git_revision": facts.git_revision, "packages": packages()}
    part = "sustained" if asked.sustained else asked.group
    path = RECORDS / ("fast_tiles.json" if asked.tiles else f"fast_path-{part}.json" if part else "fast_path.json")
    groups = {asked.group: BY_NAME[asked.group]} if asked.group else GROUPS
    instead = [all_tiles(BATCHES)] if asked.tiles else [sustained(BATCHES[-1])] if asked.sustained else None
    for found in instead or all_sides(groups):
        path.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")
    print(path.read_text())


def packages() -> dict[str, str]:
    """Versions of what takes part; of a package that was only copied, nothing says which it is."""
    names = ("torch", "triton", "bitsandbytes", "torchao", "gemlite")
    return {name: version(name) for name in names if importlib.util.find_spec(name) is not None}


def version(name: str) -> str:
    """As installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown: it has no metadata"


def all_sides(chosen: dict[str, dict[str, Callable[[Tensor], Forward]]]) -> Iterator[dict[str, object]]:
    """A group at one batch size more each time, the ceilings after the first group: a run that is cut short leaves what it has."""
    batches: dict[int, dict[str, object]] = {batch: {} for batch in BATCHES}
    found = {"rounds": ROUNDS, "calls": CALLS, "batches": batches}
    reference_ms: dict[int, float] = {}
    for group, sides in chosen.items():
        for batch, groups in batches.items():
            groups[group] = timed = time_group(group, sides, batch)
            reference_ms.setdefault(batch, timed["median_ms"][REFERENCE])
            yield found
        for batch, groups in batches.items():
            if sides is OURS:
                groups["ceilings"] = ceilings(batch, reference_ms[batch])
                yield found


def time_group(group: str, sides: dict[str, Callable[[Tensor], Forward]], batch: int) -> dict[str, Any]:
    """Medians of the sides and the reference, and ratios to it, at one batch size."""
    example = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    forwards: dict[str, Forward] = {}
    prepared: dict[str, float] = {}
    skipped: dict[str, str] = {}
    makers = {REFERENCE: REFERENCE_SIDE, **sides}
    for name, make in track(makers.items(), f"prepare {group}, batch {batch}"):
        start = time.perf_counter()
        try:
            forwards[name] = make(example)
            for _ in range(WARMUP):
                forwards[name](example)
            torch.cuda.synchronize()
            prepared[name] = round(time.perf_counter() - start, 1)
            print(f"{prepared[name]:6.1f} s to prepare {name}", flush=True)
        except Exception as error:
            if name == REFERENCE:
                raise
            skipped[name] = " ".join(str(error).split())[:200] or type(error).__name__
            forwards.pop(name, None)
        gc.collect()
        torch.cuda.empty_cache()
        torch.compiler.reset()  # graphs are captured; the next side's blocks would count as recompilations of this one's
    samples: dict[str, list[float]] = {name: [] for name in forwards}
    for _ in track(range(ROUNDS), f"time {group}, batch {batch}"):
        for name, forward in forwards.items():
            samples[name] += [call_ms("cuda", forward, example) for _ in range(CALLS)]
    medians = {name: round(median(values), 4) for name, values in samples.items()}
    return {
        "prepare_s": prepared,
        "median_ms": medians,
        "times_the_reference": {name: round(medians[REFERENCE] / value, 3) for name, value in medians.items()},
        "kernels_us": {name: kernels_us(forward, example) for name, forward in forwards.items() if name.endswith("graph")}
        if group in ("ours", "steps")
        else {},
        "skipped": skipped,
    }


def sustained(batch: int) -> dict[str, object]:
    """Milliseconds of a call in the first second and in the last of a minute in which the GPU never waits: its clock gives way."""
    example = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    chosen = {REFERENCE: REFERENCE_SIDE} | {name: OURS[name] for name in SUSTAINED}
    forwards = {name: make(example) for name, make in chosen.items()}
    torch.cuda.synchronize()
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in forwards}
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < MINUTE_S:
        for name, forward in forwards.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            for _ in range(IN_A_ROW):
                forward(example)
            end.record()
            end.synchronize()
            samples[name].append((passed, start.elapsed_time(end) / IN_A_ROW))
    found: dict[str, object] = {"batch": batch}
    for label, first, last in (("in the first second", 0.0, 1.0), ("after a minute", MINUTE_S - 5, MINUTE_S)):
        ms = {name: round(median(ms for passed, ms in values if first <= passed < last), 4) for name, values in samples.items()}
        found[label] = {"ms": ms, "times_the_reference": {name: round(ms[REFERENCE] / value, 3) for name, value in ms.items()}}
    return found


def kernels_us(forward: Forward, example: Tensor) -> dict[str, float]:
    """Microseconds of each kernel in one forward, summed by name, the twelve longest; without what a kernel waits for another."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        forward(example)
        torch.cuda.synchronize()
    times: dict[str, float] = defaultdict(float)
    for name, microseconds in own_times(event for event in seen.events() or () if event.device_type == DeviceType.CUDA):
        times[name[:NAME_LENGTH]] += microseconds
    longest = sorted(times, key=lambda name: -times[name])[:12]
    return {name: round(times[name], 1) for name in longest}


if __name__ == "__main__":
    main()
