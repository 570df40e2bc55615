"""Whatever happens to a trial's process, the trial ends as a record that says so, and nothing is left running."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lowbit_vit.schema.config import Profile, Trial
from lowbit_vit.schema.predictions import load_predictions
from lowbit_vit.schema.record import read_record, read_records
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.launch import scratch_folder
from processes import launched, living_children, wait_until

ProfileOf = Callable[..., Profile]
Command = tuple[str, ...]


def trials_of(profile: Profile) -> list[Trial]:
    return [trial.model_copy(update={"measurement": None}) for trial in cells(profile, "variants")]


@pytest.fixture(autouse=True)
def nothing_is_left(workspace: Workspace) -> Iterator[None]:
    before = living_children()
    yield
    assert living_children() <= before
    assert list(scratch_folder(workspace).glob("*")) == []
    assert list(workspace.reports.rglob("*.json.*")) == []


def test_a_trial_that_finishes_has_its_record_and_predictions_in_place(
    workspace: Workspace, profile_of: ProfileOf, obedient: Command
) -> None:
    (trial,) = trials_of(profile_of("finish"))
    record = launched([trial], workspace, command=obedient)[0]
    folder = workspace.records("variants")
    assert record.status == "success"
    assert read_record(folder / f"{trial.trial_id}.json") == record
    assert len(load_predictions(folder / f"{trial.trial_id}.npz").label) == 3
    assert len(list(folder.iterdir())) == 2


FAULTS = {
    "raise": ("failed", "exit code 1 without a record: RuntimeError: the matter"),
    "die": ("failed", "killed by signal 9 (SIGKILL; kill -9, or the kernel was out of memory)"),
    "fail": ("failed", "said so"),
    "sleep 60": ("timeout", "still running after limits.seconds = 4 s; stopped"),
    "allocate": ("oom", "more than limits.memory_gib = 0.5; stopped"),
    "fill": ("failed", "could not be written (File too large); the old file is intact"),
}


@pytest.mark.parametrize("label", FAULTS)
def test_a_trial_that_does_not_finish_has_a_record_that_says_why(
    label: str, workspace: Workspace, profile_of: ProfileOf, obedient: Command
) -> None:
    (trial,) = trials_of(profile_of(label, seconds=4 if label == "sleep 60" else 60, memory_gib=0.5))
    record = launched([trial], workspace, command=obedient)[0]
    status, reason = FAULTS[label]
    assert record.status == status
    assert record.reason is not None
    assert reason in record.reason
    assert read_records(workspace.records("variants")) == [record]


def test_attempts_are_counted_until_success(workspace: Workspace, profile_of: ProfileOf, obedient: Command) -> None:
    (trial,) = trials_of(profile_of("flaky"))
    assert [launched([trial], workspace, command=obedient)[0].attempts for _ in range(2)] == [1, 2]
    (workspace.root / "repaired").touch()
    record = launched([trial], workspace, command=obedient)[0]
    assert (record.status, record.attempts) == ("success", 3)


def test_a_failed_trial_leaves_no_predictions_of_an_older_run(workspace: Workspace, profile_of: ProfileOf, obedient: Command) -> None:
    (trial,) = trials_of(profile_of("die"))
    arrays = workspace.records("variants") / f"{trial.trial_id}.npz"
    arrays.parent.mkdir(parents=True)
    arrays.write_bytes(b"old")
    launched([trial], workspace, command=obedient)
    assert not arrays.exists()


def test_a_missing_program_is_an_error_not_a_record(workspace: Workspace, profile_of: ProfileOf) -> None:
    (trial,) = trials_of(profile_of("finish"))
    with pytest.raises(FileNotFoundError):
        launched([trial], workspace, command=("/no/such/program",))[0]


def test_a_scan_gives_a_record_for_every_cell(workspace: Workspace, profile_of: ProfileOf, obedient: Command) -> None:
    trials = trials_of(profile_of("finish", "finish", "finish"))
    records = launched(trials, workspace, verb="scan", command=obedient)
    assert [(record.trial_id, record.status) for record in records] == [(trial.trial_id, "success") for trial in trials]


def test_a_cell_that_kills_its_scan_is_blamed_and_the_others_finish(workspace: Workspace, profile_of: ProfileOf, obedient: Command) -> None:
    trials = trials_of(profile_of("finish", "die", "finish", "sleep 60", "finish", seconds=4))
    records = launched(trials, workspace, verb="scan", command=obedient)
    assert [record.status for record in records] == ["success", "failed", "success", "timeout", "success"]
    assert {record.trial_id for record in records} == {trial.trial_id for trial in trials}


def test_a_scan_that_runs_in_another_order_says_whom_to_blame(workspace: Workspace, profile_of: ProfileOf, obedient: Command) -> None:
    trials = trials_of(profile_of("finish", "shared", "finish"))
    (workspace.root / "at").write_text(trials[2].trial_id)
    records = launched(trials, workspace, verb="scan", command=obedient)
    assert [record.trial_id for record in records] == [trials[index].trial_id for index in (0, 2, 1)]
    assert [record.status for record in records] == ["success", "failed", "failed"]


def test_a_scan_that_cannot_start_is_not_started_for_every_cell(workspace: Workspace, profile_of: ProfileOf, obedient: Command) -> None:
    trials = trials_of(profile_of("raise", "finish", "finish"))
    records = launched(trials, workspace, verb="scan", command=obedient)
    assert {record.reason for record in records} == {"exit code 1 without a record: RuntimeError: the matter"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_trial_dies_with_the_process_that_launched_it(
    number: signal.Signals, workspace: Workspace, profile_of: ProfileOf, obedient: Command, tmp_path: Path
) -> None:
    (trial,) = trials_of(profile_of("sleep 60"))
    (tmp_path / "trial.json").write_text(trial.model_dump_json())
    program = (
        "import sys; from pathlib import Path; from lowbit_vit.schema.config import load_trial;"
        "from lowbit_vit.schema.workspace import Workspace; from lowbit_vit.study.launch import launch;"
        "place = Workspace(root=Path(sys.argv[2]), profile='demo');"
        "list(launch([load_trial(Path(sys.argv[1]))], place, verb='trial', threads=1, command=sys.argv[3:]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "trial.json"), str(tmp_path), *obedient]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        sleeper = wait_for_sleeper(tmp_path)
        os.kill(parent.pid, number)
    wait_until(lambda: not psutil.pid_exists(sleeper))
    assert read_records(workspace.records("variants")) == []
    for leftover in scratch_folder(workspace).glob("*"):  # a killed launcher cannot clean up; the next study does
        assert number in (signal.SIGKILL, signal.SIGTERM), leftover
        (leftover / "request.json").unlink()
        (leftover / "out").rmdir()
        leftover.rmdir()


def wait_for_sleeper(root: Path) -> int:
    wait_until(lambda: any(root.glob("asleep-*")))
    return int(next(root.glob("asleep-*")).name.removeprefix("asleep-"))
