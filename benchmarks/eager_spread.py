"""Why does an eager latency differ between processes? ViT-L/16, batch 1, each process under one condition, in seeded rounds.

    python benchmarks/eager_spread.py [--rounds 5] [--seconds 540]

Every process measures the same four sides one after another, twice (forth and back), so that what differs between sides, between two
passes of one process and between processes can be told apart. Beside each latency stand how much of it the host needs to enqueue the
call, and what the process sees of its host between the calls (`lowbit_vit.trial.host_state`): a launch, a loop of plain Python, CPU
pressure, stolen time; further the core it ran on, context switches and the GPU's clock. A condition changes one thing: the cores that the
process may use, the allocator, garbage collection, the layout of the address space, huge pages. `plain` changes none and is drawn twice a
round.

Prints what each condition explains, and writes records/eager_spread.json after each process.
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
from lowbit_vit.trial.gpu_state import clocks
from lowbit_vit.trial.host_state import HostWatch

RECORD = Path(__file__).parent / "records" / "eager_spread.json"
CALLS = 30
BETWEEN = 5  # calls between two looks at the host
WARMUP = 5
SECONDS = 60  # of a process
PLAIN = ("plain", "plain again")
CORES = sorted(os.sched_getaffinity(0))
# Condition: environment, command in front of Python, argument of the child.
CONDITIONS: dict[str, tuple[dict[str, str], list[str], str]] = {
    "plain": ({}, [], ""),
    "plain again": ({}, [], ""),
    "pinned to one core": ({}, ["taskset", "-c", str(CORES[len(CORES) // 2])], ""),
    "pinned to the first four cores": ({}, ["taskset", "-c", ",".join(map(str, CORES[:4]))], ""),
    "no garbage collection": ({}, [], "no-gc"),
    "no random address space": ({"PYTHONHASHSEED": "0"}, ["setarch", "-R"], ""),
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
    passes = [{name: _timed(sides[name], example) for name in order} for order in orders]
    used = resource.getrusage(resource.RUSAGE_SELF)
    core = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[36])
    print(json.dumps({"passes": passes, "core": core, "involuntary": used.ru_nivcsw, "voluntary": used.ru_nvcsw}))


def _timed(call: Callable[[Tensor], object], example: Tensor) -> dict[str, Any]:
    """P5, P50 and P95 of a call by CUDA events, what the host needs to enqueue it, and what the host was like."""
    took, enqueued = [], []
    torch.cuda.synchronize()
    watch = HostWatch("cuda")
    for number in range(CALLS):
        if number % BETWEEN == 0:
            watch.sample()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        before = time.perf_counter_ns()
        call(example)
        enqueued.append((time.perf_counter_ns() - before) / 1e6)
        end.record()
        end.synchronize()
        took.append(start.elapsed_time(end))
    seen, gpu = watch.seen(), clocks("cuda")
    took.sort()
    quantiles = {name: round(took[int(share * CALLS)], 4) for name, share in (("p5", 0.05), ("p50", 0.5), ("p95", 0.95))}
    enqueue = statistics.median(enqueued)
    host_bound = round(min(1.0, enqueue / quantiles["p50"]), 4)
    state = {"sm_mhz": gpu.sm_mhz, "throttle_reasons": gpu.throttle_reasons} if gpu else {}
    return quantiles | {"enqueue_p50": round(enqueue, 4), "host_bound": host_bound, "host": seen.model_dump(), **state}


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
    """By side: what each condition explains, what differs within a process, the host's share, and what the latency goes along with."""
    by: defaultdict[str, defaultdict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    seen: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    within: defaultdict[str, list[float]] = defaultdict(list)
    path: list[float] = []
    for run in runs:
        if "passes" not in run:
            continue
        forth, back = run["passes"]
        for side in forth:
            first, second = (one[side]["p50"] for one in (forth, back))
            by[side][run["condition"]][run["round"]] = (first + second) / 2
            within[side].append(max(first, second) / min(first, second))
            seen[side] += [forth[side], back[side]]
        path.append(1 - forth["bf16, eager"]["enqueue_p50"] / forth["NF4, eager"]["enqueue_p50"])
    return {
        "conditions": {side: {name: _explained(ms, conditions) for name, ms in conditions.items()} for side, conditions in by.items()},
        "spread_of_all_processes": {side: _spread([ms for found in by[side].values() for ms in found.values()]) for side in by},
        "two_passes_of_a_process_apart": {
            side: {"median": round(statistics.median(values), 4), "most": round(max(values), 4)} for side, values in within.items()
        },
        "host_bound_median": {side: statistics.median(one["host_bound"] for one in found) for side, found in seen.items()},
        "share_of_bitsandbytes_in_enqueueing_nf4": round(statistics.median(path), 3) if path else None,
        "log_correlation_with": {
            side: {
                "launch": _correlation([(one["p50"], one["host"]["launch_us"]) for one in found]),
                "python loop": _correlation([(one["p50"], one["host"]["python_loop_ns"]) for one in found]),
                "GPU clock": _correlation([(one["p50"], one["sm_mhz"]) for one in found if one.get("sm_mhz")]),
            }
            for side, found in seen.items()
        },
    }


def _explained(ms: dict[int, float], conditions: dict[str, dict[int, float]]) -> dict[str, Any]:
    """Processes of a condition, their spread, and the median of their ratios to plain processes of the same rounds."""
    plain = {number: [conditions[name][number] for name in PLAIN if number in conditions.get(name, {})] for number in ms}
    ratios = [ms[number] / statistics.mean(beside) for number, beside in plain.items() if beside]
    return {
        "processes": len(ms),
        "p50_ms": [round(value, 3) for value in ms.values()],
        "spread": _spread(list(ms.values())),
        "times_plain": round(statistics.median(ratios), 3) if ratios else None,
    }


def _spread(values: list[float]) -> float:
    return round(max(values) / min(values), 3)


def show(found: dict[str, Any]) -> None:
    """One line a side and condition."""
    for side, conditions in found["conditions"].items():
        share = found["host_bound_median"][side]
        print(f"{side}: greatest over least of all processes {found['spread_of_all_processes'][side]}; enqueueing is {share:.0%} of a call")
        for name, its in conditions.items():
            print(f"  {name:36s} {its['processes']} processes, spread {its['spread']}, times plain {its['times_plain']}")


def _correlation(pairs: list[tuple[float, float]]) -> float | None:
    """Pearson's, of logarithms; None where there are too few values, or one does not vary."""
    if len(pairs) < 3 or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    return round(statistics.correlation([math.log(one) for one, _ in pairs], [math.log(other) for _, other in pairs]), 3)


def main() -> None:
    """Run the rounds; the record is whole after each process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=540, help="no process starts that would probably end later")
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child is not None:
        child(arguments.child)
        return
    started, longest = time.monotonic(), 0.0
    runs: list[dict[str, Any]] = []
    facts = {"python": platform.python_version(), "cores": len(CORES), "cpu": _cpu(), "rounds": arguments.rounds, "calls": CALLS}
    for number in range(arguments.rounds):
        order = list(CONDITIONS)
        random.Random(number).shuffle(order)
        for condition in order:
            before = time.monotonic()
            if before - started + longest > arguments.seconds:
                break
            runs.append({"round": number, **measure(condition)})
            took = time.monotonic() - before
            longest = max(longest, took) if number else took  # the first process reads its libraries from the disk
            RECORD.write_text(json.dumps({"machine": facts, **summary(runs), "processes": runs}, indent=1) + "\n")
            shown = {side: value["p50"] for side, value in runs[-1].get("passes", [{}])[0].items()}
            print(f"{took:5.1f} s", number, condition, shown or runs[-1].get("skipped"), flush=True)
    show(summary(runs))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
