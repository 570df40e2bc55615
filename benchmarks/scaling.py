"""What the paper grid costs on 1 to 512 GPUs: a model made of measured trial times, checked by the real scheduler.

    python benchmarks/scaling.py [--nodes 1 2 4]

The model: each study is a list of units (study.units) that free places take in order; its length is the makespan. Seconds of an arm
come from its own committed record (ARMS, 29 arms on H200s), seconds of a cell from the committed cells of its study (CELLS, an H100),
by rules stated in `seconds_of`.

The check: study.sweep.run_study runs the model's variants study for real on a Ray cluster of this machine, with nodes of one
place each, and trials that sleep for the model's seconds divided by SCALE. Tune, placement groups, processes, records and the
queue are the real ones. Two cores carry a few such nodes, so larger clusters are the model's alone.
"""

import argparse
import contextlib
import functools
import hashlib
import heapq
import json
import math
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from lowbit_vit.analysis.results import Result, read_results
from lowbit_vit.errors import DataError
from lowbit_vit.schema.code_hash import code_sha256
from lowbit_vit.schema.config import Arm, Profile, Study, Trial, load_profile
from lowbit_vit.schema.machine import provenance
from lowbit_vit.schema.plan import BlockScore, HighPrecision, SensitivityScores
from lowbit_vit.schema.record import Record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.places import Places
from lowbit_vit.study.units import Unit, blocks_of, cost, make_units

HERE = Path(__file__).parent
ROOT = HERE.parent
REFERENCE = ROOT / "reports" / "reference"
ARMS = (REFERENCE / "h200", REFERENCE / "h200-fast")
CELLS = REFERENCE / "h100"
RECORD = HERE / "records" / "scaling.json"
GPUS = (1, 8, 64, 512)
# A sleeping trial lasts a model's second divided by this.
SCALE = 40.0
TRAINING_IMAGES = 2040  # train + val of Flowers-102: splits of the profile's LoRA recipe
SCAN_LOAD_S = 10.0  # a scan's process starts, imports and loads once

Known = dict[str, dict[str, Any]]


def main() -> None:
    """Compute the model, run the check, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4], help="sizes of the real clusters")
    sizes = parser.parse_args().nodes
    profile = load_profile(ROOT / "profiles" / "paper.yaml")
    studies = studies_of(profile)
    known = measured()
    seconds = {trial.trial_id: seconds_of(trial, known) for trials in studies.values() for trial in trials}
    load = os.getloadavg()[0]
    checks = [check(list(studies["variants"]), seconds, nodes=nodes) for nodes in sizes]
    facts = provenance("python benchmarks/scaling.py")
    record = {
        "machine": {"cpu": facts.cpu, "cores": facts.cpu_cores, "ray": version("ray"), "load_average_before": round(load, 2)},
        "serial_s": serial(),
        "bytes": bytes_of(profile),
        "cells": {study: len(trials) for study, trials in studies.items()},
        "trial_seconds": {study: round(sum(seconds[trial.trial_id] for trial in trials)) for study, trials in studies.items()},
        "training_seconds": round(sum(training_s(trial, known) for trials in studies.values() for trial in trials)),
        "longest_s": round(max(seconds.values()), 1),
        "model": [row(studies, seconds, gpus=gpus) for gpus in GPUS],
        "check": {"scale": SCALE, "clusters": checks},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


# ------------------------------------------------------------------------------------------------------------- the model


def studies_of(profile: Profile) -> dict[str, list[Trial]]:
    """The three studies' cells; which blocks are most sensitive changes no count but that of coincidences.

    The model is of first processes: no record holds yet what a repeat takes.
    """
    profile = profile.model_copy(update={"measurement": profile.measurement.model_copy(update={"processes": 1})})
    made_up = {"flips": (0,), "margin": (0,), "top1": (0,), "kl_interval": (0, 0), "excess_interval": (0, 0)}
    blocks = tuple(BlockScore.model_validate({"block": index, "kl": (index,), **made_up}) for index in range(profile.backbone.depth))
    scores = SensitivityScores(
        profile=profile.name, backbone_sha256="0" * 64, weights=profile.mixed.weights, direction="only", images=1, blocks=blocks
    )
    return {
        "variants": cells(profile, "variants"),
        "sensitivity": cells(profile, "sensitivity"),
        "mixed": cells(profile, "mixed", scores=[scores]),
    }


def results_of(folder: Path, study: Study) -> list[Result]:
    """One study of a committed run."""
    return read_results(folder, (study,))[study]


@functools.cache
def measured() -> Known:
    """What is known of trials: of an arm, by its label, seconds of each part, and of its training steps and latencies; of a study's cell.

    Raises:
        DataError: an arm of the committed records has no times, or a study no cells.
    """
    found: Known = {}
    results = [result for folder in ARMS for result in results_of(folder, "variants") if result.record.status == "success"]
    for result in sorted(results, key=lambda result: result.record.trial.seed):
        record = result.record
        if record.measurement is None:
            raise DataError(f"{ARMS[0].parent}: {record.trial.label} has no measurement, so no times to reckon with")
        steps = None if record.training is None else record.training.steps
        latencies = [(len(latency.samples_ms), latency.mean_ms / 1000) for latency in result.latency.values()]
        # The first seed, and of an arm that both pieces have the first piece's.
        found.setdefault(record.trial.label, {"parts": record.durations_s, "steps": steps, "latencies": latencies})
    studies: tuple[Study, ...] = ("sensitivity", "mixed")
    for study in studies:
        records = [result.record for result in results_of(CELLS, study)]
        cells_s = [sum(record.durations_s.values()) for record in records if record.measurement is None]
        if not cells_s:
            raise DataError(f"{CELLS}: no cells of {study}")
        found[study] = {"cell": fmean(cells_s)}
    return found


def seconds_of(trial: Trial, known: Known) -> float:
    """Seconds of a trial on one GPU.

    - A timing trial counts as its own arm's record: load, quantize, evaluate, measure. An arm without a record counts as the fp16
      model in a CUDA graph; a timed plan of `mixed` as eager NF4.
    - Latencies are as many as the trial asks for, each of the arm's mean, up to measurement.seconds for a batch size.
    - A training step counts as a measured one, of 120 images: too much for steps of 32 where the GPU is the limit, and about right
      where the host is, which launches as many kernels for either.
    - A cell of a scan counts as the mean of its study's cells, whose scans shared a GPU by two.
    """
    if trial.measurement is None:
        return float(known[trial.study]["cell"])
    arm = known.get(trial.label) or known["NF4" if trial.study == "mixed" else "fp16, CUDA graph"]
    total = float(sum(arm["parts"][name] for name in ("load", "quantize", "evaluate", "measure")))
    for samples, each in arm["latencies"]:
        total += each * (min(trial.measurement.samples, trial.measurement.seconds / each) - samples)
    return total + training_s(trial, known)


def training_s(trial: Trial, known: Known) -> float:
    """Seconds of a trial's fine-tuning; 0 where it does none."""
    if trial.adaptation != "qlora" or trial.lora is None:
        return 0.0
    arm = known[trial.label]
    steps = trial.lora.training.epochs * math.ceil(TRAINING_IMAGES / trial.lora.training.batch_size)
    return float(steps * arm["parts"]["train"] / arm["steps"])


def serial() -> dict[str, float]:
    """Seconds of what one machine does while the others wait: data, and the backbone of profile scratch with its teacher.

    The adapted model of the post-training trials is reckoned as the training of the fine-tuned fp32 arm, for the paper profile's steps.
    """
    card = json.loads((ARMS[0] / "backbone.json").read_text())
    arm = measured()["Baseline ViT"]
    pipeline = json.loads((HERE / "records" / "input_pipeline.json").read_text())
    return {
        "data": pipeline["results"]["decode seconds / plain pass seconds"]["ours_seconds"],  # on two cores
        "teacher": round(card["teacher"]["training"]["seconds"], 1),
        "backbone": round(card["training"]["seconds"], 1),
        "adapted": round(10 * math.ceil(TRAINING_IMAGES / 32) * arm["parts"]["train"] / arm["steps"], 1),
    }


def bytes_of(profile: Profile) -> dict[str, int]:
    """What the studies store and send: fp32 weights of the backbone and of one adapted model; arrays; a trial's record."""
    card = json.loads((ARMS[0] / "backbone.json").read_text())
    images, views = card["splits"], profile.data.views
    arrays = 3 * (sum(images.values()) * views.image_size**2 + (images["train"] + images["val"]) * views.train_resize**2)
    # Loose ones, as a study writes them.
    sizes = [
        len(result.record.model_dump_json(indent=1)) + len(result.predictions.to_bytes())
        for result in results_of(ARMS[0], "variants")
        if result.predictions is not None
    ]
    return {
        "arrays": arrays,
        "weights": 2 * 4 * card["parameters"],
        "to_each_node": arrays + 2 * 4 * card["parameters"],
        "record": round(fmean(sizes)),  # JSON and npz
    }


def row(studies: dict[str, list[Trial]], seconds: dict[str, float], *, gpus: int) -> dict[str, Any]:
    """The model on that many GPUs, each with eight cores: seconds of each study, and the share of GPU time that is used.

    How many GPUs a node has makes no difference: each has a slot for timings (study.units).
    """
    spans = {}
    for study, trials in studies.items():
        units = make_units(trials, Places(cpus=8 * gpus, gpus=gpus, cores=8), seconds)
        # Timing trials first: a GPU's scans wait for them. A scan's cells were measured with two of them on a GPU.
        timed = [total(unit, seconds) for unit in units if unit.verb == "trial"]
        spans[study] = makespan(timed, gpus) + makespan(scan_lengths([unit for unit in units if unit.verb == "scan"], seconds), 2 * gpus)
    parallel = sum(spans.values())
    whole = parallel + sum(serial().values())
    used = sum(seconds[trial.trial_id] / (1 if trial.measurement else 2) for trials in studies.values() for trial in trials)
    return {
        "gpus": gpus,
        **{f"{study}_s": round(span) for study, span in spans.items()},
        "with_serial_s": round(whole),
        "gpu_use": round(used / (gpus * whole), 3),
    }


def scan_lengths(scans: Sequence[Unit], seconds: dict[str, float]) -> list[float]:
    """Seconds of scans: what all of their cells take, shared out by the blocks that each scan computes."""
    costs = [cost([blocks_of(trial) for trial in unit.trials]) for unit in scans]
    of_cells = sum(total(unit, seconds) for unit in scans)
    return [SCAN_LOAD_S + of_cells * part / sum(costs) for part in costs]


def total(unit: Unit, seconds: dict[str, float]) -> float:
    """Its trials one after another."""
    return sum(seconds[trial.trial_id] for trial in unit.trials)


def makespan(lengths: Sequence[float], places: int) -> float:
    """When the last unit ends if each free place takes the next one: list scheduling; 0 where there is none."""
    free = [0.0] * places
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


# ------------------------------------------------------------------------------------------------------------- the check


def check(trials: list[Trial], seconds: dict[str, float], *, nodes: int) -> dict[str, float]:
    """Run sleeping trials on a cluster of so many nodes; what it took against the model."""
    naps = [seconds[trial.trial_id] / SCALE for trial in trials]
    profile = sleeping(naps)
    with tempfile.TemporaryDirectory(prefix="lv-") as folder, own_cluster(Path(folder), nodes) as run:
        workspace, template = make_workspace(Path(folder), profile)
        started = time.perf_counter()
        run(profile, workspace, template)
        wall = time.perf_counter() - started
        spans = [tuple(map(float, line.split())) for line in (template.parent / "times.txt").read_text().splitlines()]
    busy = max(end for _, end in spans) - min(start for start, _ in spans)
    # Nothing is known of these trials, so they start in the grid's order.
    model = makespan(naps, nodes)
    gap = (busy * nodes - sum(naps)) / len(naps) if nodes == 1 else (busy - model) / (len(naps) / nodes)
    return {
        "nodes": nodes,
        "trials": len(naps),
        "model_s": round(model, 1),
        "first_start_to_last_end_s": round(busy, 1),
        "whole_study_s": round(wall, 1),
        "between_two_trials_s": round(gap, 2),
    }


def sleeping(naps: Sequence[float]) -> Profile:
    """The demo profile with arms that sleep, each a trial of its own by its seed."""
    demo = load_profile(ROOT / "profiles" / "demo.yaml")
    arms = tuple(
        Arm(
            label=f"sleep {nap:.3f} {seed}",
            weights=HighPrecision(),
            compute_dtype="fp32",
            attention="math",
            adaptation="none",
            seeds=(seed,),
        )
        for seed, nap in enumerate(naps)
    )
    once = demo.measurement.model_copy(update={"processes": 1})
    return demo.model_copy(update={"variants": demo.variants.model_copy(update={"arms": arms}), "measurement": once})


def make_workspace(folder: Path, profile: Profile) -> tuple[Workspace, Path]:
    """A workspace with weights that are a few bytes, and the record that every sleeping trial copies."""
    workspace = Workspace(root=folder / "project", profile="demo")
    workspace.checkpoints.mkdir(parents=True)
    workspace.backbone.write_bytes(b"weights")
    workspace.backbone.with_suffix(".json").write_text(json.dumps({"sha256": hashlib.sha256(b"weights").hexdigest()}))
    trials = cells(profile, "variants")
    first = trials[0]
    # Without a result, which would have to be complete.
    record = Record(trial_id=first.trial_id, status="skipped", reason="slept", trial=first, provenance=None, code_sha256=code_sha256())
    template = folder / "template.json"
    template.write_text(record.model_dump_json())
    (folder / "names.json").write_text(json.dumps({trial.label: trial.trial_id for trial in trials}))
    return workspace, template


@contextlib.contextmanager
def own_cluster(folder: Path, nodes: int) -> Iterator[Callable[[Profile, Workspace, Path], list[Record]]]:
    """A head without CPUs and nodes with one each, on the loopback, with a token; gives what runs the study there."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # one for all clusters: Ray reads it once
    os.environ.update(RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0", LOWBIT_VIT_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1")
    os.environ["PYTHONPATH"] = str(ROOT / "src")
    # Only now: Ray reads the mode when it is imported.
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    from lowbit_vit.study.sweep import run_study  # noqa: PLC0415

    def run(profile: Profile, workspace: Workspace, template: Path) -> list[Record]:
        command = (sys.executable, "-S", "-E", str(HERE / "sleeping_child.py"), str(template))
        return run_study(profile, "variants", workspace, command=command)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, resources={"profile_slot": 1})
        os.environ["RAY_ADDRESS"] = cluster.address
        yield run
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
