"""Why does an eager latency differ between processes? ViT-L/16, batch 1, each process under one condition, in seeded rounds.

    python benchmarks/eager_spread.py [--rounds 5]

Every process measures the same four sides one after another, twice (forth and back), so that what differs between sides, between two
passes of one process and between processes can be told apart. Beside each latency stand what the process can see of its host: the time
of a launch of an empty kernel and of a loop of pure Python, the core it ran on and its clock, context switches, stolen time, and the
GPU's clock. A condition changes one thing: the cores that the process may use, the allocator, garbage collection, hashing of strings,
the layout of the address space, huge pages. `plain` changes none and is drawn twice a round.

Writes records/eager_spread.json after each process.
"""

import argparse
import gc
import json
import math
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fast_path_sides import SINGLE, ours
from lowbit_vit.schema.plan import HighPrecision, Int8

RECORD = Path(__file__).parent / "records" / "eager_spread.json"
CALLS = 120
WARMUP = 20
LAUNCHES = 5_000
LOOPS = 2_000_000
SECONDS = 120
CORES = sorted(os.sched_getaffinity(0))
# Condition: environment, command in front of Python, argument of the child.
CONDITIONS: dict[str, tuple[dict[str, str], list[str], str]] = {
    "plain": ({}, [], ""),
    "plain again": ({}, [], ""),
    "pinned to one core": ({}, ["taskset", "-c", str(CORES[len(CORES) // 2])], ""),
    "pinned to the first four cores": ({}, ["taskset", "-c", ",".join(map(str, CORES[:4]))], ""),
    "no garbage collection": ({}, [], "no-gc"),
    "strings hashed alike": ({"PYTHONHASHSEED": "0"}, [], ""),
    "no random address space": ({"PYTHONHASHSEED": "0"}, ["setarch", "-R"], ""),
    "one OpenMP thread": ({"OMP_NUM_THREADS": "1"}, [], ""),
    "malloc with huge pages": ({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}, [], ""),
    "allocator with expandable segments": ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, [], ""),
}


def child(argument: str) -> None:
    """One process: every side twice, printed as one line of JSON."""
    torch.set_grad_enabled(False)
    makers = {
        "bf16, eager": ours(HighPrecision(), "eager"),
        "NF4, eager": ours(SINGLE, "eager"),
        "int8 0.0, eager": ours(Int8(format="int8", threshold=0.0), "eager"),
        "bf16, graph": ours(HighPrecision(), "cuda_graph"),
    }
    example = torch.randn(1, 3, 224, 224, device="cuda", dtype=torch.bfloat16)
    sides = {name: make(example) for name, make in makers.items()}
    for side in sides.values():
        for _ in range(WARMUP):
            side(example)
    torch.cuda.synchronize()
    if argument == "no-gc":
        gc.collect()
        gc.disable()
    orders = (list(sides), list(reversed(sides)))
    passes = [{"host": _host(), "ms": {name: _quantiles(sides[name], example) for name in order}} for order in orders]
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"passes": passes, "host_after": _host(), "involuntary": used.ru_nivcsw, "voluntary": used.ru_nvcsw}))


def _quantiles(call: Callable[[Tensor], object], example: Tensor) -> dict[str, float]:
    """P5, P50 and P95 of a call by CUDA events; and what the host needs to enqueue it."""
    took, enqueued = [], []
    for _ in range(CALLS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        before = time.perf_counter_ns()
        call(example)
        enqueued.append((time.perf_counter_ns() - before) / 1e6)
        end.record()
        end.synchronize()
        took.append(start.elapsed_time(end))
    took.sort()
    shares = {"p5": 0.05, "p50": 0.5, "p95": 0.95}
    quantiles = {name: round(took[int(share * CALLS)], 4) for name, share in shares.items()}
    return quantiles | {"enqueue_p50": round(statistics.median(enqueued), 4)}


def _host() -> dict[str, float]:
    """What the process sees of its host now."""
    torch.cuda.synchronize()
    one = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    before = time.perf_counter()
    for _ in range(LAUNCHES):
        one.add_(1)
    launch = (time.perf_counter() - before) / LAUNCHES * 1e6
    torch.cuda.synchronize()
    before = time.perf_counter()
    total = 0
    for number in range(LOOPS):
        total += number
    loop = (time.perf_counter() - before) / LOOPS * 1e9
    core = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[36])
    clocks = [float(line.rpartition(":")[2]) for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("cpu MHz")]
    ticks = Path("/proc/stat").read_text().splitlines()[0].split()
    return {
        "launch_us": round(launch, 3),
        "python_loop_ns": round(loop, 2),
        "core": core,
        "core_mhz": clocks[core] if core < len(clocks) else 0.0,
        "stolen_ticks": float(ticks[8]),
        "gpu_mhz": float(torch.cuda.clock_rate()),
        "load": os.getloadavg()[0],
    }


def measure(condition: str) -> dict[str, Any]:
    """One process under a condition: what it printed, or why it has nothing."""
    environment, front, argument = CONDITIONS[condition]
    if front and shutil.which(front[0]) is None:
        return {"condition": condition, "skipped": f"{front[0]} is not here"}
    command = [*front, sys.executable, __file__, "--child", argument]
    try:
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"condition": condition, "skipped": f"more than {SECONDS} s"}
    if done.returncode:
        return {"condition": condition, "skipped": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return {"condition": condition, **json.loads(done.stdout.strip().splitlines()[-1])}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By condition and side: P50 of every process, least, greatest; the spread within a process; and what it goes along with."""
    by: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    within: defaultdict[str, list[float]] = defaultdict(list)
    points: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for run in runs:
        for side in run.get("passes", [{"ms": {}}])[0]["ms"]:
            first, second = (one["ms"][side]["p50"] for one in run["passes"])
            by[run["condition"]][side].append((first + second) / 2)
            within[side].append(abs(first - second) / min(first, second))
            for one in run["passes"]:
                points[side].append((one["ms"][side]["p50"], one["host"]["launch_us"], one["host"]["python_loop_ns"]))
    correlations = {}
    for side, values in points.items():
        launch, loop = ([(ms, beside[at]) for ms, *beside in values] for at in (0, 1))
        correlations[side] = {"launch": _correlation(launch), "python loop": _correlation(loop)}
    return {
        "p50_ms_of_each_process": {
            condition: {side: [round(ms, 3) for ms in values] for side, values in sides.items()} for condition, sides in by.items()
        },
        "two_passes_of_a_process_apart": {
            side: {"median": round(statistics.median(values), 4), "most": round(max(values), 4)} for side, values in within.items()
        },
        "log_correlation_with": correlations,
    }


def _correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Pearson's, of logarithms."""
    if len(pairs) < 3:
        return None
    return round(statistics.correlation([math.log(one) for one, _ in pairs], [math.log(other) for _, other in pairs]), 3)


def main() -> None:
    """Run the rounds; the record is whole after each process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=540, help="no process starts after so many")
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return
    started, runs = time.monotonic(), []
    facts = {"python": platform.python_version(), "cores": len(CORES), "cpu": _cpu(), "rounds": arguments.rounds, "calls": CALLS}
    for number in range(arguments.rounds):
        order = list(CONDITIONS)
        random.Random(number).shuffle(order)
        for condition in order:
            if time.monotonic() - started > arguments.seconds:
                break
            runs.append({"round": number, **measure(condition)})
            RECORD.write_text(json.dumps({"machine": facts, **summary(runs), "processes": runs}, indent=1) + "\n")
            shown = {side: value["p50"] for side, value in runs[-1].get("passes", [{"ms": {}}])[0]["ms"].items()}
            print(number, condition, shown or runs[-1].get("skipped"), flush=True)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
