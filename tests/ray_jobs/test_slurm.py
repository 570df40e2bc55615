"""The SLURM script, with real Ray nodes: srun and scontrol are stand-ins that start every task here, as SLURM would there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

SCRIPT = Path(__file__).parents[2] / "ray_jobs" / "sweep.sbatch"
BIN = Path(sys.executable).parent
SCONTROL = """#!/bin/sh
printf 'node1\\nnode2\\n'
"""
SRUN = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
# Instead of the sweep: waits for both nodes, says what it sees, and stays until it is told to go or may go.
SWEEP = f"""#!{sys.executable}
import os, pathlib, sys, time
import ray
here = pathlib.Path(os.environ["CALLS"]).parent
ray.init(log_to_driver=False)
alive = lambda: [node for node in ray.nodes() if node["Alive"]]
while len(alive()) < 2:
    time.sleep(0.2)
here.joinpath("sweep.txt").write_text(f"{{sys.argv[1:]}} {{ray.cluster_resources()['profile_slot']}}")
while not here.joinpath("go").exists():
    time.sleep(0.1)
sys.exit(5)
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "demo.yaml").touch()
    (tmp_path / "bin").mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("lowbit-vit", SWEEP)):
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    yield tmp_path
    left = [process for process in psutil.process_iter(["cmdline"]) if str(folder_of(tmp_path)) in " ".join(process.info["cmdline"] or [])]
    for process in left:
        process.kill()
    assert not left
    assert not folder_of(tmp_path).exists()


def job_number(place: Path) -> int:
    return place.stat().st_ino % 10_000_000


def folder_of(place: Path) -> Path:
    return Path(f"/tmp/lv-{job_number(place)}")


def start(place: Path, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
    job = {"SLURM_JOB_ID": str(job_number(place)), "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_ON_NODE": "4"}
    job["SLURM_GPUS_ON_NODE"] = "2"  # each with two cores, so each with a slot; Ray believes it
    path = f"{place / 'bin'}:{BIN}:{os.environ['PATH']}"
    # Importing lowbit_vit.study, as a test before this may have done, has set what keeps a Ray of its own on the loopback.
    inherited = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")}
    environment = inherited | job | {"CALLS": str(place / "calls.txt"), "PATH": path, "PYTHONWARNINGS": "ignore"} | variables
    with (place / "log.txt").open("w") as log:
        return subprocess.Popen(["bash", SCRIPT, *arguments], cwd=place, env=environment, stdout=log, stderr=log, text=True)


def log_of(place: Path) -> str:
    return (place / "log.txt").read_text()


def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run([BIN / "shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ([], {}, "give one profile"),
        (["typo"], {}, "profiles/typo.yaml: no such file in"),
        (["demo"], {"SLURM_JOB_ID": ""}, "not in a SLURM job; start it with sbatch"),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(place: Path, arguments: list[str], variables: dict[str, str], said: str) -> None:
    assert start(place, *arguments, **variables).wait(timeout=60) == 2
    assert said in log_of(place)
    assert not (place / "calls.txt").exists()


@pytest.mark.cluster
@pytest.mark.parametrize("ended", ["by itself", "by SLURM"])
def test_ray_runs_on_every_node_until_the_sweep_ends_and_nothing_is_left(place: Path, ended: str) -> None:
    job = start(place, "demo")
    deadline = time.monotonic() + 200
    while not (place / "sweep.txt").exists():
        assert job.poll() is None, log_of(place)
        assert time.monotonic() < deadline, log_of(place)
        time.sleep(0.2)
    assert (place / "sweep.txt").read_text() == "['sweep', 'demo'] 4.0"

    calls = (place / "calls.txt").read_text().splitlines()
    ray = [call for call in calls if " ray start " in call]
    assert [("--nodelist=node1" in call, "--head" in call) for call in ray[:2]] == [(True, True), (False, False)]
    assert all("--nodes=1 --ntasks=1" in call for call in calls)
    token = {variables.get("RAY_AUTH_TOKEN") for variables in ray_environments(place)}
    assert len(token) == 1
    assert all(len(word or "") == 64 for word in token)
    assert not any((word or "-") in text for word in token for text in (log_of(place), *calls))

    if ended == "by itself":
        (place / "go").touch()
        assert job.wait(timeout=120) == 5  # the sweep's own
    else:
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=120) == 143


def ray_environments(place: Path) -> Iterator[dict[str, str]]:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "start" in words and f"--temp-dir={folder_of(place)}" in words:
            yield process.environ()
