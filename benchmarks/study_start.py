"""What a study takes beside its trials: with one process that imports for all of its workers while Ray starts, and without.

    python benchmarks/study_start.py [--root FOLDER] [--rounds 3]     (after lowbit-vit data demo and lowbit-vit backbone demo)

Two post-training arms of the demo with few latencies, one after another, through `lowbit-vit variants`. What the command takes less
the seconds that the trials' records time is the start of Python, of Ray, of its workers, the imports that trials need, and the end. The
other side is the same program without the nursery (`study.nursery`): each worker imports for itself, after it has been started. The
sides alternate in one run and must give the same predictions bit for bit.

What is asked for: at most 0.8 of the time without it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.progress import track

from aside import empty_reports, machine, predictions_of, put_profile
from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.record import read_records
from lowbit_vit.schema.workspace import Workspace

RECORD = Path(__file__).parent / "records" / "study_start.json"
PROFILE = "demo"
COMMAND = "from lowbit_vit.cli import main; main()"
WITHOUT = "from contextlib import nullcontext; from lowbit_vit.study import sweep; sweep._nursery = lambda *_: nullcontext()"
SIDES = {"one import": COMMAND, "each worker imports": f"{WITHOUT}; {COMMAND}"}


def main() -> None:
    """Time both sides and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    predictions: set[tuple[str, ...]] = set()
    for _ in track(range(options.rounds), "both sides"):
        for name, program in SIDES.items():
            with empty_reports(options.root.resolve(), PROFILE) as workspace:
                beside, predicted = run(program, workspace, options.root.resolve())
                seconds[name].append(round(beside, 2))
                predictions.add(predicted)
    if len(predictions) > 1:
        raise LowbitVitError("the sides gave different predictions")
    with_it, without = (statistics.median(times) for times in seconds.values())
    record = {
        "machine": machine("torch", "ray", load=load),
        "rounds": options.rounds,
        "beside_the_trials_s": seconds,
        "medians_s": {"one import": with_it, "each worker imports": without},
        "ratio": round(with_it / without, 3),
        "asked_for": "<= 0.8",
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def reduce(profile: dict[str, Any]) -> None:
    """Leave two post-training arms and ten latencies."""
    arms = [arm for arm in profile["variants"]["arms"] if arm["adaptation"] == "ptq"]
    profile["variants"]["arms"] = [{**arm, "seeds": [0]} for arm in arms[:2]]
    profile["measurement"] |= {"samples": 10, "invariance_images": None}


def run(program: str, workspace: Workspace, root: Path) -> tuple[float, tuple[str, ...]]:
    """Run the study once: seconds beside the trials' own, and what the trials predicted.

    Raises:
        subprocess.CalledProcessError: it failed; its output is above.
    """
    put_profile(root, workspace, reduce)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, "variants", PROFILE, "--root", str(workspace.root)], check=True)
    wall = time.perf_counter() - started
    records = read_records(workspace.records("variants"))
    return wall - sum(sum(record.durations_s.values()) for record in records), tuple(map(predictions_of, records))


if __name__ == "__main__":
    main()
