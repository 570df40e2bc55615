"""Start trials as forks of one process that has imported everything (`fork_server`), and see each to its end.

One such process belongs to each process that launches trials, from its first launch on, and ends with it: a fork of the study's
`nursery` where there is one for us, else one that imports for itself. The forks' lifelines (`lifeline`) are ours: a fork ends when
we do, whatever became of the process between us.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.machine import visible_gpu
from lowbit_vit.study.nursery import take_server

_PROGRAM = "lowbit_vit.study.fork_server"
# Seconds for the imports, which a busy disk can make slow, and for a killed fork to be gone.
_PATIENCE = 600.0
_GRACE = 5.0


class ForkedProcess:
    """A fork that somebody else waits for: as much of `subprocess.Popen` as `launch` uses.

    Attributes:
        pid: its process id, which is its group's and its session's, too.
        stdin: its lifeline.
        returncode: as of Popen; None while it runs.
        orphaned: whether the process that it was forked from ended before it; then it was killed.
    """

    def __init__(self, pid: int, *, lifeline: int, answers: int) -> None:
        self.pid = pid
        self.stdin = os.fdopen(lifeline, "wb", buffering=0)
        self.returncode: int | None = None
        self.orphaned = False
        self._answers = answers

    def poll(self) -> int | None:
        """The exit code, or the negative number of the signal that ended it; None while it runs."""
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """As `poll`, at its end."""
        if self.returncode is None:
            answer = _answer(self._answers, "ended")
            if answer is None:
                self._end_orphan()
            self.returncode = -signal.SIGKILL if answer is None else answer
            os.close(self._answers)
        return self.returncode

    def _end_orphan(self) -> None:
        """How it ends cannot be known any more, so let it be known how: nobody would tell it from one that works."""
        self.orphaned = True
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with suppress(psutil.Error):  # it is gone, or dead and nobody buries it
            psutil.Process(self.pid).wait(_GRACE)


def start_forked(arguments: Sequence[str], *, folder: Path, output: int, environment: Mapping[str, str]) -> ForkedProcess:
    """Start what `python -m lowbit_vit ARGUMENTS` is in a process, session and group of its own.

    The first call takes as long as the imports, or what is left of the nursery's; so does one with another environment, since
    libraries read theirs when they are imported, and it waits for the forks of the environment before.

    Args:
        arguments: of the command line.
        folder: that it starts in.
        output: an open file for its stdout and stderr.
        environment: all of it.

    Raises:
        LowbitVitError: it could not be started.
    """
    with _lock:
        for _ in range(2):  # an idle server may have been killed: nothing was lost with it
            process = _server_for(dict(environment), folder).start(arguments, folder=folder, output=output)
            if process is not None:
                return process
    raise LowbitVitError("the process that trials are forked from was killed twice before it could fork; is there enough memory?")


class _Adopted:
    """A server that the nursery forked, and buries: as much of `subprocess.Popen` as `_ForkServer` uses.

    A number could be another process's by the time that it is used; a file descriptor of the process (pidfd) is nobody else's.
    """

    def __init__(self, pidfd: int) -> None:
        self._pidfd: int | None = pidfd

    def poll(self) -> int | None:
        """Zero once it has ended, however that was; None while it runs."""
        if self._pidfd is not None and select.select([self._pidfd], [], [], 0)[0]:
            self.wait()
        return 0 if self._pidfd is None else None

    def wait(self) -> None:
        """Until it has ended."""
        if self._pidfd is not None:
            select.select([self._pidfd], [], [])
            os.close(self._pidfd)
            self._pidfd = None

    def kill(self) -> None:
        """End it now."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class _ForkServer:
    """The process, as we see it."""

    def __init__(self, environment: dict[str, str], control: socket.socket, process: subprocess.Popen[bytes] | _Adopted) -> None:
        self.environment = environment
        self._control = control
        self._process = process

    def start(self, arguments: Sequence[str], *, folder: Path, output: int) -> ForkedProcess | None:
        """Fork; None if there is no such process any more."""
        request = json.dumps({"arguments": list(arguments), "folder": str(folder)}).encode()
        theirs, lifeline = os.pipe()
        answers, answer = os.pipe()
        try:
            socket.send_fds(self._control, [request], [theirs, output, answer])
            sent = True
        except (BrokenPipeError, ConnectionResetError):
            sent = False
        finally:
            os.close(theirs)
            os.close(answer)
        pid = None
        try:
            pid = _answer(answers, "began") if sent else None
        finally:
            if pid is None:
                os.close(answers)
                os.close(lifeline)
        if pid is None:
            self.kill()
            return None
        return ForkedProcess(pid, lifeline=lifeline, answers=answers)

    def lives(self) -> bool:
        """Whether it was running just now."""
        return self._process.poll() is None

    def close(self) -> None:
        """Let it go, and wait for the forks that it still has."""
        self._control.close()
        self._process.wait()

    def kill(self) -> None:
        """End it now."""
        self._control.close()
        self._process.kill()
        self._process.wait()


def _from_nursery(environment: dict[str, str]) -> _ForkServer | None:
    """One that has imported everything already; None if there is none for this environment."""
    taken = take_server(_nurseries[0], environment) if _nurseries else None
    if taken is None:
        return None
    control, pidfd = taken
    return _ForkServer(environment, control, _Adopted(pidfd))


def _of_our_own(environment: dict[str, str], folder: Path) -> _ForkServer:
    """Start one and wait for its imports.

    Raises:
        LowbitVitError: they failed.
    """
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, str(theirs.fileno()), "card" if visible_gpu() else "none"],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )
        theirs.close()
        server = _ForkServer(environment, control, process)
        try:
            control.settimeout(_PATIENCE)
            ready = control.recv(16)
            control.settimeout(None)
        except BaseException as error:
            server.kill()
            if not isinstance(error, TimeoutError):
                raise
            ready = b""
        if not ready:
            server.kill()
            said.seek(0)
            raise LowbitVitError(f"the process that trials are forked from did not start: {_last_line(said.read())}")
    return server


_lock = threading.Lock()
_servers: list[_ForkServer] = []  # one, or none yet
_nurseries: list[Path] = []  # the same


def take_servers_from(nursery: Path | None) -> None:
    """Say where the next servers of this process are forked.

    Args:
        nursery: the socket of the study's; None: each imports for itself.
    """
    with _lock:
        _nurseries[:] = [] if nursery is None else [nursery]


def _server_for(environment: dict[str, str], folder: Path) -> _ForkServer:
    if _servers and not (_servers[0].environment == environment and _servers[0].lives()):
        _servers.pop().close()
    if not _servers:
        _servers.append(_from_nursery(environment) or _of_our_own(environment, folder))
    return _servers[0]


@atexit.register
def stop_server() -> None:
    """End the process that this one's trials are forked from; the next launch starts another."""
    while _servers:
        _servers.pop().kill()


def _answer(answers: int, word: str) -> int | None:
    """The number after the word in the next line; None where the other end was closed without a word.

    Raises:
        LowbitVitError: it is another word: a fork was killed before it was a trial.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(answers, 1)  # one line alone: the next may be there already
        if not byte:
            return None
        line += byte
    said, number = line.decode().split()
    if said != word:
        raise LowbitVitError("a fork for a trial was killed before the trial began; run the same command again")
    return int(number)


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
