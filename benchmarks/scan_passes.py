"""What the cells of a sensitivity study cost, as a multiple of one plain evaluation of the same images.

    lowbit-vit data scratch && lowbit-vit backbone scratch
    python benchmarks/scan_passes.py scratch

The cells are those of the profile's first format: each block alone, and all but each block (48 for a ViT-L). A pass is the plain
evaluation of the test images, after loading and a warm-up, by the slower of high precision and that format: the median of four,
two before the scan and two after it. The scan's time includes loading the backbone, quantizing every block, and writing
every record. It runs in this process, where torch is loaded already, and once more by itself in a fresh one, as a study starts it.
Some cells are run again, each alone; their predictions must be the scan's, bit for bit; else it fails.

The ratio that is asked for: 48 cells <= 32 passes. Perfect reuse of common prefixes, nothing else counted, takes 27.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

from aside import empty_reports, predictions_of
from lowbit_vit.errors import LowbitVitError
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.precision import apply_plan, matmul_mode
from lowbit_vit.schema.config import Trial, load_profile
from lowbit_vit.schema.machine import provenance
from lowbit_vit.schema.predictions import load_predictions
from lowbit_vit.schema.record import Record, read_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.launch import launch
from lowbit_vit.trial.evaluate import evaluate
from lowbit_vit.trial.run import load_backbone, load_data, run_trial
from lowbit_vit.trial.scan import run_scan

RECORDS = Path(__file__).parent / "records"


def main() -> None:
    """Time the plain passes and the scan, compare, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    arguments = parser.parse_args()
    workspace = Workspace(root=arguments.root.resolve(), profile=arguments.profile)
    profile = load_profile(workspace.profile_file)
    weights = profile.sensitivity.formats[0].name
    trials = cells(profile, "sensitivity")
    by_label = {trial.label: trial for trial in trials}
    scanned = [trial for trial in trials if f"{weights}, only" in trial.label or f"{weights}, all but" in trial.label]
    plain = {"high": by_label["high precision"], weights: by_label[f"{weights}, all blocks"]}

    seconds = {name: plain_seconds(trial, workspace) for name, trial in plain.items()}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        records = run_scan(scanned, workspace, Path(folder) / "scan")
        images = len(load_predictions(Path(folder) / "scan" / f"{scanned[0].trial_id}.npz").label)
        scan_s = time.perf_counter() - started
        for name, trial in plain.items():
            seconds[name] += plain_seconds(trial, workspace)
        fresh_s, _ = fresh(scanned, workspace)
        others = []
        again = scanned[:: len(scanned) // 4]
        for trial in again:
            alone = run_trial(trial, workspace, Path(folder) / "alone")
            together = read_record(Path(folder) / "scan" / f"{trial.trial_id}.json")
            if predictions_of(alone) != predictions_of(together):
                others.append(trial.label)

    passes = {name: statistics.median(values) for name, values in seconds.items()}
    evaluations = sum(record.evaluation.block_evaluations or 0 for record in records if record.evaluation is not None)
    slower = max(passes.values())
    facts = provenance(f"python benchmarks/scan_passes.py {profile.name}")
    content = {
        "machine": {"gpu": facts.gpu, "cpu": facts.cpu, **{name: version(name) for name in ("torch", "bitsandbytes")}},
        "profile": profile.name,
        "cells": len(scanned),
        "images": images,
        "pass_s": {name: round(value, 3) for name, value in passes.items()},
        "block_evaluations": evaluations,
        "passes_by_count": round(evaluations / profile.backbone.depth, 2),
        "scan_s": round(scan_s, 2),
        "passes_by_time": round(scan_s / slower, 2),
        "fresh_process_s": round(fresh_s, 2),
        "passes_by_time_fresh_process": round(fresh_s / slower, 2),
        "cells_run_again": len(again),
        "of_them_not_bit_equal": others,
        "asked_for": "48 cells of 24 blocks: <= 32 passes",
    }
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"scan_passes-{profile.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))
    if others:
        raise LowbitVitError(f"scan and trial gave different predictions: {'; '.join(others)}")


def plain_seconds(trial: Trial, workspace: Workspace) -> list[float]:
    """Two plain evaluations of a model that is loaded, converted and warm."""
    dataset = load_data(trial, workspace)
    model, _ = load_backbone(trial, workspace, dataset)
    apply_plan(model, trial.plan)
    ready = partial(prepare, model.eval(), trial.execution)
    seconds = []
    with matmul_mode(trial.plan):
        for _ in range(3):
            started = time.perf_counter()
            evaluate(ready, dataset, trial, reference_logits=None)
            seconds.append(time.perf_counter() - started)
    return seconds[1:]


def fresh(trials: list[Trial], workspace: Workspace) -> tuple[float, list[Record]]:
    """The scan in a process of its own, in an empty reports folder."""
    with empty_reports(workspace.root, workspace.profile) as aside:
        started = time.perf_counter()
        records = [record for record, _ in launch(trials, aside, verb="scan", threads=1)]
        return time.perf_counter() - started, records


if __name__ == "__main__":
    main()
