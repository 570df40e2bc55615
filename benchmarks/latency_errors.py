"""How often the comparison of two latencies is wrong, both ways, by the number of processes: simulated, and on a CPU or a GPU.

    python benchmarks/latency_errors.py [--repetitions 20] [--device cuda]

Simulated: the log of a process's median is its variant's, plus an effect of its round that all variants share, plus its own. Own effects
are those seen on an H200 (`eager_spread.py`, `gpus.py`): a CUDA graph's are normal with a deviation of 0.3 to 1 %, an eager variant's
have two modes, a factor of two apart, the slower one with probability 1/4 (fp16 5.33, 5.30, 5.32, 7.40 ms; NF4 11.5, 21.2, 10.8).

Measured: a ViT of 40 blocks under two names (A/A) and one of 42 blocks (A/B, some 5 % more), each in six fresh processes, in drawn rounds.
On a GPU they have the width of a ViT-B, in bf16, and run as CUDA graphs.

Writes records/latency_errors.json after each repetition; what was measured on the other device stays in it.
"""

import argparse
import json
import math
import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import torch

from lowbit_vit.analysis.latencies import paired_ratio
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.vit import VisionTransformer, architecture
from lowbit_vit.schema.config import Device, SmallVit
from lowbit_vit.schema.machine import provenance
from lowbit_vit.schema.metrics import percentile_interval
from lowbit_vit.trial.measure import call_ms

RECORD = Path(__file__).parent / "records" / "latency_errors.json"
ALPHA = 0.05
PLANTED = 1.05
ROUND_SD = 0.02  # of what a round does to all variants: temperature, clocks, load
Own = Callable[[np.random.Generator, tuple[int, int]], npt.NDArray[np.float64]]  # log effects [runs, processes]


def _graph(sd: float) -> Own:
    return lambda random, shape: random.normal(0, sd, shape)


def _eager(random: np.random.Generator, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    return random.normal(0, 0.01, shape) + math.log(2) * (random.random(shape) < 0.25)


KINDS: dict[str, Own] = {"graph, 0.3 %": _graph(0.003), "graph, 1 %": _graph(0.01), "eager": _eager}


def simulate(kind: str, *, processes: int, runs: int, seed: int = 0) -> dict[str, float]:
    """Shares of the runs.

    Args:
        kind: of both variants, among `KINDS`.
        processes: of each variant.
        runs: how many are drawn.
        seed: of the draws.

    Returns:
        `false`: one variant under two names is called different. `found`: 5 % more are. `covers`: the interval of a variant's median
        holds the true one. `ratio_covers`: that of the ratio does. Without an interval neither covers.
    """
    draws = np.random.default_rng(seed)
    rounds = draws.normal(0, ROUND_SD, (runs, processes))
    one, same, more = (KINDS[kind](draws, (runs, processes)) for _ in range(3))
    # The median over processes and rounds, from many draws of its own.
    true = float(np.median(KINDS[kind](draws, (200_000, 1)) + draws.normal(0, ROUND_SD, (200_000, 1))))
    counts = dict.fromkeys(("false", "found", "covers", "ratio_covers"), 0)
    for row in range(runs):
        first, second, third = (np.exp(own[row] + rounds[row]).tolist() for own in (one, same, more + math.log(PLANTED)))
        equal, planted = paired_ratio(first, second), paired_ratio(first, third)
        own = percentile_interval(first, 0.5)
        counts["false"] += (equal.p_value or 0) < ALPHA
        counts["found"] += (planted.p_value or 0) < ALPHA and planted.value > 1
        counts["covers"] += own is not None and own.low <= math.exp(true) <= own.high
        counts["ratio_covers"] += planted.interval is not None and planted.interval.low <= PLANTED <= planted.interval.high
    return {name: count / runs for name, count in counts.items()}


# ------------------------------------------------------------------------------------------------------------- measured


def median_ms(blocks: int, device: Device) -> float:
    """In a fresh process: median latency of one image through a ViT."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = 8 if device == "cpu" else 224
    small = SmallVit(patch_size=2, depth=blocks, heads=4, width=64, mlp_width=128)
    base = SmallVit(patch_size=16, depth=blocks, heads=12, width=768, mlp_width=3072)
    with torch.device(device), torch.inference_mode():
        sizes = architecture(small if device == "cpu" else base, size)
        model = VisionTransformer(sizes, num_classes=10, attention="flash", qkv="separate").eval()
        image = torch.randn(1, 3, size, size)
        if device == "cuda":
            model, image = model.bfloat16(), image.bfloat16()
        forward = prepare(model, "eager" if device == "cpu" else "cuda_graph", image)
        samples = [call_ms(device, forward, image) for _ in range(60)]
    return median(samples[20:])


def measure(repetition: int, device: Device, *, rounds: int = 6) -> dict[str, list[float]]:
    """The medians of the variants by round."""
    variants = {"A": 40, "A again": 40, "B": 42}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "lowbit_vit.trial.measure", "lowbit_vit.model.execution"])
    medians: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        generator = random.Random(f"{repetition}/{number}")
        for name in sorted(variants, key=lambda _: generator.random()):
            with context.Pool(1) as pool:
                medians[name].append(round(pool.apply(median_ms, (variants[name], device)), 4))
    return medians


def verdicts(found: list[dict[str, list[float]]]) -> dict[str, float]:
    """How many repetitions call A and A again, and A and B, different; and the median ratio of B to A."""
    pairs = {name: [paired_ratio(medians["A"], medians[name]) for medians in found] for name in ("A again", "B")}
    differ = {f"{name} differs": sum((ratio.p_value or 0) < ALPHA for ratio in ratios) for name, ratios in pairs.items()}
    return {"repetitions": len(found), **differ, "B over A": round(median(ratio.value for ratio in pairs["B"]), 4)}


def main() -> None:
    """Both, and the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    asked = parser.parse_args()
    record = json.loads(RECORD.read_text())
    processes = (3, 6, 8, 12)
    record["simulated"] = {kind: {str(count): simulate(kind, processes=count, runs=asked.runs) for count in processes} for kind in KINDS}
    facts = provenance("python benchmarks/latency_errors.py")
    on = {"machine": facts.gpu if asked.device == "cuda" else facts.cpu, "cores": facts.cpu_cores, "load_before": os.getloadavg()[0]}
    found: list[dict[str, list[float]]] = []
    for repetition in range(asked.repetitions):
        found.append(measure(repetition, asked.device))
        record["measured"][asked.device] = on | verdicts(found) | {"medians_ms": found}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps(found[-1]), json.dumps(verdicts(found)), flush=True)


if __name__ == "__main__":
    main()
