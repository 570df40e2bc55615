"""Interrupts and killed processes, of Ray's own too: nothing that was finished is lost, and nothing is left behind."""

import ipaddress
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from lowbit_vit.errors import TrialsFailed
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.record import read_records
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.sweep import run_study
from processes import wait_until

ProfileOf = Callable[..., Profile]
Command = tuple[str, ...]

pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGINT, True), (signal.SIGTERM, False)],
    ids=["Ctrl-C to the group", "SIGTERM to the process"],
)
def test_a_study_listens_on_the_loopback_alone_and_an_interrupt_leaves_no_process_and_no_half_written_record(
    number: signal.Signals, group: bool, workspace: Workspace, profile_of: ProfileOf, obedient: Command
) -> None:
    profile = profile_of("finish", "sleep 60", "finish / 2")
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
    assert (workspace.root / "gpus.txt").read_text().count("trial") == 4  # one finished, one begun three times
