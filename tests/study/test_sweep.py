"""A study ends with a record for every cell and says what failed; going on runs only what is missing; nothing is left behind.

One Ray start costs several seconds, so each test that needs one claims several things about it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import synthetic
from lowbit_vit.errors import Busy, DataError, TrialsFailed
from lowbit_vit.schema import file_lock
from lowbit_vit.schema.config import Arm, Profile
from lowbit_vit.schema.plan import HighPrecision, SensitivityScores
from lowbit_vit.schema.record import Host, read_record, read_records, sha256, write_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.launch import scratch_folder
from lowbit_vit.study.resume import load_scores, missing_trials, prune, put_record
from lowbit_vit.study.sweep import run_study
from processes import launched

ProfileOf = Callable[..., Profile]
Command = tuple[str, ...]
NEVER = ("/no/such/program",)  # a study that needs no process must not start one


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()) for path in sorted(folder.glob("*.*"))}


pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_failures_are_named_the_rest_finishes_and_going_on_runs_only_what_is_missing(
    workspace: Workspace, profile_of: ProfileOf, obedient: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    profile = profile_of("occupy 1", "die", "allocate", "flaky", "sleep 60", "occupy 1", seconds=6, memory_gib=0.5)
    folder = workspace.records("variants")

    with pytest.raises(TrialsFailed) as caught:
        run_study(profile, "variants", workspace, command=obedient)
    message = str(caught.value)
    assert message.startswith("variants: 4 of 6 trials did not succeed: ")
    for named in ("'die' (failed: killed by signal 9", "'allocate' (oom: ", "'flaky' (failed: ", "'sleep 60' (timeout: "):
        assert named in message
    assert "\n" not in message
    statuses = {record.trial.label: record.status for record in read_records(folder)}
    assert statuses == {"occupy 1": "success", "die": "failed", "allocate": "oom", "flaky": "failed", "sleep 60": "timeout"}
    assert len(read_records(folder)) == 6

    # Timing trials had the machine to themselves.
    first, second = sorted([float(word) for word in line.split()[:2]] for line in (workspace.root / "times.txt").read_text().splitlines())
    assert first[1] <= second[0]

    # Progress said what ran and how it ended; Ray said nothing.
    shown = capfd.readouterr()
    for line in ("running   die", "finished  occupy 1", "oom       allocate", "timeout   sleep 60"):
        assert line in shown.err
    assert "ray" not in (shown.out + shown.err).lower()

    # What succeeded is not run again, and not a byte of it changes.
    done = {path: sha256(path.read_bytes()) for path in folder.glob("*.*") if read_record(path.with_suffix(".json")).status == "success"}
    assert len(done) == 4
    (workspace.root / "repaired").touch()
    profile = profile_of("occupy 1", "finish", "finish", "flaky", "finish", "occupy 1", seconds=6)
    records = run_study(profile, "variants", workspace, command=obedient)
    assert [record.status for record in records] == ["success"] * 6
    assert [record.attempts for record in records] == [1, 2, 2, 2, 2, 1]
    assert {path: sha256(path.read_bytes()) for path in done} == done
    assert len((workspace.root / "times.txt").read_text().splitlines()) == 2


def test_repeats_run_in_rounds_after_all_first_processes_and_not_without_theirs(
    workspace: Workspace, profile_of: ProfileOf, obedient: Command
) -> None:
    profile = synthetic.in_processes(profile_of("occupy 0", "fail"), 3)
    with pytest.raises(TrialsFailed, match=r"variants: 1 of 6 trials did not succeed: 'fail' \(failed: said so\)"):
        run_study(profile, "variants", workspace, command=obedient)
    records = {(record.trial.label, record.trial.process): record for record in read_records(workspace.records("variants"))}
    assert len(records) == 6
    for process in (1, 2):
        assert records["occupy 0", process].status == "success"
        skipped = records["fail", process]
        assert (skipped.status, skipped.reason) == ("skipped", "its first process did not succeed (failed: said so)")
    assert len((workspace.root / "times.txt").read_text().splitlines()) == 3

    # One that was disturbed is taken again, twice.
    disturbed = records["occupy 0", 2]
    assert disturbed.measurement is not None
    measured = disturbed.trial.measurement
    assert measured is not None
    host = Host(launch_us=None, python_loop_ns=1, python_loop_most_ns=1, cpu_pressure=0.9, steal=None, load=9)
    latency = tuple(item.model_copy(update={"host": host}) for item in disturbed.measurement.latency)
    disturbed = disturbed.model_copy(update={"measurement": disturbed.measurement.model_copy(update={"latency": latency})})
    for attempts, again in ((1, True), (2, True), (3, False)):
        write_record(disturbed.model_copy(update={"attempts": attempts}), workspace.records("variants"))
        assert (missing_trials([disturbed.trial], workspace) == [disturbed.trial]) == again
    waived = disturbed.trial.model_copy(update={"measurement": measured.model_copy(update={"exclusive": "waived"})})
    write_record(disturbed.model_copy(update={"trial": waived, "trial_id": waived.trial_id, "attempts": 1}), workspace.records("variants"))
    assert missing_trials([waived], workspace) == []
    write_record(disturbed, workspace.records("variants"))
    assert put_record(disturbed, None, workspace).attempts == 2


def test_a_second_run_in_the_same_folder_is_refused_and_names_the_first(
    workspace: Workspace, profile_of: ProfileOf, obedient: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = "import fcntl, os, sys, time; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); f.truncate(0);" + (
        "f.write(f'process {os.getpid()} (mixed)'); f.flush(); print(flush=True); time.sleep(60)"
    )
    workspace.reports.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", holder, str(workspace.reports / ".lock")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        monkeypatch.setattr(file_lock, "PATIENCE_S", 0.5)
        with pytest.raises(Busy, match=rf"^reports/demo: held by process {process.pid} \(mixed\); wait for it or stop it$"):
            run_study(profile_of("finish"), "variants", workspace, command=obedient)
        process.kill()
    assert read_records(workspace.records("variants")) == []


def test_missing_weights_are_an_error_before_anything_starts(workspace: Workspace, profile_of: ProfileOf) -> None:
    workspace.backbone.unlink()
    with pytest.raises(DataError, match=r"^checkpoints/demo/backbone\.safetensors: no such weights; run lowbit-vit backbone demo$"):
        run_study(profile_of("finish"), "variants", workspace, command=NEVER)


# ------------------------------------------------------------------------------------------------- what need not be run


def test_an_arm_that_cannot_run_here_is_skipped_with_its_reason_and_starts_nothing(workspace: Workspace, profile_of: ProfileOf) -> None:
    arm = Arm(label="on a GPU", weights=HighPrecision(), compute_dtype="fp16", attention="efficient", adaptation="none", device="cpu")
    profile = profile_of("finish")
    profile = profile.model_copy(update={"variants": profile.variants.model_copy(update={"arms": (arm,)})})
    (record,) = run_study(profile, "variants", workspace, command=NEVER)
    assert (record.status, record.reason) == ("skipped", "needs CUDA (attention efficient)")
    before = hashes(workspace.records("variants"))
    run_study(profile, "variants", workspace, command=NEVER)
    assert hashes(workspace.records("variants")) == before


@pytest.fixture(scope="module")
def launched_before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test that asks keeps what a process made."""
    return tmp_path_factory.mktemp("launched") / "reports"


@pytest.fixture
def finished(workspace: Workspace, profile_of: ProfileOf, obedient: Command, launched_before: Path) -> tuple[Profile, Path]:
    """A profile of one arm whose record is there."""
    profile = profile_of("finish")
    (trial,) = cells(profile, "variants")
    if not launched_before.exists():
        launched([trial], workspace, command=obedient)
        shutil.copytree(workspace.reports, launched_before)
    shutil.copytree(launched_before, workspace.reports, dirs_exist_ok=True)
    return profile, workspace.records("variants") / f"{trial.trial_id}.json"


def test_a_finished_trial_is_not_run_again(finished: tuple[Profile, Path], workspace: Workspace) -> None:
    assert run_study(finished[0], "variants", workspace, command=NEVER) == [read_record(finished[1])]


@pytest.mark.parametrize("damage", ["weights", "predictions", "record"])
def test_a_finished_trial_counts_only_if_it_is_whole_and_of_these_weights(
    damage: str, finished: tuple[Profile, Path], workspace: Workspace
) -> None:
    (trial,) = cells(finished[0], "variants")
    assert missing_trials([trial], workspace) == []
    if damage == "weights":
        workspace.backbone.with_suffix(".json").write_text(json.dumps({"sha256": "f" * 64}))
    elif damage == "predictions":
        finished[1].with_suffix(".npz").unlink()
    else:
        finished[1].write_text("{")
    assert missing_trials([trial], workspace) == [trial]


def test_a_new_label_reaches_the_finished_record(finished: tuple[Profile, Path], workspace: Workspace) -> None:
    profile, path = finished
    arm = profile.variants.arms[0].model_copy(update={"label": "a better name"})
    profile = profile.model_copy(update={"variants": profile.variants.model_copy(update={"arms": (arm,)})})
    (record,) = run_study(profile, "variants", workspace, command=NEVER)
    assert record.trial.label == "a better name"
    assert read_record(path) == record


def test_cells_that_left_the_grid_and_half_written_files_are_deleted(finished: tuple[Profile, Path], workspace: Workspace) -> None:
    folder = workspace.records("variants")
    (folder / ".old.json.abc").write_text("{")
    scratch_folder(workspace).mkdir(exist_ok=True)
    (scratch_folder(workspace) / "left").touch()
    prune(workspace, "variants", keep={finished[1].stem})
    assert sorted(path.name for path in folder.iterdir()) == [finished[1].name, finished[1].with_suffix(".npz").name]
    prune(workspace, "variants", keep=set())
    assert list(folder.iterdir()) == []


def test_scores_of_other_weights_are_refused(workspace: Workspace, profile_of: ProfileOf) -> None:
    with pytest.raises(DataError, match=r"sensitivity\.json: no such file; run lowbit-vit sensitivity demo"):
        run_study(profile_of("finish"), "mixed", workspace, command=NEVER)
    block = synthetic.block_score(0, (0.1,))
    for digest, fits in ((sha256(workspace.adapted(0).read_bytes()), True), ("0" * 64, False)):
        scores = SensitivityScores(
            profile="demo",
            backbone_sha256=digest,
            weights=profile_of("finish").mixed.weights,
            direction="only",
            images=10,
            blocks=(block,),
        )
        workspace.sensitivity.write_text(f"[{scores.model_dump_json()}]")
        if fits:
            assert load_scores(workspace) == (scores,)
        else:
            with pytest.raises(DataError, match="was made from other weights"):
                load_scores(workspace)
