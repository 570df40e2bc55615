"""A package in the place of ours whose imports cost nothing, around the real fork server and nursery, and who starts its trials."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from lowbit_vit.study.fork_server import libraries
from lowbit_vit.study.forked import ForkedProcess, start_forked

SOURCES = Path(__file__).parents[1] / "src"
OURS = "lowbit_vit"

# In the place of the package that trials run: it does what the words after the program's name say.
PACKAGE = {
    "__init__.py": "",
    "errors.py": "class LowbitVitError(Exception): ...",
    "cli.py": "",
    "study/__init__.py": "",
    "schema/plan.py": "FORMATS = ('high',)",
    **dict.fromkeys(("model/formats/high.py", "model/kernels/gemm.py", "model/kernels/nf4.py"), ""),
    **{f"study/{name}.py": (SOURCES / OURS / "study" / f"{name}.py").read_text() for name in ("lifeline", "fork_server", "nursery")},
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


def write_package(folder: Path) -> Path:
    """Write it; returns the folder for PYTHONPATH."""
    sources = folder / "sources"
    for name, source in PACKAGE.items():
        file = sources / OURS / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    for library in libraries(card=False):
        parts = library.split(".")
        for count in range(1, len(parts) + 1):
            package = sources.joinpath(*parts[:count])
            package.mkdir(parents=True, exist_ok=True)
            (package / "__init__.py").touch()
    return sources


class Starts:
    """Starts trials of that package, each with a log of its own."""

    def __init__(self, package: Path, folder: Path) -> None:
        self.environment = {**os.environ, "PYTHONPATH": str(package), "LOWBIT_VIT_LIFELINE": "stdin"}
        self.environment.pop("PYTEST_CURRENT_TEST", None)  # changes from a fixture to its test
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
