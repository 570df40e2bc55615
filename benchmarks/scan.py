"""What a warm scan saves: 24 accuracy-only cells in one process, against the same cells in a process of its own each.

    python benchmarks/scan.py [--root FOLDER]     (after lowbit-vit data demo and lowbit-vit backbone demo)

The cells are the first 24 of the demo's sensitivity study. Both sides run one process at a time with one thread, write the same
records, and must give the same predictions bit for bit. The scan runs before and after the others, so that a busy spell of the
machine meets both; the slower of its two runs counts.

The ratio that is asked for: scan <= 1/3 of the wall time of separate processes.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from rich.progress import track

from aside import empty_reports, machine, predictions_of
from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.config import Trial, load_profile
from lowbit_vit.schema.record import Record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.launch import launch

CELLS = 24
RECORD = Path(__file__).parent / "records" / "scan.json"


def main() -> None:
    """Time both sides and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    root = parser.parse_args().root.resolve()
    trials = cells(load_profile(root / "profiles" / "demo.yaml"), "sensitivity")[:CELLS]
    load = os.getloadavg()[0]

    first, scanned = timed(root, lambda workspace: run_scan(trials, workspace))
    separate, alone = timed(root, lambda workspace: run_apart(trials, workspace))
    second, _ = timed(root, lambda workspace: run_scan(trials, workspace))
    of_scan = {record.trial_id: predictions_of(record) for record in scanned}
    for other in alone:
        if of_scan[other.trial_id] != predictions_of(other):
            raise LowbitVitError(f"{other.trial.label}: scan and trial gave different predictions")

    record = {
        "machine": machine("torch", "bitsandbytes", load=load),
        "cells": CELLS,
        "scan_s": [round(first, 2), round(second, 2)],
        "separate_s": round(separate, 2),
        "ratio": round(max(first, second) / separate, 3),
        "asked_for": "<= 0.333",
    }
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def run_scan(trials: list[Trial], workspace: Workspace) -> list[Record]:
    """All cells in one process."""
    return [record for record, _ in launch(trials, workspace, verb="scan", threads=1)]


def run_apart(trials: list[Trial], workspace: Workspace) -> list[Record]:
    """Each cell in its own process."""
    finished = (launch([trial], workspace, verb="trial", threads=1) for trial in track(trials, "separate processes"))
    return [record for one in finished for record, _ in one]


def timed(root: Path, run: Callable[[Workspace], list[Record]]) -> tuple[float, list[Record]]:
    """Run in an empty reports folder on the project's own data and weights; wall seconds and the records."""
    with empty_reports(root, "demo") as workspace:
        started = time.perf_counter()
        records = run(workspace)
        return time.perf_counter() - started, records


if __name__ == "__main__":
    main()
