"""A server forked from the nursery is what the worker's own would be, who cannot have one does without, and nothing outlives anyone."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from lowbit_vit.study.forked import stop_server, take_servers_from
from lowbit_vit.study.nursery import open_nursery
from stand_in import OURS, SOURCES, Starts, gone, server_of, wait_until, write_package


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path)


@pytest.fixture
def start(package: Path, tmp_path: Path) -> Starts:
    return Starts(package, tmp_path)


@pytest.fixture
def place() -> Iterator[Path]:
    """Of a nursery's socket, whose name must be short."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder) / "nursery"


@pytest.fixture(autouse=True)
def fresh_server(place: Path) -> Iterator[None]:
    stop_server()
    take_servers_from(place)
    yield
    take_servers_from(None)
    stop_server()


def opened(place: Path, start: Starts, **variables: str) -> AbstractContextManager[Path]:
    return open_nursery(place, start.environment | variables, folder=start.folder, card=False)


def nursery_of(process: psutil.Process) -> psutil.Process:
    (found,) = (child for child in process.children() if f"{OURS}.study.nursery" in child.cmdline())
    return found


def said(start: Starts, **variables: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(start.run("say", **variables)[1][0])
    return found


def slow(package: Path, then: str = "") -> Path:
    """Make the imports last until the file that is returned is there; `importing` beside it has the process id."""
    go = package / "go"
    with (package / OURS / "trial" / "run.py").open("a") as file:
        file.write(f"import os; importing = pathlib.Path({str(package / 'importing')!r}); importing.write_text(str(os.getpid()))\n")
        file.write(f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.02)\n{then}\n")
    return go


# A worker that starts one trial and waits for it; before that it has its cores and its score set, and says who it is.
WORKER = (
    "import os, sys; from pathlib import Path; from lowbit_vit.study.forked import start_forked, take_servers_from\n"
    "sources, folder, place, name = sys.argv[1:]; log = Path(folder, name)\n"
    "os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}); Path('/proc/self/oom_score_adj').write_text('700')\n"
    "take_servers_from(Path(place)); variables = {**os.environ, 'PYTHONPATH': sources, 'RAY_JOB_ID': name}\n"
    "output = os.open(log.with_suffix('.log'), os.O_CREAT | os.O_WRONLY)\n"
    "process = start_forked(['say'], folder=Path(folder), output=output, environment=variables); process.wait(); process.stdin.close()\n"
    "process = start_forked(['sleep'], folder=Path(folder), output=output, environment=variables)\n"
    "log.with_suffix('.new').write_text(str(process.pid)); log.with_suffix('.new').rename(log.with_suffix('.pid')); process.wait()\n"
)


@contextmanager
def started_worker(name: str, start: Starts, package: Path, place: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**start.environment, "PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-c", WORKER, str(package), str(start.folder), str(place), name]
    with subprocess.Popen(command, env=environment) as worker:
        try:
            yield worker
        finally:
            worker.kill()


def trial_of(name: str, start: Starts) -> psutil.Process:
    file = start.folder / f"{name}.pid"
    wait_until(lambda: file.exists() and len((start.folder / f"{name}.log").read_text().splitlines()) == 3)
    return psutil.Process(int(file.read_text()))


def test_a_server_is_what_the_workers_own_would_be(start: Starts, package: Path, place: Path) -> None:
    with opened(place, start), started_worker("first", start, package, place) as worker:
        trial = trial_of("first", start)
        server = trial.parent()
        assert server is not None
        assert server.ppid() == nursery_of(psutil.Process()).pid
        wanted = {max(os.sched_getaffinity(0))}
        for process in (server, trial):
            assert os.sched_getaffinity(process.pid) == wanted
            assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "700\n"
            assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
        assert server.cwd() == "/"
        from_nursery = server.num_fds()
        found = json.loads((start.folder / "first.log").read_text().splitlines()[0])
        assert found["environment"]["RAY_JOB_ID"] == "first"
        worker.kill()
    wait_until(lambda: gone(trial.pid) and gone(server.pid))
    with start("sleep").stdin:  # the nursery is closed
        (own,) = (child for child in psutil.Process().children() if f"{OURS}.study.fork_server" in child.cmdline())
        assert own.num_fds() == from_nursery


def test_workers_share_one_import_and_end_each_with_its_own(start: Starts, package: Path, place: Path) -> None:
    names = ("first", "second")
    with (
        opened(place, start),
        started_worker("first", start, package, place) as first,
        started_worker("second", start, package, place) as second,
    ):
        trials = [trial_of(name, start) for name in names]
        servers = [trial.ppid() for trial in trials]
        assert len(set(servers)) == 2
        lines = [json.loads((start.folder / f"{name}.log").read_text().splitlines()[0]) for name in names]
        assert len({line["imported"] for line in lines}) == 1
        first.kill()
        wait_until(lambda: gone(trials[0].pid) and gone(servers[0]))
        wait_until(lambda: not psutil.pid_exists(servers[0]))  # and buried
        assert not gone(trials[1].pid)
        second.kill()
    wait_until(lambda: gone(trials[1].pid) and gone(servers[1]))


@pytest.mark.parametrize("variables", [{"OMP_NUM_THREADS": "7"}, {"PYTHONPATH": "{}:/elsewhere"}, {"A_NEW_ONE": ""}], ids=str)
def test_who_wants_another_environment_has_imports_of_its_own(variables: dict[str, str], start: Starts, place: Path) -> None:
    changed = {name: value.format(start.environment["PYTHONPATH"]) for name, value in variables.items()}
    with opened(place, start, OMP_NUM_THREADS="1"):
        shared = said(start, OMP_NUM_THREADS="1")
        other = said(start, **({"OMP_NUM_THREADS": "1"} | changed))
        again = said(start, OMP_NUM_THREADS="1")
    assert shared["imported"] == again["imported"] != other["imported"]
    assert {name: other["environment"][name] for name in changed} == changed


def test_what_ray_tells_its_workers_may_differ_however_large_the_environment_is(start: Starts, place: Path) -> None:
    start.environment["LARGE"] = "ä" * 60_000
    for number in range(20):
        start.environment[f"LARGE_{number}"] = "x" * 60_000
    start.environment["RAY_OF_THE_DRIVER"] = "1"
    with opened(place, start):
        del start.environment["RAY_OF_THE_DRIVER"]
        plain = said(start)
        cards = said(start, CUDA_VISIBLE_DEVICES="3", RAY_JOB_ID="01", TUNE_ORIG_WORKING_DIR="/x")
    assert plain["imported"] == cards["imported"]
    expected = start.environment | {"CUDA_VISIBLE_DEVICES": "3", "RAY_JOB_ID": "01", "TUNE_ORIG_WORKING_DIR": "/x"}
    assert cards["environment"].keys() ^ expected.keys() == {"LOWBIT_VIT_LIFELINE"}  # the trial takes it out
    assert all(cards["environment"][name] == value for name, value in expected.items() if name != "LOWBIT_VIT_LIFELINE")


def test_what_an_import_sets_a_trial_has_too(start: Starts, package: Path, place: Path) -> None:
    with (package / OURS / "trial" / "run.py").open("a") as file:
        file.write("import os; os.environ['OF_AN_IMPORT'] = 'set'\n")
    with opened(place, start):
        first = said(start)
        second = said(start, RAY_JOB_ID="01")
    assert first["imported"] == second["imported"]
    assert [found["environment"]["OF_AN_IMPORT"] for found in (first, second)] == ["set", "set"]


def test_a_killed_server_is_replaced_from_the_same_nursery(start: Starts, place: Path) -> None:
    with opened(place, start):
        before = said(start)
        process = start("sleep")
        server = server_of(process)
        server.kill()
        wait_until(lambda: process.poll() is not None)
        assert process.orphaned
        process.stdin.close()
        assert said(start)["imported"] == before["imported"]


def test_who_comes_during_the_imports_waits_for_them(start: Starts, package: Path, place: Path) -> None:
    go = slow(package)
    with opened(place, start):
        wait_until((package / "importing").exists)
        timer = threading.Timer(0.5, go.touch)
        timer.start()
        begun = time.monotonic()
        said(start)
        assert time.monotonic() - begun > 0.4
        assert (package / "importing").read_text() == str(nursery_of(psutil.Process()).pid)  # nobody else imported
        timer.join()


@pytest.mark.parametrize("when", ["never there", "before", "during the imports", "by its imports"])
def test_without_a_nursery_a_worker_imports_for_itself(when: str, start: Starts, package: Path, place: Path) -> None:
    if when == "never there":
        assert start.run("exit", "3")[0] == 3
        return
    # The nursery's imports fail or wait; those of the server after it do not.
    go = slow(
        package, "if not pathlib.Path(__file__).with_name('failed').exists(): pathlib.Path(__file__).with_name('failed').touch(); 1 / 0"
    )
    with opened(place, start):
        wait_until(lambda: (package / "importing").exists() and (package / "importing").read_text() != "")
        nursery = int((package / "importing").read_text())
        if when != "by its imports":
            (package / OURS / "trial" / "failed").touch()

        def end() -> None:
            if when != "by its imports":
                os.kill(nursery, signal.SIGKILL)
            go.touch()

        timer = threading.Timer(0.3, end)
        if when == "before":
            end()
            wait_until(lambda: gone(nursery))
        else:
            timer.start()
        assert start.run("exit", "3")[0] == 3
        assert int((package / "importing").read_text()) != nursery
        if when != "before":
            timer.join()


def test_a_worker_that_is_gone_before_its_server_leaves_none(start: Starts, package: Path, place: Path) -> None:
    go = slow(package)
    with opened(place, start):
        wait_until((package / "importing").exists)
        with started_worker("gone", start, package, place) as worker:
            sockets = psutil.Process(worker.pid).net_connections
            wait_until(lambda: any(found.type == socket.SOCK_SEQPACKET for found in sockets("unix")))
            time.sleep(0.3)
            worker.kill()
        go.touch()
        said(start)  # the nursery goes on
        nursery = nursery_of(psutil.Process())
        stop_server()
        wait_until(lambda: nursery.children() == [])
        assert nursery.children() == []


DRIVER = (
    "import os, sys, time; from pathlib import Path; from lowbit_vit.study.nursery import open_nursery\n"
    "sources, folder, place = sys.argv[1:]\n"
    "variables = {**os.environ, 'PYTHONPATH': sources}\n"
    "with open_nursery(Path(place), variables, folder=Path(folder), card=False): time.sleep(60)\n"
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("when", ["during the imports", "afterwards"])
def test_a_nursery_ends_with_its_driver_and_its_servers_with_their_workers(
    when: str, number: signal.Signals, start: Starts, package: Path, place: Path
) -> None:
    go = slow(package)
    command = [sys.executable, "-c", DRIVER, str(package), str(start.folder), str(place)]
    environment = {**start.environment, "PYTHONPATH": str(SOURCES)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as driver:
        wait_until(lambda: (package / "importing").exists() and (package / "importing").read_text() != "")
        nursery = int((package / "importing").read_text())
        left = [nursery]
        if when == "afterwards":
            go.touch()
            process = start("sleep")
            server = server_of(process)
            assert server.ppid() == nursery
        driver.send_signal(number)
        driver.wait()
        wait_until(lambda: gone(nursery))
        if when == "afterwards":
            assert process.poll() is None
            stop_server()
            process.stdin.close()
            left += [server.pid, process.pid]
            wait_until(lambda: all(map(gone, left)))
            assert process.wait() == -signal.SIGKILL
    assert all(map(gone, left))
