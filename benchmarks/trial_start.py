"""What a trial's process costs before the trial begins: forked from one that has imported everything, against a fresh one.

    python benchmarks/trial_start.py [--root FOLDER] [--rounds 3]     (after lowbit-vit data demo and lowbit-vit backbone demo)

Two arms of the demo without their measurement, in fp32 and NF4; both are adapted, so both need peft, which imports bitsandbytes. A
start is what the launch took beside the parts that the record times: imports, reading the request, writing the record, and
the launcher's look every 0.1 s. CPU seconds are of the whole process, as the system counts them. The two sides alternate in one
run, one process at a time with one thread, and must give the same predictions bit for bit.

A launching process pays the imports of the one that is forked once, with its first trial: `imports`. On a machine with a GPU that
one may import neither bitsandbytes nor peft: `left_on_a_gpu` is what their import then costs a fork, taken on this machine.

What is asked for: a forked start takes at most 1/4 of a fresh one, by the clock, for NF4 with QLoRA.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.progress import track

from aside import empty_reports, machine
from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.config import Trial, load_profile
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.container import Starter
from lowbit_vit.study.launch import launch

RECORD = Path(__file__).parent / "records" / "trial_start.json"
ARMS = ("Baseline ViT", "4-bit + SDPA")
# The same program, which `launch` starts and does not fork.
FRESH = (sys.executable, "-c", "import sys; sys.argv[0] = '__main__.py'; from lowbit_vit.cli import main; main()")
ON_A_GPU = (
    "import time; from lowbit_vit.schema import machine; machine.visible_gpu = lambda: True\n"
    "from lowbit_vit.trial import forked\n"
    "wall, cpu = time.perf_counter(), time.process_time(); forked.preload(gpu=False)\n"
    "print(time.perf_counter() - wall, time.process_time() - cpu)"
)


def main() -> None:
    """Time both sides and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    root = options.root.resolve()
    trials = {trial.label: trial for trial in cells(load_profile(root / "profiles" / "demo.yaml"), "variants")}
    load = os.getloadavg()[0]
    with empty_reports(root, "demo") as workspace:
        first = start_of(trials[ARMS[0]], workspace, None)  # with the imports
        imports = server().cpu_times()
        arms = {label: compare(trials[label], workspace, options.rounds) for label in ARMS}
    record = {
        "machine": machine("torch", "bitsandbytes", "peft", load=load),
        "rounds": options.rounds,
        "imports": {"first_start_s": round(first.start_s, 2), "cpu_s": round(imports.user + imports.system, 2)},
        "arms": arms,
        "left_on_a_gpu": left_on_a_gpu(),
        "asked_for": {"4-bit + SDPA start ratio": "<= 0.25"},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


@dataclass(frozen=True)
class Start:
    """One launch: seconds beside the timed parts of the trial, CPU seconds of its process, and what it predicted."""

    start_s: float
    cpu_s: float
    predictions: str


def compare(trial: Trial, workspace: Workspace, rounds: int) -> dict[str, float]:
    """Medians of both sides and their ratios.

    Raises:
        LowbitVitError: the sides predict differently, or a trial did not succeed.
    """
    trial = trial.model_copy(update={"measurement": None})
    forked, fresh = [], []
    for _ in track(range(rounds), trial.label):
        forked.append(start_of(trial, workspace, None))
        fresh.append(start_of(trial, workspace, FRESH))
    if len({start.predictions for start in (*forked, *fresh)}) > 1:
        raise LowbitVitError(f"{trial.label}: a forked and a fresh process gave different predictions")
    found: dict[str, float] = {}
    for name, digits in (("start_s", 2), ("cpu_s", 2)):
        ours, theirs = (statistics.median(getattr(start, name) for start in side) for side in (forked, fresh))
        found |= {f"forked_{name}": round(ours, digits), f"fresh_{name}": round(theirs, digits)}
        found[f"{name.removesuffix('_s')}_ratio"] = round(ours / theirs, 3)
    return found


def start_of(trial: Trial, workspace: Workspace, command: Starter | None) -> Start:
    """Launch once.

    Raises:
        LowbitVitError: the trial did not succeed.
    """
    before, started = cpu_seconds(), time.perf_counter()
    ((record, _),) = launch([trial], workspace, verb="trial", threads=1, command=command)
    wall, cpu = time.perf_counter() - started, cpu_seconds() - before
    if record.evaluation is None or record.durations_s is None:
        raise LowbitVitError(f"{trial.label}: {record.status}: {record.reason}")
    return Start(wall - sum(record.durations_s.values()), cpu, record.evaluation.predictions_sha256)


def cpu_seconds() -> float:
    """Of all ended processes that were started here or forked from the one that was."""
    fresh = resource.getrusage(resource.RUSAGE_CHILDREN)
    forks = [child.cpu_times() for child in psutil.Process().children()]
    return fresh.ru_utime + fresh.ru_stime + sum(times.children_user + times.children_system for times in forks)


def server() -> psutil.Process:
    """The process that trials are forked from."""
    (process,) = (child for child in psutil.Process().children() if "multiprocessing.forkserver" in " ".join(child.cmdline()))
    return process


def left_on_a_gpu() -> dict[str, float]:
    """Seconds of the imports that a fork does itself on a machine with a GPU."""
    done = subprocess.run([sys.executable, "-c", ON_A_GPU], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True)
    wall, cpu = map(float, done.stdout.split())
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


if __name__ == "__main__":
    main()
