"""A study ends with a record for every cell and says what failed; going on runs only what is missing; nothing is left behind.

One Ray start costs several seconds, so each test that needs one claims several things about it.
"""

import fcntl
import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

import synthetic
from lowbit_vit.errors import Busy, DataError, TrialsFailed
from lowbit_vit.schema import file_lock
from lowbit_vit.schema.config import Arm, Profile
from lowbit_vit.schema.plan import HighPrecision, SensitivityScores
from lowbit_vit.schema.record import read_record, read_records, sha256
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.study.launch import scratch_folder
from lowbit_vit.study.resume import load_scores, missing_trials, prune
from lowbit_vit.study.sweep import run_study
from processes import launched, living_children

ProfileOf = Callable[..., Profile]
Command = tuple[str, ...]
NEVER = ("/no/such/program",)  # a study that needs no process must not start one


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()) for path in sorted(folder.glob("*.*"))}


def ray_folders() -> set[Path]:
    """Ray's folders that no run holds; those of runs beside this test are none of its business."""
    return {path.parent for path in Path("/tmp").glob("lowbit-*/owner") if is_free(path)}


def is_free(lock: Path) -> bool:
    try:
        with lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@pytest.fixture(autouse=True)
def nothing_is_left(workspace: Workspace) -> Iterator[None]:
    folders, children = ray_folders(), living_children()
    yield
    wait_until(lambda: living_children() <= children)
    assert ray_folders() <= folders
    assert not any(scratch_folder(workspace).glob("*"))
    assert not any(workspace.reports.rglob("*.json.*"))


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


def test_a_scan_study_has_a_record_for_every_cell_and_going_on_starts_nothing(
    workspace: Workspace, profile_of: ProfileOf, obedient: Command
) -> None:
    profile = profile_of("finish")
    records = run_study(profile, "sensitivity", workspace, command=obedient)
    assert [record.trial for record in records] == cells(profile, "sensitivity")
    before = hashes(workspace.records("sensitivity"))
    assert len(before) == 2 * len(records)
    assert run_study(profile, "sensitivity", workspace, command=NEVER) == records
    assert hashes(workspace.records("sensitivity")) == before


@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)],
    ids=["Ctrl-C to the group", "SIGINT to the process", "SIGTERM to the process"],
)
def test_a_study_listens_on_the_loopback_alone_and_an_interrupt_leaves_no_process_and_no_half_written_record(
    number: signal.Signals, group: bool, workspace: Workspace, profile_of: ProfileOf, obedient: Command
) -> None:
    profile = profile_of("finish", "sleep 60", "finish")
    (workspace.root / "profiles").mkdir()
    (workspace.root / "profiles" / "demo.json").write_text(profile.model_dump_json())
    program = (
        "import sys; from pathlib import Path; from lowbit_vit.schema.config import Profile;"
        "from lowbit_vit.schema.workspace import Workspace; from lowbit_vit.study.sweep import run_study; root = Path(sys.argv[1]);"
        "profile = Profile.model_validate_json((root / 'profiles' / 'demo.json').read_text());"
        "run_study(profile, 'variants', Workspace(root=root, profile='demo'), command=sys.argv[2:])"
    )
    study = subprocess.Popen(
        [sys.executable, "-c", program, str(workspace.root), *obedient],
        env={name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: any(workspace.root.glob("asleep-*")), seconds=60)
    everything = psutil.Process(study.pid).children(recursive=True)
    # Whoever reaches Ray can run programs: nothing is open to another machine.
    listening = listening_of([psutil.Process(study.pid), *everything])
    assert {"gcs_server", "raylet"} <= {name for name, _ in listening}
    assert [(name, address) for name, address in listening if not is_loopback(address)] == []
    if group:
        os.killpg(study.pid, number)
    else:
        os.kill(study.pid, number)
    _, errors = study.communicate(timeout=60)
    assert errors.strip().endswith("KeyboardInterrupt")
    wait_until(lambda: not any(process.is_running() for process in everything))
    assert [record.status for record in read_records(workspace.records("variants"))] == ["success"]


def listening_of(processes: list[psutil.Process]) -> list[tuple[str, str]]:
    """Each process that listens, with the address that it listens on."""
    return [
        (process.name(), connection.laddr.ip)
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


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


@contextmanager
def killing_workers(root: Path, *, times: int) -> Iterator[list[int]]:
    """Kill the Ray worker of each process that sleeps, as the kernel does where memory is short; yields those processes."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.1):
            for pid in (int(path.name.removeprefix("asleep-")) for path in root.glob("asleep-*")):
                if pid not in killed and len(killed) < times:
                    worker = psutil.Process(pid).parent()
                    assert worker is not None
                    assert worker.name().startswith("ray::")
                    killed.append(pid)
                    worker.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_a_ray_worker_that_is_killed_is_started_again_twice_and_then_its_trial_has_failed(
    workspace: Workspace, profile_of: ProfileOf, obedient: Command, caplog: pytest.LogCaptureFixture
) -> None:
    profile = profile_of("finish", "sleep 60", "sleep 3", "finish")
    with killing_workers(workspace.root, times=5) as killed, pytest.raises(TrialsFailed) as caught:
        run_study(profile, "variants", workspace, command=obedient)
    assert caught.value.exit_code == 5
    assert str(caught.value).startswith(
        "variants: 1 of 4 trials did not succeed: 'sleep 60' (failed: its Ray worker or node was lost, 3 times in a row); "
    )
    assert "\n" not in str(caught.value)
    records = [(record.trial.seed, record.status, record.attempts) for record in read_records(workspace.records("variants"))]
    assert sorted(records) == [(0, "success", 1), (1, "failed", 3), (2, "success", 3), (3, "success", 1)]
    assert caplog.text.count("a Ray worker or its node was lost: its process is run again") == 4
    assert len(killed) == 5
    assert not any(map(psutil.pid_exists, killed))


def kill_own_process(name: str) -> bool:
    """Kill the process of Ray's own with this title; false where there is none (others come and go meanwhile)."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.cmdline()[:1] == [f"ray::{name}"]:
                child.kill()
                return True
    return False


def test_processes_of_rays_own_that_are_killed_cost_nothing_that_is_finished(
    workspace: Workspace, profile_of: ProfileOf, obedient: Command, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[str] = []

    def kill() -> None:
        for count, name in enumerate(("_QueueActor", "_tune"), start=1):
            wait_until(lambda count=count: len(list(workspace.root.glob("asleep-*"))) == count, seconds=100)  # type: ignore[misc]
            wait_until(lambda name=name: kill_own_process(name), seconds=20)  # type: ignore[misc]
            killed.append(name)
        (workspace.root / "let-go").touch()

    thread = threading.Thread(target=kill)
    thread.start()
    records = run_study(profile_of("finish", "hold"), "variants", workspace, command=obedient)
    thread.join()
    assert killed == ["_QueueActor", "_tune"]
    assert [record.status for record in records] == ["success"] * 2
    assert caplog.text.count("a process of Ray's own was lost") == 2
    assert (workspace.root / "cards.txt").read_text().count("trial") == 4  # one finished, one begun three times


# ------------------------------------------------------------------------------------------------- what need not be run


def test_an_arm_that_cannot_run_here_is_skipped_with_its_reason_and_starts_nothing(workspace: Workspace, profile_of: ProfileOf) -> None:
    arm = Arm(label="on a card", weights=HighPrecision(), compute_dtype="fp16", attention="efficient", adaptation="none", device="cpu")
    profile = profile_of("finish")
    profile = profile.model_copy(update={"variants": profile.variants.model_copy(update={"arms": (arm,)})})
    (record,) = run_study(profile, "variants", workspace, command=NEVER)
    assert (record.status, record.reason) == ("skipped", "needs CUDA (attention efficient)")
    before = hashes(workspace.records("variants"))
    run_study(profile, "variants", workspace, command=NEVER)
    assert hashes(workspace.records("variants")) == before


@pytest.fixture
def finished(workspace: Workspace, profile_of: ProfileOf, obedient: Command) -> tuple[Profile, Path]:
    """A profile of one arm whose record is there."""
    profile = profile_of("finish")
    (trial,) = cells(profile, "variants")
    launched([trial], workspace, command=obedient)
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


def wait_until(true: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
