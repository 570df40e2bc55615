"""A study on three nodes ends as it ends on one machine, whatever is killed on the way.

The nodes see nothing of the submitter's folder (nodes.py). A Ray start costs many seconds, so the tests share a cluster, and each
claims several things about one sweep.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from zipfile import ZipFile

import psutil
import pytest
from ray._private.runtime_env.packaging import create_package  # what `ray job submit` packs with

from lowbit_vit.schema.config import STUDIES
from lowbit_vit.schema.record import read_records
from processes import wait_until
from projects import ROOT, dvc, environment, make_project
from ray_nodes import PROGRAM, RAY, Cluster, Submitter

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def run(*command: str, cwd: Path, env: dict[str, str], seconds: float = 600) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=seconds)


def results(project: Path) -> dict[str, object]:
    """Of each record what a run must repeat: status, accuracies, and the bytes of the predictions' file."""
    found: dict[str, object] = {}
    for record in read_records(project / "reports" / "tiny" / "records"):
        arrays = project / "reports" / "tiny" / "records" / record.trial.study / f"{record.trial_id}.npz"
        whole = record.evaluation and record.evaluation.model_dump(exclude={"seconds"})
        found[f"{record.trial.study}/{record.trial_id}"] = (
            record.status, record.trial.label, record.attempts, record.code_sha256, record.data_sha256, whole,
            arrays.read_bytes() if arrays.exists() else None,
        )  # fmt: skip
    return found


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
@pytest.mark.parametrize("kind", ["nothing listens", "another program listens"])
def test_a_cluster_that_is_not_there_is_said_within_half_a_minute(tmp_path: Path, kind: str, form: str) -> None:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = form.format(f"127.0.0.1:{other.getsockname()[1]}")
        if kind == "nothing listens":
            other.close()
        start = time.monotonic()
        ended = run(sys.executable, "-m", "lowbit_vit", "variants", "demo", cwd=tmp_path, env={**os.environ, "RAY_ADDRESS": address})
    assert time.monotonic() - start < 60  # with the imports, on a machine that does other work
    assert ended.returncode == 4
    assert ended.stderr.splitlines()[-1].startswith(f"lowbit-vit: RAY_ADDRESS={address}: no cluster to work with: ")


def test_dvc_repro_on_the_submitting_side_ends_with_the_files_of_a_local_run(tmp_path: Path, cluster: Cluster) -> None:
    here = make_project(tmp_path / "here")
    dvc(here, "repro", "backbone@tiny")
    there = shutil.copytree(here, tmp_path / "there")
    local = run(sys.executable, "-m", "lowbit_vit", "sweep", "tiny", cwd=here, env=environment(here))
    assert local.returncode == 0, local.stderr

    on_cluster = cluster.environment(RAY_ADDRESS=cluster.client)
    dvc(
        there,
        "repro",
        "variants@tiny",
        "mixed@tiny",
        variables={name: on_cluster[name] for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")},
    )
    expected = results(here)
    assert {name.split("/")[0] for name in expected} == set(STUDIES)
    assert results(there) == expected
    scores = [json.loads((project / "reports/tiny/sensitivity.json").read_text()) for project in (here, there)]
    assert scores[0] == scores[1]

    def listed(project: Path) -> set[str]:
        return {path.relative_to(project / "reports").as_posix() for path in (project / "reports").rglob("*") if path.is_file()}

    assert listed(there) == listed(here)
    # The commit is the submitter's; the nodes have no repository.
    records = read_records(there / "reports/tiny/records")
    assert {record.provenance.git_revision for record in records if record.provenance} == {
        record.provenance.git_revision for record in read_records(here / "reports/tiny/records") if record.provenance
    }
    # Each node fetched a file once, by its hash, and its workspaces are gone.
    used = [name for name in ("a", "b", "c") if any(cluster.cache(name).glob("objects/*"))]
    assert used
    for name in used:
        assert not list(cluster.cache(name).glob("units/*"))


def test_a_killed_worker_and_a_killed_node_lose_nothing_and_a_late_node_helps(cluster: Cluster, submitter: Submitter) -> None:
    profile = submitter.arms(*["hold"] * 3, *["sleep 4"] * 5)
    study = submitter.start(cluster, cluster.address)
    wait_until(lambda: all(cluster.running(name) for name in ("a", "b", "c")), seconds=120)
    # The Ray worker of a's unit: the parent of the sleeping process.
    asleep = psutil.Process(int(cluster.running("a")[0].name.removeprefix("asleep-")))
    worker = asleep.parent()
    assert worker is not None
    worker.kill()
    cluster.kill_node("b")
    cluster.add_node("late")
    wait_until(lambda: not asleep.is_running(), seconds=10)
    # a and c hold one each, so that the third is late's, however long that takes to start.
    wait_until(lambda: cluster.running("late"), seconds=120)
    wait_until(lambda: cluster.let_go() and study.poll() is not None, seconds=240)
    _, errors = study.communicate()
    assert study.returncode == 0, errors
    assert errors.count("a Ray worker or its node was lost: its process is run again") == 2
    records = read_records(submitter.workspace.records("variants"))
    assert len(records) == len(profile.variants.arms)
    assert {record.status for record in records} == {"success"}
    # Two were lost once, and say so; the others ran once.
    assert sorted(record.attempts for record in records) == [1] * 6 + [2] * 2
    assert any(cluster.cache("late").glob("objects/*"))
    assert errors.count("finished  ") == len(records)
    cluster.add_node("b")


def test_after_the_submitter_was_killed_the_same_command_runs_only_what_is_missing(cluster: Cluster, submitter: Submitter) -> None:
    submitter.arms("finish", "finish", "sleep 20", "sleep 20", "finish")
    study = submitter.start(cluster, cluster.address)
    wait_until(lambda: len(submitter.files) == 6, seconds=120)
    wait_until(lambda: any(cluster.running(name) for name in cluster.nodes), seconds=60)
    before = submitter.files
    asleep = [pid for name in cluster.nodes for pid in asleep_pids(cluster, name)]
    os.kill(study.pid, signal.SIGKILL)
    study.communicate()
    # Nothing of it goes on running anywhere.
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in asleep), seconds=60)
    again = submitter.start(cluster, cluster.address)
    _, errors = again.communicate(timeout=180)
    assert again.returncode == 0, errors
    assert "variants: 5 cells, 2 to run" in errors
    assert {name: digest for name, digest in submitter.files.items() if name in before} == before
    assert {record.attempts for record in read_records(submitter.workspace.records("variants"))} == {1}
    assert not any(submitter.workspace.reports.rglob("*.json.*"))


def asleep_pids(cluster: Cluster, name: str) -> list[int]:
    return [int(path.name.removeprefix("asleep-")) for path in cluster.running(name)]


def test_a_job_needs_the_token_and_unwinds_when_it_is_stopped(cluster: Cluster, submitter: Submitter, tmp_path: Path) -> None:
    project = make_project(tmp_path / "upload")
    submit = [RAY, "job", "submit", "--address", cluster.dashboard, "--submission-id", "first", "--no-wait", "--working-dir", "."]
    # The submitted program works in a folder that the head sees.
    shared = cluster.folder / "shared"
    shutil.copytree(submitter.workspace.root, shared)
    submitter.workspace = type(submitter.workspace)(root=shared, profile="demo")
    submitter.arms("finish", "sleep 60", "sleep 60", "sleep 60")
    child = str(project / "tests" / "study" / "obedient_child.py")
    shutil.copy(child, cluster.folder / "obedient_child.py")
    (project / "job.py").write_text(PROGRAM)
    job = ["--", "env", "PYTHONPATH=src", sys.executable, "job.py", str(shared), sys.executable, str(cluster.folder / "obedient_child.py")]

    for wrong in ({}, {"RAY_AUTH_TOKEN": "0" * 64}):
        stranger = (
            {name: value for name, value in cluster.environment().items() if name != "RAY_AUTH_TOKEN"} | {"HOME": str(tmp_path)} | wrong
        )
        refused = run(*submit, *job, cwd=project, env=stranger)
        assert refused.returncode != 0
        assert "token" in (refused.stdout + refused.stderr).lower() or "401" in refused.stderr or "403" in refused.stderr

    accepted = run(*submit, *job, cwd=project, env=cluster.environment())
    assert accepted.returncode == 0, accepted.stderr
    wait_until(lambda: len(submitter.files) == 2 and any(cluster.running(name) for name in cluster.nodes), seconds=150)
    asleep = [pid for name in cluster.nodes for pid in asleep_pids(cluster, name)]
    stopped = run(RAY, "job", "stop", "--address", cluster.dashboard, "first", cwd=project, env=cluster.environment(), seconds=30)
    assert "was stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    # It unwound by itself, before Ray's SIGKILL 8 s after the signal (RAY_JOB_STOP_WAIT_TIME_S in ray_nodes.py).
    logs = run(RAY, "job", "logs", "--address", cluster.dashboard, "first", cwd=project, env=cluster.environment())
    assert "KeyboardInterrupt" in logs.stdout + logs.stderr
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in asleep), seconds=30)
    assert [record.status for record in read_records(submitter.workspace.records("variants"))] == ["success"]
    assert not any(shared.rglob("*.json.*"))


def test_after_the_head_was_lost_the_same_command_runs_only_what_is_missing(cluster: Cluster, submitter: Submitter) -> None:
    submitter.arms("finish", "finish", "sleep 30")
    study = submitter.start(cluster, cluster.client)
    wait_until(lambda: len(submitter.files) == 4, seconds=200)
    before = submitter.files
    cluster.kill_head()
    for name in list(cluster.nodes):
        cluster.kill_node(name)
    _, errors = study.communicate(timeout=200)
    assert study.returncode == 1, errors
    (last,) = [line for line in errors.splitlines() if "the cluster was lost" in line]
    assert last.endswith("finished trials are kept, run the same command again to go on")
    assert submitter.files == before

    cluster.start_head()
    cluster.add_node("a")
    again = submitter.start(cluster, cluster.client)
    _, errors = again.communicate(timeout=200)
    assert again.returncode == 0, errors
    assert "variants: 3 cells, 1 to run" in errors
    assert {name: digest for name, digest in submitter.files.items() if name in before} == before


def test_what_a_job_uploads_is_small_and_holds_no_images_weights_or_records(tmp_path: Path) -> None:
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    assert package.stat().st_size < 10_000_000
    with ZipFile(package) as uploaded:
        names = uploaded.namelist()
    assert {"src/lowbit_vit/cli/studies.py", "profiles/demo.yaml"} <= set(names)
    assert not [name for name in names if name.startswith(("data/prepared", "data/raw", "checkpoints", "reports", ".git/"))]
