"""Start the process of a trial: a fork of a server that has imported everything, or a program.

The server is multiprocessing's forkserver with `trial.forked` preloaded: it starts with the first trial of a launching process,
imports for some 12 s, and ends with that process; a fork then takes 0.05 s. A server that is importing when the launching process
is killed ends when its imports are done.

Either process has a session and process group of its own, its output goes to a log file, and it ends when its launching process
ends, however that ended: a fork watches the launching process, a program its stdin (`lifeline`).
"""

import multiprocessing
import multiprocessing.forkserver
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lowbit_vit.errors import LowbitVitError
from lowbit_vit.study.lifeline import LIFELINE, kill_group_after

PRELOAD = "lowbit_vit.trial.forked"
# By name, for importing it imports torch, which a launching process does not need.
RUN = f"{PRELOAD}:run"
# The exit code that multiprocessing gives a fork whose server ended first.
SERVER_LOST = 255
# Seconds for a killed server to be gone.
_GRACE = 0.2


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
                time.sleep(_GRACE)
                continue
            return process
    raise LowbitVitError(
        f"the process that trials are forked from ended twice before it could fork: is there enough memory? python -c 'import {PRELOAD}'"
        " says what fails"
    )


def start_program(command: Sequence[str], *, folder: Path, output: Path, variables: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start a program that ends when its stdin is closed (`lifeline.stop_with_parent`).

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
    log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    kill_group_after(_join_launching_process)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        sys.exit(pkgutil.resolve_name(function)(*arguments))
    except LowbitVitError as error:
        sys.stderr.write(f"lowbit-vit: {error}\n")
        sys.exit(error.exit_code)


def _join_launching_process() -> None:
    if (launching := multiprocessing.parent_process()) is not None:
        launching.join()
