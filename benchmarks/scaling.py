"""What the paper grid costs on 1 to 512 GPUs: a model made of measured trial times, checked by the real scheduler.

    python benchmarks/scaling.py [--nodes 1 2 4]

The model: each study is a list of units (study.units) that free places take in order; its length is the makespan. Seconds of a
unit come from the three committed records of an H100 (reports/reference/h100-2026-11), by rules stated in `seconds_of`.

The check: study.sweep.run_study runs the model's variants study for real on a Ray cluster of this machine, with nodes of one
place each, and trials that sleep for the model's seconds divided by SCALE. Tune, placement groups, processes, records and the
exchange are the real ones. Two cores carry a few such nodes, so larger clusters are the model's alone.
"""

import argparse
import contextlib
import heapq
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lowbit_vit.errors import DataError
from lowbit_vit.schema.code import code_sha256
from lowbit_vit.schema.config import Arm, Profile, Trial, load_profile
from lowbit_vit.schema.environment import provenance
from lowbit_vit.schema.plan import BlockScore, HighPrecision, SensitivityScores
from lowbit_vit.schema.record import LayerAudit, ModelFacts, Predictions, Record, read_record, sha256
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.grid import cells
from lowbit_vit.study.units import Places, Unit, make_units

HERE = Path(__file__).parent
ROOT = HERE.parent
REFERENCE = ROOT / "reports" / "reference" / "h100-2026-11"
RECORD = HERE / "records" / "scaling.json"
GPUS = (1, 8, 64, 512)
# A sleeping trial lasts a model's second divided by this.
SCALE = 40.0
TRAINING_IMAGES = 2040  # train + val of Flowers-102: splits of the profile's LoRA recipe


def main() -> None:
    """Compute the model, run the check, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4], help="sizes of the real clusters")
    sizes = parser.parse_args().nodes
    profile = load_profile(ROOT / "profiles" / "paper.yaml")
    studies = studies_of(profile)
    seconds = {trial.trial_id: seconds_of(trial, measured()) for trials in studies.values() for trial in trials}
    load = os.getloadavg()[0]
    checks = [check(list(studies["variants"]), seconds, nodes=nodes) for nodes in sizes]
    facts = provenance("python benchmarks/scaling.py")
    record = {
        "machine": {"cpu": facts.cpu, "cores": facts.cpu_cores, "ray": version("ray"), "load_average_before": round(load, 2)},
        "measured": {kind: {part: round(value, 2) for part, value in parts.items()} for kind, parts in measured().items()},
        "serial_s": serial(),
        "bytes": bytes_of(profile),
        "cells": {study: len(trials) for study, trials in studies.items()},
        "gpu_seconds": {study: round(sum(seconds[trial.trial_id] for trial in trials)) for study, trials in studies.items()},
        "longest_s": round(max(seconds.values()), 1),
        "model": [row(studies, seconds, gpus=gpus, per_node=per_node) for gpus in GPUS for per_node in (1, 8) if per_node <= gpus],
        "check": {"scale": SCALE, "clusters": checks},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


# ------------------------------------------------------------------------------------------------------------- the model


def studies_of(profile: Profile) -> dict[str, list[Trial]]:
    """The three studies' cells; which blocks are most sensitive changes no count but that of coincidences."""
    blocks = tuple(BlockScore(block=index, kl=(float(index),), flips=(0.0,)) for index in range(profile.backbone.depth))
    scores = SensitivityScores(
        profile=profile.name, backbone_sha256="0" * 64, weights=profile.mixed.weights, direction="only", images=1, blocks=blocks
    )
    return {
        "variants": cells(profile, "variants"),
        "sensitivity": cells(profile, "sensitivity"),
        "mixed": cells(profile, "mixed", scores=[scores]),
    }


def measured() -> dict[str, dict[str, float]]:
    """Seconds of each part of a trial by the weights' format, and of one forward of 32 images, from the committed records.

    Raises:
        DataError: a format has no successful record there.
    """
    found = {}
    for path in sorted((REFERENCE / "records" / "variants").glob("*.json")):
        record = read_record(path)
        if record.measurement is None:
            raise DataError(f"{path}: no measurement, so no times to reckon with")
        batch = next(found for found in record.measurement.latency if found.batch_size == 32)
        found[format_of(record.trial)] = {**record.durations_s, "forward_32": batch.p50_ms / 1000}
    if set(found) != {"high", "nf4", "int8"}:
        raise DataError(f"{REFERENCE}: records of {sorted(found)}, wanted one each of high, int8, nf4")
    return found


def format_of(trial: Trial) -> str:
    """Its low-bit format; high where there is none."""
    return next((rule.weights.format for rule in trial.plan.rules), "high")


def seconds_of(trial: Trial, known: dict[str, dict[str, float]]) -> float:
    """Seconds of a trial on an H100. One trial of each format was measured, so this is an estimate.

    - A trial counts as the measured one of its format; fp32 and TF32 as int8, the slowest of the three; a format of our own kernels
      as high precision, whose forward it is to replace.
    - Measuring grows with the number of samples, which is too much: its time has a limit of its own.
    - Fine-tuning is an epoch's steps of 32 images times three forwards, eager: one forth, two back.
    - A cell of a scan is quantized and evaluated; a scan's process starts and loads once, which `row` adds.
    """
    wide = trial.plan.compute_dtype in ("fp32", "tf32")
    weights = format_of(trial)
    parts = known["int8" if wide else weights if weights in known else "high"]
    if trial.measurement is None:
        return parts["quantize"] + parts["evaluate"]
    total = parts["load"] + parts["quantize"] + parts["save"] + parts["evaluate"]
    total += parts["measure"] * trial.measurement.samples / 200
    if trial.adaptation == "qlora" and trial.lora is not None:
        steps = trial.lora.training.epochs * TRAINING_IMAGES / trial.lora.training.batch_size
        total += steps * 3 * parts["forward_32"] * trial.lora.training.batch_size / 32
    return total


def serial() -> dict[str, float]:
    """Seconds of what one machine does while the others wait: data, and the backbone of profile scratch with its teacher.

    The adapted model of the post-training trials is reckoned as a fine-tuning trial's training, in fp16.
    """
    card = json.loads((REFERENCE / "backbone.json").read_text())
    pipeline = json.loads((HERE / "records" / "input_pipeline.json").read_text())
    return {
        "data": pipeline["results"]["decode seconds / plain pass seconds"]["ours_seconds"],  # on two cores
        "teacher": round(card["teacher"]["training"]["seconds"], 1),
        "backbone": round(card["training"]["seconds"], 1),
        "adapted": round(10 * TRAINING_IMAGES / 32 * 3 * measured()["high"]["forward_32"], 1),
    }


def bytes_of(profile: Profile) -> dict[str, int]:
    """What the studies store and send: fp32 weights of the backbone and of one adapted model; arrays; a trial's record."""
    card = json.loads((REFERENCE / "backbone.json").read_text())
    images, views = card["splits"], profile.data.views
    arrays = 3 * (sum(images.values()) * views.image_size**2 + (images["train"] + images["val"]) * views.train_resize**2)
    files = [path.stat().st_size for path in (REFERENCE / "records" / "variants").iterdir()]
    return {
        "arrays": arrays,
        "weights": 2 * 4 * card["parameters"],
        "to_each_node": arrays + 2 * 4 * card["parameters"],
        "record": round(sum(files) / (len(files) / 2)),  # JSON and npz
    }


def row(studies: dict[str, list[Trial]], seconds: dict[str, float], *, gpus: int, per_node: int) -> dict[str, Any]:
    """The model on that many GPUs: seconds of each study, and the share of GPU time that is used."""
    nodes = gpus // per_node
    spans = {}
    for study, trials in studies.items():
        units = make_units(trials, Places(cpus=8 * gpus, gpus=gpus, cores=8), seconds)
        # Beside timing trials a node's other GPUs are idle; scans share a GPU by two, which halves the speed of each.
        places = nodes if units[0].timed else 2 * gpus
        start = 0.0 if units[0].timed else measured()["high"]["load"]
        slower = 1 if units[0].timed else 2
        spans[study] = makespan([slower * (start + total(unit, seconds)) for unit in units], places)
    parallel = sum(spans.values())
    whole = parallel + sum(serial().values())
    used = sum(seconds.values()) / (gpus * whole)
    return {
        "gpus": gpus,
        "gpus_per_node": per_node,
        **{f"{study}_s": round(span) for study, span in spans.items()},
        "with_serial_s": round(whole),
        "gpu_use": round(used, 3),
    }


def total(unit: Unit, seconds: dict[str, float]) -> float:
    """Its trials one after another."""
    return sum(seconds[trial.trial_id] for trial in unit.trials)


def makespan(lengths: Sequence[float], places: int) -> float:
    """When the last unit ends if each free place takes the next one: list scheduling."""
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
    return demo.model_copy(update={"variants": demo.variants.model_copy(update={"arms": arms})})


def make_workspace(folder: Path, profile: Profile) -> tuple[Workspace, Path]:
    """A workspace with weights that are a few bytes, and the record that every sleeping trial copies."""
    workspace = Workspace(root=folder / "project", profile="demo")
    workspace.checkpoints.mkdir(parents=True)
    workspace.backbone.write_bytes(b"weights")
    digest = sha256(b"weights")
    workspace.backbone.with_suffix(".json").write_text(json.dumps({"sha256": digest}))
    trials = cells(profile, "variants")
    zeros = np.zeros(3, np.float32)
    audit = LayerAudit(linears=1, by_format={"high": 1})
    model = ModelFacts(backbone_sha256=digest, parameters=1, trainable_parameters=0, layers=audit, weight_bytes=4, file_bytes=4)
    record = Record(
        trial_id="template", status="success", reason=None, trial=trials[0], provenance=None, code_sha256=code_sha256(), model=model
    )
    predictions = Predictions(
        label=np.zeros(3, np.uint16), top5=np.zeros((3, 5), np.uint16), loss=zeros, margin=zeros, selection=np.zeros(3, np.bool_), kl=None
    )
    template = folder / "template.json"
    template.write_text(record.model_dump_json())
    template.with_suffix(".npz").write_bytes(predictions.to_bytes())
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
