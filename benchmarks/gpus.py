"""Does the grid scale? The same studies on one GPU and on several of a machine, and one with a GPU's worker killed.

    python benchmarks/gpus.py PROFILE [--gpus 0 1] [--root FOLDER] [--out FILE]      (after lowbit-vit data and backbone)

Arms of the profile that are not trained and the cells of its studies of blocks: `reduce` says which. Each study runs through
`lowbit-vit STUDY`, all of them on all GPUs first and then on the first GPU alone, so whatever only a first run pays counts against
several GPUs. Meanwhile NVML is asked twice a second how busy each GPU is. From the records of both runs: wall times and their ratio,
of each study and of the whole; whether each timing trial saw one GPU and had it alone; the same arm's latency in both runs, an A/A
test, for the arm is the same; and whether predictions are equal to the bit.

In between, one study of cells on all GPUs, of which one worker is killed: what is finished, and what the same command leaves after it.

The record is written after each step, so a run that is cut short leaves what it has.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pynvml

from aside import empty_reports, machine, predictions_of, put_profile
from lowbit_vit.errors import DataError, Unavailable
from lowbit_vit.schema.config import Study
from lowbit_vit.schema.machine import provenance
from lowbit_vit.schema.metrics import percentile
from lowbit_vit.schema.record import Record, read_records, sha256
from lowbit_vit.schema.workspace import Workspace

RECORD = Path(__file__).parent / "records" / "gpus.json"
# Post-training, 10 to 30 s each: half that the host limits, half that the GPU limits.
ARMS = (
    "fp16, efficient",
    "fp16, flash",
    "fp16, cuDNN",
    "bf16, flash",
    "NF4",
    "NF4, fused qkv",
    "int8, threshold 0",
    "fp16, CUDA graph",
    "NF4, CUDA graph",
    "int8 threshold 0, CUDA graph",
    "W8A8",
    "fp8",
    "NF4, int8 products",
)
STUDIES: tuple[Study, ...] = ("sensitivity", "variants", "mixed")  # mixed needs the scores of sensitivity
PERIOD_S = 0.5
BIN_S = 2.0
ALL, ONE, KILLED = "all GPUs", "one GPU", "a GPU's worker killed"
WORKER = "ray::ImplicitFunc"  # what Ray calls the process that runs Tune's trials


def main() -> None:
    """Run the studies and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--gpus", type=int, nargs="*", default=[], help="their numbers to NVML; default: all of the machine")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    parser.add_argument("--out", type=Path, default=RECORD, help="the record that is written")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    pynvml.nvmlInit()
    of_machine = int(pynvml.nvmlDeviceGetCount())
    gpus = arguments.gpus or list(range(of_machine))
    if len(gpus) < 2 or max(gpus) >= of_machine:
        raise Unavailable(f"benchmarks/gpus.py compares one GPU with several; asked for {gpus}, this machine has {of_machine}")
    facts = provenance("python benchmarks/gpus.py")
    record: dict[str, Any] = {
        "machine": {**machine("torch", "ray", load=load), "gpu": facts.gpu, "driver": facts.driver, "gpus": of_machine},
        "profile": arguments.profile,
        "gpus": gpus,
        "git_revision": facts.git_revision,
        "studies": {study: {} for study in STUDIES},
    }
    root = arguments.root.resolve()
    with ExitStack() as stack:
        places = {name: stack.enter_context(empty_reports(root, arguments.profile)) for name in (ALL, ONE, KILLED)}
        for workspace in places.values():
            put_profile(root, workspace, reduce)

        def run_all(name: str, gpus: Sequence[int]) -> None:
            for study in STUDIES:
                facts = run(study, places[name], gpus)
                record["studies"][study][name] = of_run(facts, read_records(places[name].records(study)))
                save(record, arguments.out)

        run_all(ALL, gpus)
        record["killed"] = kill_and_go_on(places[KILLED], gpus)
        save(record, arguments.out)
        run_all(ONE, gpus[:1])
        for study, found in record["studies"].items():
            found.update(beside(read_records(places[ALL].records(study)), read_records(places[ONE].records(study)), found))
        record["whole"] = whole(record["studies"])
        save(record, arguments.out)
    print(arguments.out.read_text())


def whole(studies: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Wall times of all studies, one after another, and their ratio."""
    walls = {name: sum(found[name]["wall_s"] for found in studies.values()) for name in (ALL, ONE)}
    return {**{f"{name}, s": round(wall, 1) for name, wall in walls.items()}, "wall_ratio": round(walls[ONE] / walls[ALL], 3)}


def save(record: dict[str, Any], path: Path) -> None:
    """Write what there is."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------------------ a reduced run


def reduce(profile: dict[str, Any]) -> None:
    """Leave the arms of `ARMS`, 200 latencies each, both directions of sensitivity, and twenty random plans of one size.

    Raises:
        DataError: the profile lacks one of the arms.
    """
    arms = [arm for arm in profile["variants"]["arms"] if arm["label"] in ARMS]
    if missing := set(ARMS) - {arm["label"] for arm in arms}:
        raise DataError(f"benchmarks/gpus.py: profile {profile['name']} has no arm {', '.join(sorted(missing))}")
    profile["variants"]["arms"] = [{**{key: value for key, value in arm.items() if key != "samples"}, "seeds": [0]} for arm in arms]
    profile["measurement"] |= {"samples": 200, "seconds": 20, "invariance_images": None}
    profile["mixed"] |= {"spared": profile["mixed"]["spared"][:1], "random_plans": 20, "timed": [], "plans": []}


def command(study: Study, workspace: Workspace) -> list[str]:
    """What a user would type."""
    return [sys.executable, "-m", "lowbit_vit", study, workspace.profile, "--root", str(workspace.root)]


def environment(gpus: Sequence[int]) -> dict[str, str]:
    """Ours, with these GPUs in sight."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}


def run(study: Study, workspace: Workspace, gpus: Sequence[int]) -> dict[str, Any]:
    """Run one study; its wall time, and how busy the GPUs were.

    Raises:
        subprocess.CalledProcessError: it failed; its output is above.
    """
    print(f"{study} on {len(gpus)}", flush=True)
    with watching(gpus) as seen:
        started = time.monotonic()
        subprocess.run(command(study, workspace), env=environment(gpus), check=True)
        wall = time.monotonic() - started
    return {"gpus": len(gpus), "wall_s": round(wall, 1), **busy(seen, wall)}


@contextmanager
def watching(gpus: Sequence[int]) -> Iterator[list[list[float]]]:
    """Collect [seconds, % busy of each GPU] twice a second."""
    handles = [pynvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in gpus]
    seen: list[list[float]] = []
    over = threading.Event()
    started = time.monotonic()

    def watch() -> None:
        while not over.wait(PERIOD_S):
            seen.append([time.monotonic() - started, *(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in handles)])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def busy(seen: list[list[float]], wall: float) -> dict[str, Any]:
    """When the first kernel ran and the last, the mean share in between, and the course in bins of `BIN_S` seconds."""
    table = np.array(seen)
    at_work = table[table[:, 1:].max(axis=1) > 0] if len(table) else table
    if not len(at_work):
        return {"with_kernels_s": None}
    first, last = float(at_work[0, 0]), float(at_work[-1, 0])
    inside = table[(table[:, 0] >= first) & (table[:, 0] <= last)]
    bins = (table[:, 0] // BIN_S).astype(int)
    course = [[round(float(table[bins == place, gpu].mean())) for place in np.unique(bins)] for gpu in range(1, table.shape[1])]
    return {
        "before_first_kernel_s": round(first, 1),
        "after_last_kernel_s": round(wall - last, 1),
        "with_kernels_s": round(last - first, 1),
        "mean_busy_percent": [round(float(share), 1) for share in inside[:, 1:].mean(axis=0)],
        "busy_percent_every_2_s": course,
    }


# ---------------------------------------------------------------------------------------------------------- what came of it


def of_run(facts: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """What the records of a run say of it."""
    timed = [record for record in records if record.measurement is not None]
    used = sum(sum(record.durations_s.values()) for record in records)
    on_gpu: dict[str, int] = {}
    for record in records:
        uuid = (record.provenance.gpu_uuid if record.provenance else None) or "unknown"
        on_gpu[uuid] = on_gpu.get(uuid, 0) + 1
    return {
        **facts,
        "cells": len(records),
        "status": sorted({record.status for record in records}),
        "seconds_of_all_cells": round(used, 1),
        "cells_on_gpu": dict(sorted(on_gpu.items())),
        "timing_trials": len(timed),
        "timing_trials_that_nvml_showed_alone": sum(bool(record.measurement and record.measurement.exclusive) for record in timed),
        "cores_of_a_timing_trial": sorted({record.provenance.cpu_cores for record in timed if record.provenance}),
    }


def beside(several: Sequence[Record], one: Sequence[Record], found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Both runs of the same cells, those that were skipped left out."""
    alone = {record.trial_id: record for record in one if record.status == "success"}
    pairs = [(record, alone[record.trial_id]) for record in several if record.status == "success" and record.trial_id in alone]
    spans = {name: facts["with_kernels_s"] for name, facts in found.items()}
    return {
        "wall_ratio": round(found[ONE]["wall_s"] / found[ALL]["wall_s"], 3),
        "ratio_with_kernels": None if None in spans.values() else round(spans[ONE] / spans[ALL], 3),
        "cells_in_both": len(pairs),
        "predictions_equal_to_the_bit": sum(predictions_of(record) == predictions_of(other) for record, other in pairs),
        "same_arm_twice": [row for record, other in pairs for row in latencies(record, other)],
    }


def latencies(record: Record, other: Record) -> list[dict[str, Any]]:
    """For each batch size both medians, and whether that of all GPUs is among the middle nine tenths of the other's samples."""
    if record.measurement is None or other.measurement is None:
        return []
    rows = []
    for ours, theirs in zip(record.measurement.latency, other.measurement.latency, strict=True):
        low, high = np.percentile(theirs.samples_ms, [5, 95])
        median, other_median = percentile(ours.samples_ms, 0.5), percentile(theirs.samples_ms, 0.5)
        rows.append(
            {
                "arm": record.trial.label,
                "batch_size": ours.batch_size,
                "p50_ms": {ALL: median, ONE: other_median},
                "ratio": round(median / other_median, 4),
                "within_the_other_runs_spread": bool(low <= median <= high),
            }
        )
    return rows


# ------------------------------------------------------------------------------------------------------------------- killed


def kill_and_go_on(workspace: Workspace, gpus: Sequence[int]) -> dict[str, Any]:
    """Kill one Ray worker while its scan runs; then give the same command again."""
    study: Study = "sensitivity"
    folder = workspace.records(study)
    process = subprocess.Popen(command(study, workspace), env=environment(gpus))
    killed = None
    while process.poll() is None:
        if killed is None and len(list(folder.glob("[!.]*.json"))) >= 3:
            killed = worker_of(process.pid)
            if killed is not None:
                os.kill(killed, signal.SIGKILL)
        time.sleep(0.1)
    finished = [f"{record.trial_id}.json" for record in read_records(folder) if record.status == "success"]
    kept = {name: sha256((folder / name).read_bytes()) for name in finished}
    again = subprocess.run(command(study, workspace), env=environment(gpus), check=False)
    records = read_records(folder)
    untouched = sum(sha256((folder / name).read_bytes()) == digest for name, digest in kept.items())
    return {
        "study": study,
        "killed": None if killed is None else "a Ray worker, with SIGKILL",
        "exit_code": process.returncode,
        "finished_records_then": len(kept),
        "exit_code_of_the_same_command_again": again.returncode,
        "records_in_the_end": len(records),
        "status_in_the_end": sorted({record.status for record in records}),
        "finished_records_left_as_they_were": untouched,
    }


def worker_of(driver: int) -> int | None:
    """The newest process that launches trials for this driver."""
    found = None
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(WORKER):
                found = process.pid
    return found


if __name__ == "__main__":
    main()
