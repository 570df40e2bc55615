"""What a sweep adds to its trials, on a cluster: 2,000 trials that do nothing, and whether memory stays flat meanwhile.

    python benchmarks/sweep_overhead.py [--trials 2000] [--record]

The driver submits to a Ray cluster of one node with two cores, started here, as somebody submits to a larger one: files by hash,
records back through a queue, each written once. A trial is a cell of a scan whose process only writes its record, so the
time is the sweep's: Ray, Tune, starting processes, sending, checking and writing records. Each process of the driver's and of the
head's Tune is watched: resident memory after a tenth of the trials, at the end, and its peak.

The CPU seconds of the three are what the sweep itself costs, however busy the machine is; the wall time includes the trials.

What is asked for: <= 50 ms a trial, and memory at the end <= 1.25 times that after a tenth.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from aside import machine
from lowbit_vit.schema.config import Trial
from lowbit_vit.study.cells import cells

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
from ray_nodes import DEMO, OBEDIENT, SOURCES, Cluster, Submitter  # noqa: E402  (the tests' own cluster)

RECORD = Path(__file__).parent / "records" / "sweep_overhead.json"
WATCHED = ("driver", "tune", "queue")
DRIVER = (
    "import sys, json; from pathlib import Path; from lowbit_vit.schema.config import load_trials;"
    "from lowbit_vit.schema.workspace import Workspace; from lowbit_vit.study import cluster, schedule, units;"
    "root = Path(sys.argv[1]); trials = load_trials(root / 'trials.json'); place = Workspace(root=root, profile='demo')\n"
    "with cluster.connected(cluster.cluster_address()):\n"
    "    places = cluster.places_on(cluster.survey(), trials, gpu_kind=None)\n"
    "    made = units.make_units(trials, places, dict.fromkeys([t.trial_id for t in trials], 1.0)); print(len(made), flush=True)\n"
    "    schedule.run_units(made, place, title='no-op', command=sys.argv[2:], own=None)"
)


def main() -> None:
    """Run the sweep, watch it, and print or write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--record", action="store_true", help="write benchmarks/records/sweep_overhead.json")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        submitter = Submitter(Path(folder) / "project")
        (submitter.workspace.root / "trials.json").write_text(f"[{','.join(trial.model_dump_json() for trial in no_ops(options.trials))}]")
        with Cluster(Path(folder)) as cluster:
            cluster.add_node("only", cpus=2)
            found = watch(cluster, submitter, options.trials)
    record = {
        "machine": machine("ray", load=load),
        "trials": options.trials,
        **found,
        "asked_for": {"ms_per_trial": "<= 50", "memory_end_over_tenth": "<= 1.25"},
    }
    text = json.dumps(record, indent=1) + "\n"
    if options.record:
        RECORD.write_text(text)
    print(text, end="")


def no_ops(count: int) -> list[Trial]:
    """Cells of the demo's sensitivity study, told apart by their seeds."""
    (cell, *_) = cells(DEMO, "sensitivity")
    return [cell.model_copy(update={"seed": seed, "label": "finish", "adaptation": "none", "lora": None}) for seed in range(count)]


def watch(cluster: Cluster, submitter: Submitter, trials: int) -> dict[str, object]:
    """Time from the first record to the last one, and the memory of driver and Tune."""
    folder = submitter.workspace.records("sensitivity")
    started = time.monotonic()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(submitter.workspace.root), sys.executable, str(OBEDIENT)],
        env=cluster.environment(RAY_ADDRESS=cluster.address, PYTHONPATH=SOURCES),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    units = int(driver.stdout.readline())
    first = 0.0
    samples: list[tuple[float, ...]] = []
    cpu_s = dict.fromkeys(WATCHED, 0.0)
    while driver.poll() is None:
        done = len(list(folder.glob("[!.]*.json")))
        first = first or (time.monotonic() if done else 0.0)
        processes = watched(cluster, driver.pid)
        samples.append((done, *(memory_mib(process) for process in processes)))
        cpu_s = {name: max(cpu_s[name], cpu_seconds(process)) for name, process in zip(WATCHED, processes, strict=True)}
        time.sleep(1)
    ended = time.monotonic()
    done = len(list(folder.glob("[!.]*.json")))
    if driver.returncode or done != trials:
        raise SystemExit(f"{done} of {trials} records, exit code {driver.returncode}")
    memory = {}
    for index, name in enumerate(WATCHED, start=1):
        values = [(sample[0], sample[index]) for sample in samples if sample[index]]
        tenth = next(value for seen, value in values if seen >= trials / 10)
        last = values[-1][1]
        memory[name] = {
            "after_a_tenth": tenth,
            "end": last,
            "peak": max(value for _, value in values),
            "end_over_tenth": round(last / tenth, 3),
        }
    return {
        "units": units,
        "seconds_to_the_first_record": round(first - started, 1),
        "seconds_for_the_others": round(ended - first, 1),
        "ms_per_trial": round((ended - first) / trials * 1000, 1),
        "cpu_ms_per_trial": {name: round(seconds / trials * 1000, 1) for name, seconds in cpu_s.items()},
        "memory_mib": memory,
    }


def watched(cluster: Cluster, driver: int) -> list[psutil.Process | None]:
    """The driver, the task that runs Tune, and the queue."""
    assert cluster.head is not None
    found: dict[str, psutil.Process] = {}
    for process in psutil.Process(cluster.head.pid).children(recursive=True):
        try:
            found[process.cmdline()[0] if process.cmdline() else ""] = process
        except psutil.Error:
            continue
    tune, queue = (next((process for name, process in found.items() if word in name), None) for word in ("_tune", "_QueueActor"))
    return [psutil.Process(driver), tune, queue]


def cpu_seconds(process: psutil.Process | None) -> float:
    """Of its own, from its start; 0 where it is gone."""
    try:
        times = process.cpu_times() if process else None
    except psutil.Error:
        times = None
    return times.user + times.system if times else 0.0


def memory_mib(process: psutil.Process | None) -> float:
    """Resident without pages of files; 0 where it is gone."""
    try:
        usage = process.memory_info() if process else None
    except psutil.Error:
        usage = None
    return round((usage.rss - usage.shared) / 2**20, 1) if usage else 0.0


if __name__ == "__main__":
    main()
