"""Joules of an image: ViT-L/16 in several formats on one GPU, batch 32 and 1, random weights, in seeded turns.

    python benchmarks/energy.py [--seconds 150] [--compiled]

A side is measured by `lowbit_vit.trial.energy`, as a trial is: calls back to back between two updates of NVML's counter. bf16 takes part
under two names in each turn: how far the two are apart is what a difference of others has to exceed. Beside the joules stand the mean of
NVML's sampled power, idle power, clocks and throttle reasons, and the period of the counter. The time of an image is that of the same
calls, so that the two ratios are of the same seconds. `--compiled` adds the sides of compiled blocks, which take a minute to prepare.

Writes records/energy.json after each side; no side starts that would probably end after `--seconds`.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from fast_path_sides import FP8_GRAPH, NF4_GRAPH, REFERENCE_SIDE, SINGLE, W8A8_GRAPH, Forward, ours
from lowbit_vit.errors import Unavailable
from lowbit_vit.schema.machine import provenance
from lowbit_vit.schema.plan import HighPrecision, Int8
from lowbit_vit.trial.energy import find_counter, measure_energy

RECORD = Path(__file__).parent / "records" / "energy.json"
BATCHES = (32, 1)
WARMUP = 5
LEAST_S = 3.0  # of calls; more where the counter moves fewer than 17 times a second
AGAIN = "bf16 again, graph"
SIDES: dict[str, Callable[[Tensor], Forward]] = {
    "bf16, graph": ours(HighPrecision(), "cuda_graph"),
    "fp8, graph": FP8_GRAPH,
    "W8A8, graph": W8A8_GRAPH,
    "NF4 of bitsandbytes, graph": ours(SINGLE, "cuda_graph"),
    "int8 of bitsandbytes, threshold 0, eager": ours(Int8(format="int8", threshold=0.0), "eager"),
}
COMPILED = {"bf16, compiled, graph": REFERENCE_SIDE, "NF4 fused, compiled, graph": NF4_GRAPH}
# Question: side and what it is compared with.
QUESTIONS = {
    "do two names of one variant differ": (AGAIN, "bf16, graph"),
    "does NF4 cost energy": ("NF4 of bitsandbytes, graph", "bf16, graph"),
    "does NF4 cost energy, compiled": ("NF4 fused, compiled, graph", "bf16, compiled, graph"),
    "does fp8 save more energy than time": ("fp8, graph", "bf16, graph"),
    "does W8A8 save more energy than time": ("W8A8, graph", "bf16, graph"),
}


def main() -> None:
    """Turns until the time is up; the record is whole after each side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--compiled", action="store_true")
    asked = parser.parse_args()
    started = time.monotonic()
    if not torch.cuda.is_available():
        raise Unavailable("benchmarks/energy.py needs CUDA")
    counter = find_counter("cuda")
    if counter is None:
        raise Unavailable("benchmarks/energy.py needs a GPU whose energy NVML counts")
    torch.set_grad_enabled(False)
    facts = provenance("python benchmarks/energy.py")
    record: dict[str, Any] = {
        "machine": {"gpu": facts.gpu, "driver": facts.driver, "cuda": facts.cuda, "git_revision": facts.git_revision},
        "reading_us": round(median(_microseconds(counter.joules) for _ in range(50)), 1),
        "skipped": {},
        "measured": [],
    }
    forwards: dict[int, dict[str, Callable[[], Tensor]]] = {}
    longest = LEAST_S + 5
    for turn in range(1000):
        for batch in BATCHES:
            if batch not in forwards:
                forwards[batch] = prepared(SIDES | (COMPILED if asked.compiled else {}), batch, record["skipped"])
            order = list(forwards[batch])
            random.Random(f"{turn} {batch}").shuffle(order)
            for name in order:
                before = time.monotonic()
                if before - started + longest > asked.seconds:
                    print(json.dumps(record["answers"] if record["measured"] else record, indent=1))
                    return
                found = measure_energy(forwards[batch][name], counter, batch_size=batch, seconds=LEAST_S, device="cuda")
                took = time.monotonic() - before
                longest = max(took, longest) if record["measured"] else took
                if found is None:
                    record["skipped"][f"{name}, batch {batch}, turn {turn}"] = "the counter went back or stood still: see the log"
                else:
                    record["measured"].append(
                        {"side": name, "turn": turn, "took_s": round(took, 2), **_columns(found.model_dump(mode="json"))}
                    )
                    print(f"{turn} {batch:3d} {name:42s} {_line(record['measured'][-1])}", flush=True)
                record |= summary(record["measured"])
                RECORD.write_text(json.dumps(record, indent=1) + "\n")


def prepared(makers: dict[str, Callable[[Tensor], Forward]], batch: int, skipped: dict[str, str]) -> dict[str, Callable[[], Tensor]]:
    """What is called for each side, bf16 under two names; a side that cannot run is in `skipped` with the reason."""
    example = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    made: dict[str, Callable[[], Tensor]] = {}
    for name, make in makers.items():
        start = time.perf_counter()
        try:
            forward = make(example)
            for _ in range(WARMUP):
                forward(example)
            torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001  (the others are still worth their time)
            skipped[f"{name}, batch {batch}"] = " ".join(str(error).split())[:200] or type(error).__name__
            continue
        made[name] = partial(forward, example)
        print(f"{time.perf_counter() - start:5.1f} s to prepare {name}, batch {batch}", flush=True)
    if "bf16, graph" in made:
        made[AGAIN] = made["bf16, graph"]
    return made


def _microseconds(call: Callable[[], object]) -> float:
    before = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - before) / 1000


def _columns(counted: dict[str, Any]) -> dict[str, Any]:
    """What was counted, and what follows from it."""
    watts = counted["joules"] / counted["seconds"]
    sampled = counted["sampled_watts"]
    return counted | {
        "joules_per_image": round(counted["joules"] / counted["images"], 6),
        "ms_per_image": round(1000 * counted["seconds"] / counted["images"], 6),
        "watts": round(watts, 1),
        "counter_over_sampled": round(watts / sampled, 4) if sampled else None,
    }


def _line(row: dict[str, Any]) -> str:
    clocks = row["clocks_during"] or {}
    return (
        f"{row['joules_per_image']:.4f} J {row['ms_per_image']:.4f} ms an image, {row['watts']:.0f} W ({row['sampled_watts']} sampled), "
        f"idle {row['idle_watts_before']:.0f} and {row['idle_watts_after']:.0f} W, {clocks.get('sm_mhz')} MHz, "
        f"{clocks.get('throttle_reasons')}, update {row['update_ms']} ms"
    )


def summary(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each side and batch the medians over turns; of each question the ratios of energy and of time, turn by turn."""
    by: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in measured:
        by[f"{row['side']}, batch {row['batch_size']}"].append(row)
    names = ("joules_per_image", "ms_per_image", "watts", "counter_over_sampled", "idle_watts_before", "idle_watts_after", "update_ms")
    medians = {
        side: {"turns": len(rows)} | {name: round(median(row[name] for row in rows), 6) for name in names if rows[0][name] is not None}
        for side, rows in by.items()
    }
    answers: dict[str, Any] = {}
    for question, (side, reference) in QUESTIONS.items():
        for batch in BATCHES:
            theirs = {row["turn"]: row for row in by.get(f"{reference}, batch {batch}", [])}
            pairs = [(row, theirs[row["turn"]]) for row in by.get(f"{side}, batch {batch}", []) if row["turn"] in theirs]
            if pairs:
                energy, took = (
                    [round(one[name] / other[name], 4) for one, other in pairs] for name in ("joules_per_image", "ms_per_image")
                )
                answers[f"{question}, batch {batch}"] = {
                    "energy_ratio": median(energy),
                    "time_ratio": median(took),
                    "energy_ratios": energy,
                    "time_ratios": took,
                }
    return {"medians": medians, "answers": answers}


if __name__ == "__main__":
    main()
