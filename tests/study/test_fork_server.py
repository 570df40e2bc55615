"""A trial that is forked is what a trial in a fresh process is, and nothing outlives whoever started it."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
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
from lowbit_vit.study.forked import ForkedProcess, start_forked, stop_server
from lowbit_vit.study.grid import cells
from lowbit_vit.study.launch import launch, log_file, scratch_folder

ProfileOf = Callable[..., Profile]

SOURCES = Path(__file__).parents[2] / "src"
HASHED = imported_files(SOURCES / "lowbit_vit", ("trial/run.py", "trial/scan.py"))
OURS = "lowbit_vit"

# In the place of the package that trials run: it does what the words after the program's name say.
PACKAGE = {
    "__init__.py": "",
    "errors.py": "class LowbitVitError(Exception): ...",
    "cli.py": "",
    "study/__init__.py": "",
    **dict.fromkeys((f"model/kernels/{name}.py" for name in ("nf4", "product", "quantize")), ""),
    "study/lifeline.py": (SOURCES / OURS / "study" / "lifeline.py").read_text(),
    "study/fork_server.py": (SOURCES / OURS / "study" / "fork_server.py").read_text(),
    "trial/__init__.py": "",
    "trial/scan.py": "",
    "trial/run.py": (
        "import pathlib, sys, time, types\n"
        "import torch; torch.cuda = types.SimpleNamespace(is_initialized=lambda: False, _is_in_bad_fork=lambda: False)\n"
        "IMPORTED = time.monotonic_ns()\n"
    ),
    "__main__.py": (
        "import json, logging, os, signal, subprocess, sys, threading, time\n"
        "from lowbit_vit.study.lifeline import stop_with_parent\n"
        "from lowbit_vit.trial.run import IMPORTED\n"
        "stop_with_parent()\n"
        "word, *rest = sys.argv[1:]\n"
        "if word == 'say':\n"
        "    said = dict(argv=sys.argv, folder=os.getcwd(), pid=os.getpid(), group=os.getpgid(0), session=os.getsid(0), main=__name__,\n"
        "        imported=IMPORTED, environment=dict(os.environ), threads=threading.active_count(), files=os.listdir('/proc/self/fd'),\n"
        "        child=repr(signal.getsignal(signal.SIGCHLD)), interrupt=repr(signal.getsignal(signal.SIGINT)))\n"
        "    print(json.dumps(said)); print('and to stderr', file=sys.stderr)\n"
        "elif word == 'exit': sys.exit(eval(rest[0]))\n"
        "elif word == 'raise': raise RuntimeError('the matter')\n"
        "elif word == 'die': os.kill(os.getpid(), getattr(signal, rest[0]))\n"
        "elif word == 'sleep':\n"
        "    helper = subprocess.Popen(['sleep', '60']); print(helper.pid, flush=True); time.sleep(60)\n"
    ),
}


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
    """A folder for PYTHONPATH with a package whose imports cost nothing, around the real server and the real lifeline."""
    for name, source in PACKAGE.items():
        file = tmp_path / "sources" / OURS / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    for library in libraries(card=False):
        file = tmp_path / "sources" / Path(*library.split("."))
        for folder in (file, *file.parents):
            if folder == tmp_path / "sources":
                break
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").touch()
    return tmp_path / "sources"


@pytest.fixture(autouse=True)
def fresh_server() -> Iterator[None]:
    stop_server()
    yield
    stop_server()


class Starts:
    """Starts trials of that package, each with a log of its own."""

    def __init__(self, package: Path, folder: Path) -> None:
        self.environment = {**os.environ, "PYTHONPATH": str(package), "LOWBIT_VIT_LIFELINE": "stdin"}
        self.folder = folder
        self.logs: list[Path] = []

    def __call__(self, *arguments: str, **variables: str) -> ForkedProcess:
        self.logs.append(self.folder / f"{len(self.logs)}.log")
        with self.logs[-1].open("ab") as output:
            return start_forked(arguments, folder=self.folder, output=output.fileno(), environment=self.environment | variables)

    def run(self, *arguments: str, **variables: str) -> tuple[int, list[str]]:
        process = self(*arguments, **variables)
        code = process.wait()
        process.stdin.close()
        return code, self.logs[-1].read_text().splitlines()


@pytest.fixture
def start(package: Path, tmp_path: Path) -> Starts:
    return Starts(package, tmp_path)


def server_of(process: ForkedProcess) -> psutil.Process:
    parent = psutil.Process(process.pid).parent()
    assert parent is not None
    return parent


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Ended, even if nobody buries it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_fork_is_what_a_fresh_process_is(start: Starts) -> None:
    code, (line, second) = start.run("say", "a", "b c")
    found = json.loads(line)
    with subprocess.Popen(
        [sys.executable, "-m", OURS, "say", "a", "b c"],
        cwd=start.folder,
        env=start.environment,
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


def test_forks_share_one_import_and_have_logs_of_their_own(start: Starts) -> None:
    said = [json.loads(start.run("say")[1][0]) for _ in range(3)]
    assert len({found["imported"] for found in said}) == 1
    assert len({found["pid"] for found in said}) == 3
    assert all(len(log.read_text().splitlines()) == 2 for log in start.logs)


def test_another_environment_gets_imports_of_its_own(start: Starts) -> None:
    first, second = (json.loads(start.run("say", OMP_NUM_THREADS=threads)[1][0]) for threads in "12")
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
def test_how_a_fork_ends_is_known(words: tuple[str, str], start: Starts) -> None:
    code, said = start.run(*words)
    assert (code, said[-1] if said else None) == ENDS[words]


def test_a_fork_runs_until_it_ends(start: Starts) -> None:
    process = start("sleep")
    time.sleep(0.3)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 1
    assert process.poll() == 1
    process.stdin.close()


def test_forks_side_by_side_end_each_for_itself(start: Starts) -> None:
    first, second = start("sleep"), start("sleep")
    os.killpg(second.pid, signal.SIGKILL)
    assert second.wait() == -signal.SIGKILL
    assert first.poll() is None
    first.stdin.close()  # the lifeline of one is no other's
    assert first.wait() == -signal.SIGKILL
    second.stdin.close()


def test_a_fork_whose_server_is_killed_is_stopped_and_the_next_has_another(start: Starts) -> None:
    process = start("sleep")
    server = server_of(process)
    wait_until(lambda: start.logs[0].read_text().strip() != "")
    helper = int(start.logs[0].read_text())
    server.kill()
    wait_until(lambda: process.poll() is not None)
    assert (process.returncode, process.orphaned) == (-signal.SIGKILL, True)
    wait_until(lambda: gone(process.pid) and gone(helper))
    process.stdin.close()
    assert start.run("exit", "3")[0] == 3


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
def test_imports_that_leave_nothing_to_fork_are_an_error_in_one_line(fault: str, package: Path, start: Starts) -> None:
    with (package / OURS / "trial" / "run.py").open("a") as file:
        file.write(f"{fault}\n")
    with pytest.raises(LowbitVitError, match=FAULTS[fault]):
        start("say")


def test_a_library_that_cannot_be_imported_is_left_to_the_trial_that_needs_it(package: Path, start: Starts) -> None:
    (package / "peft" / "__init__.py").write_text("raise ImportError('broken')")
    code, said = start.run("say")
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
