"""A fork is a process of its own with the imports made, and nothing outlives the process that launched it."""

import importlib.util
import json
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.code_hash import imported_files
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import FORMATS
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study import process
from lowbit_vit.study.cells import cells
from lowbit_vit.study.launch import log_file, scratch_folder
from lowbit_vit.study.process import exit_code, kill_group, start_fork
from processes import launched, wait_until

ProfileOf = Callable[..., Profile]

TESTS = Path(__file__).parents[1]
SOURCES = TESTS.parent / "src"
HASHED = imported_files(SOURCES / "lowbit_vit", ("trial/run.py", "trial/scan.py", *(f"model/formats/{name}.py" for name in FORMATS)))


def stop_server() -> None:
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]  # as multiprocessing's tests do


@pytest.fixture(autouse=True)
def fresh_server() -> Iterator[None]:
    stop_server()
    yield
    stop_server()


class Starts:
    """Starts forks of a server whose imports cost nothing, each with a log of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs: list[Path] = []

    def __call__(self, function: str, *arguments: str, **variables: str) -> BaseProcess:
        self.logs.append(self.folder / f"{len(self.logs)}.log")
        return start_fork(f"fork_functions:{function}", arguments, folder=self.folder, output=self.logs[-1], variables=variables)

    def run(self, function: str, *arguments: str, **variables: str) -> tuple[int | None, list[str]]:
        fork = self(function, *arguments, **variables)
        fork.join()
        return exit_code(fork), self.logs[-1].read_text().splitlines()

    def say(self, *words: str, **variables: str) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.run("say", *words, **variables)[1][0])
        return said


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Starts:
    monkeypatch.setattr(process, "PRELOAD", "fork_functions")
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    return Starts(tmp_path)


def server_of(fork: BaseProcess) -> psutil.Process:
    parent = psutil.Process(fork.pid).parent()
    assert parent is not None
    return parent


def gone(pid: int) -> bool:
    """Ended, even if its parent has not asked for its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_fork_has_session_folder_environment_and_output_of_its_own(start: Starts) -> None:
    code, (line, second) = start.run("say", "a", "b c", LOWBIT_VIT_TEST="given")
    found = json.loads(line)
    assert (code, second) == (0, "and to stderr")
    assert found["words"] == ["a", "b c"]
    assert found["pid"] == found["group"] == found["session"]
    assert found["folder"] == str(start.folder)
    assert found["environment"] == {**os.environ, "LOWBIT_VIT_TEST": "given"}
    assert "LOWBIT_VIT_TEST" not in os.environ
    assert found["threads"] == ["MainThread", "lifeline"]
    assert found["stdin"] == ""
    assert (found["child"], found["interrupt"]) == (repr(signal.SIG_DFL), repr(signal.default_int_handler))


def test_forks_share_one_import_and_append_to_their_logs(start: Starts) -> None:
    said = [start.say() for _ in range(3)]
    assert len({found["imported"] for found in said}) == 1
    assert len({found["pid"] for found in said}) == 3
    assert all(len(log.read_text().splitlines()) == 2 for log in start.logs)
    start_fork("fork_functions:say", (), folder=start.folder, output=start.logs[0], variables={}).join()
    assert len(start.logs[0].read_text().splitlines()) == 4


def test_libraries_are_imported_with_the_variables_of_the_first_fork_and_each_fork_has_its_own(start: Starts) -> None:
    first, second = (start.say(OMP_NUM_THREADS=threads) for threads in "12")
    assert [found["environment"]["OMP_NUM_THREADS"] for found in (first, second)] == ["1", "2"]


ENDS = {
    ("end", "None"): (0, None),
    ("end", "0"): (0, None),
    ("end", "5"): (5, None),
    ("end", "'a word'"): (1, "a word"),
    ("fail",): (1, "RuntimeError: the matter"),
    ("die", "SIGKILL"): (-signal.SIGKILL, None),
    ("die", "SIGSEGV"): (-signal.SIGSEGV, None),
    ("die", "SIGTERM"): (-signal.SIGTERM, None),
    ("no_such_function",): (1, "AttributeError: module 'fork_functions' has no attribute 'no_such_function'"),
}


@pytest.mark.parametrize("words", ENDS, ids=" ".join)
def test_how_a_fork_ends_is_known(words: tuple[str, ...], start: Starts) -> None:
    code, said = start.run(*words)
    assert (code, said[-1] if said else None) == ENDS[words]


def test_a_fork_runs_until_it_ends(start: Starts) -> None:
    fork = start("sleep")
    wait_until(lambda: start.logs[0].exists() and start.logs[0].read_text() != "")
    assert exit_code(fork) is None
    assert fork.pid is not None
    os.killpg(fork.pid, signal.SIGINT)
    fork.join()
    assert exit_code(fork) == 1


def test_ending_a_fork_ends_what_it_started_and_no_other_fork(start: Starts) -> None:
    first, second = start("sleep"), start("sleep")
    wait_until(lambda: all(log.exists() and log.read_text() != "" for log in start.logs))
    helpers = [int(log.read_text()) for log in start.logs]
    kill_group(second)
    assert exit_code(second) == -signal.SIGKILL
    wait_until(lambda: gone(helpers[1]))
    assert exit_code(first) is None
    assert not gone(helpers[0])
    kill_group(first)


def test_a_fork_that_has_no_group_yet_is_ended_too(start: Starts) -> None:
    for _ in range(20):
        fork = start("sleep")
        kill_group(fork)
        assert exit_code(fork) == -signal.SIGKILL


def test_a_killed_server_is_known_from_its_forks_and_the_next_fork_has_another(start: Starts) -> None:
    fork = start("sleep")
    wait_until(lambda: start.logs[0].exists() and start.logs[0].read_text() != "")
    helper = int(start.logs[0].read_text())
    server_of(fork).kill()
    wait_until(lambda: exit_code(fork) is not None)
    assert exit_code(fork) == process.SERVER_LOST
    kill_group(fork)
    assert fork.pid is not None
    wait_until(lambda: gone(fork.pid or 0) and gone(helper))
    assert start.run("end", "3")[0] == 3


def test_an_idle_server_that_was_killed_costs_nothing_but_its_imports(start: Starts) -> None:
    first = start.say()
    fork = start("sleep")
    server = server_of(fork)
    kill_group(fork)
    server.kill()
    assert first["imported"] != start.say()["imported"]


LAUNCHER = """
import sys
from pathlib import Path
from lowbit_vit.study import process
process.PRELOAD = "fork_functions"
place = Path(sys.argv[1])
(place / "imported").open("a").write(f"{__name__}\\n")
if __name__ == "__main__":
    fork = process.start_fork("fork_functions:sleep", (), folder=place, output=place / "log", variables={})
    (place / "pid").write_text(str(fork.pid))
    (place / "ready").touch()
    fork.join()
"""


@pytest.fixture
def sockets() -> Iterator[str]:
    """A folder with a short name, for sockets of processes that are killed."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


def launcher(folder: Path, **variables: str) -> "subprocess.Popen[bytes]":
    """A program that launches a fork; it is a file, as Ray's worker is."""
    (folder / "launcher.py").write_text(LAUNCHER)
    path = os.pathsep.join(map(str, (SOURCES, TESTS)))
    return subprocess.Popen(
        [sys.executable, str(folder / "launcher.py"), str(folder)],
        env={**os.environ, "PYTHONPATH": path, **variables},
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_nothing_outlives_a_launching_process_and_no_fork_imports_its_script(number: signal.Signals, tmp_path: Path, sockets: str) -> None:
    with launcher(tmp_path, TMPDIR=sockets) as launching:
        wait_until(lambda: (tmp_path / "ready").exists() and (tmp_path / "log").exists() and (tmp_path / "log").read_text() != "")
        fork = int((tmp_path / "pid").read_text())
        left = [fork, psutil.Process(fork).ppid(), int((tmp_path / "log").read_text())]
        assert not any(map(gone, left))
        launching.send_signal(number)
        if number == signal.SIGINT:  # multiprocessing waits for its forks at the end: as `launch` does, end it
            os.killpg(fork, signal.SIGKILL)
    wait_until(lambda: all(map(gone, left)))
    assert (tmp_path / "imported").read_text() == "__main__\n"


def test_a_server_whose_launching_process_is_killed_ends_when_its_imports_are_done(tmp_path: Path, sockets: str) -> None:
    with launcher(tmp_path, TMPDIR=sockets, LOWBIT_VIT_TEST_WAIT=str(tmp_path / "done")) as launching:
        wait_until(lambda: (tmp_path / "importing").exists() and (tmp_path / "importing").read_text() != "")
        server = int((tmp_path / "importing").read_text())
        launching.kill()
    assert not gone(server)
    (tmp_path / "done").touch()
    # It answers the request that it finds, and that fork ends as it begins.
    wait_until(lambda: gone(server))
    wait_until(lambda: all(gone(int(helper)) for helper in (tmp_path / "log").read_text().split()))


def test_a_server_that_cannot_start_is_an_error_in_one_line(start: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    (start.folder / "broken.py").write_text("raise ValueError('no good')\n")
    monkeypatch.setattr(process, "PRELOAD", "broken")
    monkeypatch.setenv("PYTHONPATH", str(start.folder), prepend=os.pathsep)
    with pytest.raises(LowbitVitError, match=r"ended twice before it could fork: .* python -c 'import broken' says what fails$"):
        start("say")


# ---------------------------------------------------------------------------------------------------- the real imports


def test_a_trial_is_launched_as_a_fork_and_its_record_says_the_command_that_repeats_it(workspace: Workspace, profile_of: ProfileOf) -> None:
    trial, *_ = cells(profile_of("no data"), "variants")
    record = launched([trial], workspace)[0]
    assert record.reason is not None
    assert record.status == "failed"
    assert record.reason.endswith("run lowbit-vit data demo")
    assert record.provenance is not None
    assert record.provenance.command.startswith("lowbit-vit trial reports/demo/.scratch/")
    assert record.provenance.threads == 1
    said = log_file(workspace, [trial], "trial").read_text()
    assert f"{trial.trial_id}: failed" in said
    assert "Traceback" in said
    assert list(scratch_folder(workspace).glob("*")) == []
    again = launched([trial], workspace, threads=2)[0]
    assert again.provenance is not None
    assert again.provenance.threads == 2


# Imports as the server does: for a machine with a GPU, where each question to CUDA is written down and refused, and then, in
# the same process since that costs seconds, what one without a GPU imports beside.
IMPORTS = """
import json, os, sys
import torch, torch.cuda
import lowbit_vit.schema.machine as machine
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
visible, machine.visible_gpu = machine.visible_gpu, lambda: "a GPU"
from lowbit_vit.trial import forked
machine.visible_gpu = visible
assert not torch.cuda.is_initialized()
pid = os.fork()
if pid == 0:
    os._exit(int(torch.cuda._is_in_bad_fork()))
found = {"bad_fork": os.waitpid(pid, 0)[1], "left_out": forked._LEFT_OUT, "threads": forked._THREADS, "asked": asked,
         "nvml": os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"), "modules": sorted(sys.modules)}
print(json.dumps(found))
for (owner, name), function in given.items():
    setattr(owner, name, function)
left_out = forked.preload(gpu=False)
refused = []
torch.cuda._is_in_bad_fork = lambda: True
for forked._GPU, forked._THREADS in ((True, ()), (False, ("a pool",))):
    try:
        forked.run("trial", "file", "out", "root")
    except Exception as error:
        refused.append(f"{type(error).__name__}: {error}")
libraries = {"without": forked.libraries(gpu=True)}
sys.path.append(sys.argv[1])
libraries |= {"with": forked.libraries(gpu=True), "no GPU": forked.libraries(gpu=False)}
forked._LIBRARIES = ("no_such_library", "torchvision")
print(json.dumps({"left_out": left_out, "modules": sorted(sys.modules), "refused": refused, "missing": forked.preload(gpu=True),
                  "libraries": libraries}))
"""


def test_the_imports_ask_nothing_of_cuda_and_leave_no_module_of_ours_to_a_trial(tmp_path: Path) -> None:
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", IMPORTS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    gpu, none = map(json.loads, done.stdout.splitlines()[-2:])
    assert (gpu["bad_fork"], gpu["left_out"], gpu["threads"], gpu["asked"], gpu["nvml"]) == (0, {}, [], [], None)
    assert none["left_out"] == {}
    costly = {"bitsandbytes", "peft", "transformers"}
    assert (costly.intersection(gpu["modules"]), costly.intersection(none["modules"])) == ({"transformers"}, costly)
    # What is imported later would be read from the disk as it is then, and the hash would not say so.
    hashed = [f"lowbit_vit/{file}".removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in HASHED]
    assert set(hashed) <= set(gpu["modules"])
    # A fork that could not work refuses, in one line; a library that cannot be imported is left to the trial that needs it.
    assert [line.split(":")[0] for line in none["refused"]] == ["LowbitVitError"] * 2
    assert "initialized CUDA" in none["refused"][0]
    assert "a pool" in none["refused"][1]
    assert none["missing"] == {"no_such_library": "ModuleNotFoundError: No module named 'no_such_library'"}
    # torchao asks CUDA when it is imported, and transformers imports it where it is installed.
    transformers = {name: "transformers.modeling_utils" in libraries for name, libraries in none["libraries"].items()}
    assert transformers == {"without": importlib.util.find_spec("torchao") is None, "with": False, "no GPU": True}
