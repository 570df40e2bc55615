"""The process of a trial: its start, and its end with the process that started it.

A trial is a fork of a server that has imported everything, or a program. The server is multiprocessing's forkserver with
`trial.forked` preloaded: it starts with the first trial of a launching process, imports for some 12 s, and ends with that process; a
fork then takes 0.05 s. A server that is importing when the launching process is killed ends when its imports are done.

Either process has a session and process group of its own, its output goes to a log file, and it ends when its launching process
ends, however that ended: a fork watches the launching process, a program its stdin. So does a stage end with DVC. Otherwise it would
hold the machine and write beside the next run.
"""

import logging
import multiprocessing
import multiprocessing.forkserver
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from lowbit_vit.errors import LowbitVitError

log = logging.getLogger(__name__)

PRELOAD = "lowbit_vit.trial.forked"
# By name, for importing it imports torch, which a launching process does not need.
RUN = f"{PRELOAD}:run"
# The exit code that multiprocessing gives a fork whose server ended first.
SERVER_LOST = 255
# Seconds for a killed server to be gone.
_SERVER_GRACE_S = 0.2
# Set for the programs that are started here: a trial started by hand must not stop at the end of its stdin.
LIFELINE = "LOWBIT_VIT_LIFELINE"
# DVC sets it for the command of a stage.
_OF_DVC = "DVC_STAGE"
# Seconds between two looks at DVC, and to unwind in once it is gone. A look costs some 50 us.
_DVC_PERIOD_S = 0.25
_DVC_GRACE_S = 20.0


Process = BaseProcess | subprocess.Popen[bytes]


def start_fork(function: str, arguments: Sequence[str], *, folder: Path, output: Path, variables: dict[str, str]) -> BaseProcess:
    """Start a fork that calls a function and ends with the exit code that it returns.

    The first call takes as long as the imports.

    Args:
        function: `package.module:name`, such as `RUN`.
        arguments: of the function.
        folder: that it starts in.
        output: file that its stdout and stderr are appended to.
        variables: set in its environment, beside those of this process.

    Raises:
        LowbitVitError: it could not be started.
    """
    context = multiprocessing.get_context("forkserver")
    work = (function, tuple(arguments), str(folder), str(output), {**os.environ, **variables})
    with _without_main_script():
        for _ in range(2):  # an idle server may have been killed: nothing was lost with it
            process = context.Process(target=_run, args=work)
            try:
                _start_server(variables)
                process.start()
            except (EOFError, OSError):  # it ended before it could fork
                time.sleep(_SERVER_GRACE_S)
                continue
            return process
    raise LowbitVitError(
        f"the process that trials are forked from ended twice before it could fork: is there enough memory? python -c 'import {PRELOAD}'"
        " says what fails"
    )


def start_program(command: Sequence[str], *, folder: Path, output: Path, variables: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a program that ends when its stdin is closed (`stop_with_parent`).

    Args:
        command: the program and its arguments.
        folder: as of `start_fork`, as the others.
        output: file.
        variables: of the environment.

    Raises:
        OSError: it could not be started.
    """
    with output.open("ab") as stream:
        return subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **variables, LIFELINE: "stdin"},
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


def exit_code(process: Process) -> int | None:
    """The exit code, or the negative number of the signal that ended the process; None while it runs."""
    return process.exitcode if isinstance(process, BaseProcess) else process.poll()


def kill_group(process: Process) -> None:
    """Leave nothing of a process behind: itself, and everything that it started in its group."""
    process.kill()  # before the group: a fork that has just started may have none yet
    if process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):  # the usual case: the group is empty
            os.killpg(process.pid, signal.SIGKILL)
    if isinstance(process, BaseProcess):
        process.join()
    else:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _start_server(variables: dict[str, str]) -> None:
    """Start the server if it does not run, with the variables: libraries read some when they are imported."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        multiprocessing.set_forkserver_preload([PRELOAD])
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


@contextmanager
def _without_main_script() -> Iterator[None]:
    """Hide this process's main script: multiprocessing would import it in each fork (in a Ray worker: Ray's default_worker.py)."""
    main = vars(sys.modules["__main__"])
    before: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(before)


def _run(function: str, arguments: tuple[str, ...], folder: str, output: str, environment: dict[str, str]) -> None:
    """In the fork."""
    os.setsid()
    target = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)
    if (launching := multiprocessing.parent_process()) is not None:  # always, in a fork
        _kill_group_after(launching.join)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        sys.exit(pkgutil.resolve_name(function)(*arguments))
    except LowbitVitError as error:
        sys.stderr.write(f"lowbit-vit: {error}\n")
        sys.exit(error.exit_code)


# ----------------------------------------------------------------------------------------- the end with the starting process


def stop_with_parent() -> None:
    """In a program of `start_program`: kill the own process group when the other end of stdin is closed.

    Does nothing in a process that was started by hand.
    """
    if os.environ.pop(LIFELINE, None) is not None:
        _kill_group_after(_read_stdin)


def _kill_group_after(ended: Callable[[], object]) -> None:
    """Kill the own process group when the function returns, which a thread calls: nothing polls, and it works on every POSIX.

    PR_SET_PDEATHSIG would be Linux only, and fires when the *thread* that started this process ends.
    """

    def watch() -> None:
        ended()
        # This process leads a group of its own, so the signal reaches its children and no other process.
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def _read_stdin() -> None:
    while os.read(0, 1):
        pass


def stop_with_dvc() -> None:
    """In the command of a DVC stage: end as on SIGTERM when DVC is gone.

    Ctrl-C reaches DVC's whole process group, but a kill may reach DVC alone, and DVC passes nothing on. Does nothing in a
    process that DVC did not start.
    """
    if _OF_DVC not in os.environ:
        return
    dvc = _starter()

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            while dvc is not None and dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
                time.sleep(_DVC_PERIOD_S)
        log.warning("dvc is gone: stopping")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_DVC_GRACE_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def _starter() -> psutil.Process | None:
    """The DVC process above this one, past the shell that DVC may have put between; None if it is gone already.

    The process that adopts orphans is of another session: DVC leaves its commands in its own.
    """
    ahead = psutil.Process().parent()
    while ahead is not None and _is_of_a_stage(ahead):
        ahead = ahead.parent()
    try:
        return ahead if ahead is not None and os.getsid(ahead.pid) == os.getsid(0) else None
    except OSError:  # it has just ended
        return None


def _is_of_a_stage(process: psutil.Process) -> bool:
    try:
        return _OF_DVC in process.environ()
    except psutil.Error:  # of another user, or gone
        return False
