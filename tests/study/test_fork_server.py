"""A trial that is forked is what a trial in a fresh process is, and nothing outlives whoever started it."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.code import imported_files
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.fork_server import libraries
from lowbit_vit.study.forked import stop_server, take_servers_from
from lowbit_vit.study.grid import cells
from lowbit_vit.study.launch import launch, log_file, scratch_folder
from lowbit_vit.study.nursery import open_nursery
from stand_in import OURS, SOURCES, Starts, gone, server_of, wait_until, write_package

ProfileOf = Callable[..., Profile]

HASHED = imported_files(SOURCES / "lowbit_vit", ("trial/run.py", "trial/scan.py"))


@pytest.mark.parametrize("installed", [False, True])
def test_where_torchao_is_installed_a_card_is_not_asked_through_transformers(
    installed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "transformers.modeling_utils" in libraries(card=False)
    if importlib.util.find_spec("torchao") is not None and not installed:
        pytest.skip("torchao is installed here")
    if installed:
        (tmp_path / "torchao").mkdir()
        (tmp_path / "torchao" / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
    assert ("transformers.modeling_utils" in libraries(card=True)) is not installed
    assert "accelerate" in libraries(card=True)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path)


@pytest.fixture(autouse=True)
def fresh_server() -> Iterator[None]:
    stop_server()
    yield
    stop_server()


@pytest.fixture
def start(package: Path, tmp_path: Path) -> Starts:
    return Starts(package, tmp_path)


@pytest.fixture(params=["imports for itself", "is a fork of the nursery"])
def start_either(request: pytest.FixtureRequest, start: Starts) -> Iterator[Starts]:
    """Whatever the server is."""
    if request.param == "imports for itself":
        yield start
        return
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        place = Path(folder) / "nursery"
        with open_nursery(place, start.environment, folder=start.folder, card=False):
            take_servers_from(place)
            yield start
            take_servers_from(None)


def test_a_fork_is_what_a_fresh_process_is(start_either: Starts) -> None:
    code, (line, second) = start_either.run("say", "a", "b c")
    found = json.loads(line)
    with subprocess.Popen(
        [sys.executable, "-m", OURS, "say", "a", "b c"],
        cwd=start_either.folder,
        env=start_either.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as alone:
        assert alone.stdout is not None
        said = alone.stdout.read().splitlines()
    fresh = next(json.loads(words) for words in said if words.startswith(b"{"))
    assert (code, second) == (0, "and to stderr")
    for key in ("argv", "folder", "main", "threads", "child", "interrupt", "environment"):
        assert found[key] == fresh[key], key
    assert found["pid"] == found["group"] == found["session"]
    assert len(found["files"]) == len(fresh["files"])


def test_forks_share_one_import_and_have_logs_of_their_own(start_either: Starts) -> None:
    said = [json.loads(start_either.run("say")[1][0]) for _ in range(3)]
    assert len({found["imported"] for found in said}) == 1
    assert len({found["pid"] for found in said}) == 3
    assert all(len(log.read_text().splitlines()) == 2 for log in start_either.logs)


def test_another_environment_gets_imports_of_its_own(start_either: Starts) -> None:
    first, second = (json.loads(start_either.run("say", OMP_NUM_THREADS=threads)[1][0]) for threads in "12")
    assert first["imported"] != second["imported"]
    assert [found["environment"]["OMP_NUM_THREADS"] for found in (first, second)] == ["1", "2"]


ENDS = {
    ("exit", "None"): (0, None),
    ("exit", "5"): (5, None),
    ("exit", "'a word'"): (1, "a word"),
    ("raise", ""): (1, "RuntimeError: the matter"),
    ("die", "SIGKILL"): (-signal.SIGKILL, None),
    ("die", "SIGSEGV"): (-signal.SIGSEGV, None),
    ("die", "SIGTERM"): (-signal.SIGTERM, None),
}


@pytest.mark.parametrize("words", ENDS, ids=" ".join)
def test_how_a_fork_ends_is_known(words: tuple[str, str], start_either: Starts) -> None:
    code, said = start_either.run(*words)
    assert (code, said[-1] if said else None) == ENDS[words]


def test_a_fork_runs_until_it_ends(start_either: Starts) -> None:
    process = start_either("sleep")
    time.sleep(0.3)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 1
    assert process.poll() == 1
    process.stdin.close()


def test_forks_side_by_side_end_each_for_itself(start_either: Starts) -> None:
    first, second = start_either("sleep"), start_either("sleep")
    os.killpg(second.pid, signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL
    assert first.poll() is None
    first.stdin.close()  # the lifeline of one is no other's
    assert first.wait() == -signal.SIGKILL
    second.stdin.close()


def test_a_fork_whose_server_is_killed_is_stopped_and_the_next_has_another(start_either: Starts) -> None:
    process = start_either("sleep")
    server = server_of(process)
    wait_until(lambda: start_either.logs[0].read_text().strip() != "")
    helper = int(start_either.logs[0].read_text())
    server.kill()
    wait_until(lambda: process.poll() is not None)
    assert (process.returncode, process.orphaned) == (-signal.SIGKILL, True)
    wait_until(lambda: gone(process.pid) and gone(helper))
    process.stdin.close()
    assert start_either.run("exit", "3")[0] == 3


def test_an_idle_server_that_was_killed_costs_nothing_but_its_imports(start: Starts) -> None:
    first = json.loads(start.run("say")[1][0])
    process = start("sleep")
    server = server_of(process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()
    server.kill()
    second = json.loads(start.run("say")[1][0])
    assert first["imported"] != second["imported"]


LAUNCHER = (
    "import os, sys, time; from pathlib import Path; from lowbit_vit.study.forked import start_forked\n"
    "place = Path(sys.argv[2]); variables = {**os.environ, 'PYTHONPATH': sys.argv[1], 'LOWBIT_VIT_LIFELINE': 'stdin'}\n"
    "process = start_forked(['sleep'], folder=place, output=os.open(place / 'log', os.O_CREAT | os.O_WRONLY), environment=variables)\n"
    "(place / 'pid').write_text(str(process.pid)); (place / 'ready').touch(); process.wait()\n"
)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_outlives_a_launching_process(number: signal.Signals, package: Path, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, str(package), str(tmp_path)], stderr=subprocess.DEVNULL) as launcher:
        wait_until(lambda: (tmp_path / "ready").exists() and (tmp_path / "log").read_text() != "")
        fork = int((tmp_path / "pid").read_text())
        left = [fork, psutil.Process(fork).ppid(), int((tmp_path / "log").read_text())]
        assert not any(map(gone, left))
        launcher.send_signal(number)
    wait_until(lambda: all(map(gone, left)))
    assert [pid for pid in left if not gone(pid)] == []


def test_nothing_outlives_a_launching_process_that_is_killed_during_the_imports(package: Path, tmp_path: Path) -> None:
    mark = tmp_path / "importing"
    with (package / OURS / "trial" / "run.py").open("a") as file:
        file.write(f"import os; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(60)\n")
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, str(package), str(tmp_path)]) as launcher:
        wait_until(lambda: mark.exists() and mark.read_text() != "")
        server = int(mark.read_text())
        assert not gone(server)
        launcher.kill()
    wait_until(lambda: gone(server))
    assert gone(server)


FAULTS = {
    "raise ValueError('no good')": "ValueError: no good",
    "import torch; torch.cuda.is_initialized = lambda: True": "initialized CUDA",
    "import threading; threading.Thread(target=time.sleep, args=[9], daemon=True, name='a pool').start()": "started threads.*a pool",
}


@pytest.mark.parametrize("fault", FAULTS, ids=FAULTS.values())
def test_imports_that_leave_nothing_to_fork_are_an_error_in_one_line(fault: str, package: Path, start_either: Starts) -> None:
    with (package / OURS / "trial" / "run.py").open("a") as file:
        file.write(f"{fault}\n")
    with pytest.raises(LowbitVitError, match=FAULTS[fault]):
        start_either("say")


def test_a_library_that_cannot_be_imported_is_left_to_the_trial_that_needs_it(package: Path, start_either: Starts) -> None:
    (package / "peft" / "__init__.py").write_text("raise ImportError('broken')")
    code, said = start_either.run("say")
    assert code == 0
    assert "not imported beforehand: peft (ImportError: broken)" in said


def test_a_server_runs_the_sources_that_it_imported(package: Path, start: Starts) -> None:
    before = json.loads(start.run("say")[1][0])["imported"]
    run = package / OURS / "trial" / "run.py"
    run.write_text(run.read_text() + "IMPORTED = 0\n")
    assert json.loads(start.run("say")[1][0])["imported"] == before
    stop_server()
    assert json.loads(start.run("say")[1][0])["imported"] == 0


# ---------------------------------------------------------------------------------------------------- the real imports


def test_a_trial_is_launched_as_a_fork_and_its_record_says_the_command_that_repeats_it(workspace: Workspace, profile_of: ProfileOf) -> None:
    trial, *_ = cells(profile_of("no data"), "variants")
    record = launch(trial, workspace, threads=1)
    assert (record.status, record.reason is not None and record.reason.endswith("run lowbit-vit data demo")) == ("failed", True)
    assert record.provenance is not None
    assert record.provenance.command.startswith("lowbit-vit trial reports/demo/.scratch/")
    assert record.provenance.threads == 1
    said = log_file(workspace, [trial], "trial").read_text()
    assert f"{trial.trial_id}: failed" in said  # stdout
    assert "Traceback" in said  # stderr
    assert list(scratch_folder(workspace).glob("*")) == []


# Imports as the server does: for a machine with a card, where whoever asks CUDA anything is written down and refused, and then, in
# the same process since that costs seconds, what one without a card imports beside.
IMPORTS = """
import json, os, sys
import torch, torch.cuda
from lowbit_vit.study import fork_server
asked, given = [], {}
QUESTIONS = {
    torch.cuda: ("is_available", "device_count", "current_device", "get_device_capability", "get_device_properties", "get_device_name",
                 "mem_get_info", "synchronize", "is_bf16_supported", "init", "_lazy_init"),
    torch._C: ("_cuda_getDeviceCount", "_cuda_getDevice", "_cuda_init"),
}
def refusal(name):
    def refuse(*arguments, **named):
        asked.append(name)
        raise RuntimeError(name)
    return refuse
for owner, names in QUESTIONS.items():
    for name in names:
        assert hasattr(owner, name), name
        given[owner, name] = getattr(owner, name)
        setattr(owner, name, refusal(name))
left_out = fork_server.preload(card=True)
fork_server.require_forkable()
fork_server.require_cuda_untouched()
nvml = os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK")
print(json.dumps({"left_out": left_out, "asked": asked, "nvml": nvml, "modules": sorted(sys.modules)}))
for (owner, name), function in given.items():
    setattr(owner, name, function)
left_out = fork_server.preload(card=False)
fork_server.require_forkable()
print(json.dumps({"left_out": left_out, "modules": sorted(sys.modules)}))
"""


def test_the_imports_ask_nothing_of_cuda_and_leave_no_module_of_ours_to_a_trial() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORTS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    card, none = map(json.loads, done.stdout.splitlines()[-2:])
    assert (card["left_out"], card["asked"], card["nvml"]) == ({}, [], None)
    assert none["left_out"] == {}
    costly = {"bitsandbytes", "peft", "transformers"}
    assert (costly.intersection(card["modules"]), costly.intersection(none["modules"])) == ({"transformers"}, costly)
    # What is imported later would be read from the disk as it is then, and the hash would not say so.
    hashed = [f"{OURS}/{file}".removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in HASHED]
    assert set(hashed) <= set(card["modules"])
