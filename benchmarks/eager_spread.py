"""Why does an eager latency differ between processes? ViT-L/16, batch 1, each process under one condition, in seeded rounds.

    python benchmarks/eager_spread.py [--rounds 5]

Every process measures the same three sides one after another, twice (forth and back), so that what differs between sides, between two
passes of one process and between processes can be told apart. Between every ten calls stands what the process can see of its host: the
time of a launch of a small kernel and of a loop of plain Python, and the core that it runs on. A condition changes one thing: the cores
that the process may use, its priority, the allocator, garbage collection, hashing of strings with the layout of the address space.
`plain` changes none and is drawn twice a round.

Writes records/eager_spread.json after each process.
"""

import argparse
import gc
import json
import math
import os
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
from lowbit_vit.schema.machine import provenance
from lowbit_vit.schema.plan import HighPrecision
from lowbit_vit.trial.host_state import HostWatch

RECORD = Path(__file__).parent / "records" / "eager_spread.json"
CALLS = 120
WARMUP = 20
BLOCK = 10
SECONDS = 120
CORES = sorted(os.sched_getaffinity(0))
# Condition: environment, command in front of Python, argument of the child.
CONDITIONS: dict[str, tuple[dict[str, str], list[str], str]] = {
    "plain": ({}, [], ""),
    "plain again": ({}, [], ""),
    "pinned to one core": ({}, ["taskset", "-c", str(CORES[len(CORES) // 2])], ""),
    "no garbage collection": ({}, [], "no-gc"),
    "no random address space": ({"PYTHONHASHSEED": "0"}, ["setarch", "-R"], ""),
    "one OpenMP thread": ({"OMP_NUM_THREADS": "1"}, [], ""),
    "ahead of other processes": ({}, ["nice", "-n", "-15"], ""),
    "allocator with expandable segments": ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, [], ""),
}


def child(argument: str) -> None:
    """One process: every side twice, printed as one line of JSON."""
    torch.set_grad_enabled(False)
    makers = {
        "bf16, eager": ours(HighPrecision(), "eager"),
        "NF4, eager": ours(SINGLE, "eager"),
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
    passes = [{name: _timed(sides[name], example) for name in order} for order in orders]
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"passes": passes, "involuntary": used.ru_nivcsw, "voluntary": used.ru_nvcsw}))


def _timed(call: Callable[[Tensor], object], example: Tensor) -> dict[str, Any]:
    """P5, P50 and P95 of a call by CUDA events; and by `BLOCK` calls what the host needs to enqueue one, beside how fast the host is."""
    took, blocks, watch = [], [], HostWatch("cuda")
    for _ in range(CALLS // BLOCK):
        enqueued = []
        for _ in range(BLOCK):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            before = time.perf_counter_ns()
            call(example)
            enqueued.append((time.perf_counter_ns() - before) / 1e6)
            end.record()
            end.synchronize()
            took.append(start.elapsed_time(end))
        loop_ns, launch_us = watch.sample()
        blocks.append((round(statistics.median(enqueued), 4), round(loop_ns, 2), round(launch_us or 0.0, 2), _core()))
    took.sort()
    quantiles = {name: round(took[int(share * CALLS)], 4) for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95))}
    return {**quantiles, "enqueue_ms_loop_ns_launch_us_core": blocks, "host": watch.seen().model_dump()}


def _core() -> int:
    """That this process runs on."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[36])


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
    """By condition and side the P50 of every pass; how far passes and processes lie apart; and what goes along with the host's time."""
    by: defaultdict[str, defaultdict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    points: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    floors: defaultdict[str, list[float]] = defaultdict(list)
    for run in runs:
        for side in run.get("passes", [{}])[0]:
            found = [one[side] for one in run["passes"]]
            by[side][run["condition"]].append([one["p50"] for one in found])
            floors[side] += [one["p5"] for one in found]
            points[side] += [block[:3] for one in found for block in one["enqueue_ms_loop_ns_launch_us_core"]]
    sides = {}
    for side, conditions in by.items():
        every = [ms for processes in conditions.values() for passes in processes for ms in passes]
        plain = [ms for name in ("plain", "plain again") for passes in conditions.get(name, []) for ms in passes] or every
        sides[side] = {
            "p50_ms_of_each_pass_of_each_process": conditions,
            "median_over_that_of_plain": {
                name: round(statistics.median([ms for passes in processes for ms in passes]) / statistics.median(plain), 3)
                for name, processes in conditions.items()
            },
            "most_over_least_p50": round(max(every) / min(every), 3),
            "most_over_least_p5": round(max(floors[side]) / min(floors[side]), 3),
            "most_over_least_within_a_process": round(max(max(one) / min(one) for all_ in conditions.values() for one in all_), 3),
            "log_correlation_of_enqueueing": {
                "with the loop of Python": _correlation([(ms, loop) for ms, loop, _ in points[side]]),
                "with the launches": _correlation([(ms, launch) for ms, _, launch in points[side]]),
            },
            "enqueue_ms_by_loop": _by_loop([(ms, loop) for ms, loop, _ in points[side]]),
        }
    return sides


def _by_loop(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """Median time to enqueue where the loop of Python was at most 1.1 times as long as its fastest tenth, and where it was longer."""
    fast = 1.1 * sorted(loop for _, loop in pairs)[len(pairs) // 10]
    parts = {"fast core": [ms for ms, loop in pairs if loop <= fast], "slow core": [ms for ms, loop in pairs if loop > fast]}
    return {name: {"blocks": len(found), "median_ms": round(statistics.median(found), 3)} for name, found in parts.items() if found}


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
    seen = provenance("python benchmarks/eager_spread.py")
    facts = {name: getattr(seen, name) for name in ("gpu", "driver", "cpu", "cpu_cores", "python", "packages", "git_revision")}
    facts |= {"rounds": arguments.rounds, "calls": CALLS}
    for number in range(arguments.rounds):
        order = list(CONDITIONS)
        random.Random(number).shuffle(order)
        for condition in order:
            if time.monotonic() - started > arguments.seconds:
                break
            runs.append({"round": number, **measure(condition)})
            RECORD.write_text(json.dumps({"machine": facts, "sides": summary(runs), "processes": runs}) + "\n")
            shown = {side: value["p50"] for side, value in runs[-1].get("passes", [{}])[0].items()}
            print(number, condition, shown or runs[-1].get("skipped"), flush=True)


if __name__ == "__main__":
    main()
