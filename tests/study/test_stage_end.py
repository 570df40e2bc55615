"""The process of a stage ends with DVC, and only then."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from processes import wait_until

# Stands for dvc: starts a stage's command as dvc does, and waits for it.
DVC = (
    "import os, subprocess, sys; from pathlib import Path;"
    "process = subprocess.Popen(sys.argv[2:], env={**os.environ, 'DVC_STAGE': 'variants@demo'});"
    "Path(sys.argv[1]).write_text(str(process.pid)); process.wait()"
)
STAGE = (
    "import sys, time; from pathlib import Path; from lowbit_vit.study.process import stop_with_dvc; stop_with_dvc();"
    "Path(sys.argv[1]).touch(); time.sleep(60)"
)
# Ignores SIGTERM, as Ray's start-up may.
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); import lowbit_vit.study.process as l; l._DVC_GRACE_S = 0.5; {STAGE}"


def start(tmp_path: Path, stage: str, *, shell: bool) -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """The stand-in for dvc and the stage's own process, which has started to watch."""
    ready, name = tmp_path / "ready", tmp_path / "stage"
    command = [sys.executable, "-c", stage, str(ready)]
    if shell:  # fish, for one, stays between
        command = ["sh", "-c", '"$@"; true', "sh", *command]
    dvc = subprocess.Popen([sys.executable, "-c", DVC, str(name), *command])
    wait_until(ready.exists)
    first = psutil.Process(int(name.read_text()))
    return dvc, first.children()[0] if shell else first


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("shell", [False, True], ids=["direct", "through a shell"])
def test_a_stage_ends_with_dvc(number: signal.Signals, shell: bool, tmp_path: Path) -> None:
    dvc, stage = start(tmp_path, STAGE, shell=shell)
    time.sleep(0.6)  # longer than two looks
    assert stage.is_running()
    os.kill(dvc.pid, number)
    dvc.wait()
    wait_until(lambda: not stage.is_running())


def test_a_stage_that_does_not_unwind_is_killed(tmp_path: Path) -> None:
    dvc, stage = start(tmp_path, DEAF, shell=False)
    dvc.kill()
    dvc.wait()
    wait_until(lambda: not stage.is_running())


def test_a_stage_whose_dvc_died_before_it_could_look_ends_at_once(tmp_path: Path) -> None:
    # In a session of its own it is what an orphan is: its parent is of another session.
    stage = [sys.executable, "-c", STAGE, str(tmp_path / "ready")]
    with subprocess.Popen(stage, env={**os.environ, "DVC_STAGE": "data@demo"}, start_new_session=True) as process:
        assert process.wait(timeout=30) == -signal.SIGTERM


def test_a_process_that_dvc_did_not_start_outlives_whoever_started_it(tmp_path: Path) -> None:
    starter = DVC.replace("DVC_STAGE", "SOMETHING_ELSE").replace("process.wait()", "")
    ready, name = tmp_path / "ready", tmp_path / "stage"
    environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"}
    subprocess.run([sys.executable, "-c", starter, str(name), sys.executable, "-c", STAGE, str(ready)], env=environment, check=True)
    process = psutil.Process(int(name.read_text()))
    try:
        wait_until(ready.exists)
        time.sleep(0.6)
        assert process.is_running()
    finally:
        process.kill()
