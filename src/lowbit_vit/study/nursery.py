"""The process that the workers' fork servers are forked from: it imports what trials need once for a study, while Ray starts.

Each worker of a study has a fork server of its own (`forked`), for a trial must end with the worker that launched it. Were each to
import for itself, a machine with several cards would read and compile the same at the same time, after Ray's own start. So the
driver opens a nursery before it starts Ray. A worker connects to its socket; the connection is then the control socket of the
server that the nursery forks for it, and the nursery has no part in what follows.

Libraries read their environment when they are imported. So a server is forked only for who wants the environment that the nursery
was started with; what may differ is listed here. Whoever is refused, or finds no nursery, starts a server that imports for itself.

Usage: python -m lowbit_vit.study.nursery CONTROL LISTENING card|none (by `open_nursery` alone: numbers of open files)
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from lowbit_vit.study.fork_server import READY, Server, prepare

_PROGRAM = "lowbit_vit.study.nursery"
_REFUSED = b"refused"
# Seconds that the imports may take, and that a worker may take to say what it wants once it is connected.
_PATIENCE = 600.0
_GRACE = 5.0
_OOM_SCORE = Path("/proc/self/oom_score_adj")

# What a worker's environment may have of its own: what Ray tells its workers, and what is read when it is used, not in an import.
_MAY_DIFFER = (
    "CUDA_VISIBLE_DEVICES",  # Ray gives each worker its card; CUDA reads it when it starts
    "PYTHONBREAKPOINT",  # Ray's debugger
    "PL_DISABLE_FORK",  # Tune's, for PyTorch Lightning
    "SPT_NOENV",  # Ray's, for the titles of its own processes
)
_MAY_DIFFER_BY_PREFIX = ("RAY_", "TUNE_")


def _may_differ(name: str) -> bool:
    return name in _MAY_DIFFER or name.startswith(_MAY_DIFFER_BY_PREFIX)


# ---------------------------------------------------------------------------------------------- in the driver and the workers


@contextmanager
def open_nursery(place: Path, environment: Mapping[str, str], *, folder: Path, card: bool) -> Iterator[Path]:
    """Have one beside the block. It is not waited for; where it fails, the workers' own servers will say why.

    Args:
        place: where its socket is made: in a folder that is this user's alone.
        environment: of the trials, all of it.
        folder: that trials start in; Python looks for modules there, too.
        card: whether this machine has one.

    Yields:
        The place, for `take_server`.
    """
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with control:
        # Made here, so that whoever comes early waits. Only the nursery keeps it: who waits then learns of its end.
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(str(place))
            listening.listen(socket.SOMAXCONN)
            files = (theirs.fileno(), listening.fileno())
            process = subprocess.Popen(
                [sys.executable, "-m", _PROGRAM, *map(str, files), "card" if card else "none"],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=files,
                start_new_session=True,
            )
        try:
            yield place
        finally:
            process.kill()
            process.wait()


def take_server(place: Path, environment: Mapping[str, str]) -> tuple[socket.socket, int] | None:
    """Have a fork server for this process, with the cores of this thread; waits for the nursery's imports.

    Args:
        place: of the nursery's socket.
        environment: of the server and its forks.

    Returns:
        Its control socket and its pidfd; None if the nursery has another environment, or is gone.
    """
    request = {"environment": dict(environment), "cores": sorted(os.sched_getaffinity(0)), "oom_score": _OOM_SCORE.read_text()}
    with ExitStack() as closing:
        connection = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(str(place))
            # In a file, for an environment may be larger than a message.
            with os.fdopen(os.memfd_create("request"), "wb") as file:
                file.write(json.dumps(request).encode())
                file.flush()
                socket.send_fds(connection, [b"server"], [file.fileno()])
            _, files, _, _ = socket.recv_fds(connection, 16, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError:  # it is gone
            return None
        if not files:  # it refused, or it is gone
            return None
        connection.settimeout(None)
        closing.pop_all()
        return connection, files[0]


# ------------------------------------------------------------------------------------------------------------ the nursery


def main() -> None:
    """Import, and fork a server for each worker that asks, until the driver ends."""
    environment = dict(os.environ)  # as it is before the imports, some of which set something
    control, listening = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    for ours in (control, listening):
        ours.set_inheritable(False)
    left_out = prepare(control, card=sys.argv[3] == "card")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the servers; their workers have a pidfd
    while control not in (ready := select.select([control, listening], [], [])[0]):
        if listening in ready:
            connection, _ = listening.accept()
            with connection, suppress(OSError):  # a worker that has ended meanwhile, or does not say what it wants
                request = _receive(connection)
                if not _fits(request["environment"], environment):
                    connection.send(_REFUSED)
                elif os.fork() == 0:
                    control.close()
                    listening.close()
                    _become_server(connection, request, left_out)
    os._exit(0)


def _receive(connection: socket.socket) -> dict[str, Any]:
    """What a worker wants.

    Raises:
        OSError: it does not say so.
    """
    connection.settimeout(_GRACE)
    _, files, _, _ = socket.recv_fds(connection, 16, 1, socket.MSG_CMSG_CLOEXEC)
    if not files:
        raise ConnectionResetError
    connection.settimeout(None)
    with os.fdopen(files[0], "rb") as file:
        file.seek(0)  # it was just written
        request: dict[str, Any] = json.load(file)
    return request


def _fits(wanted: Mapping[str, str], given: Mapping[str, str]) -> bool:
    return all(_may_differ(name) or wanted.get(name) == given.get(name) for name in wanted.keys() | given.keys())


def _become_server(control: socket.socket, request: dict[str, Any], left_out: dict[str, str]) -> NoReturn:
    """In the fork: be what `fork_server` started by the worker would be once it has imported everything."""
    try:
        os.setsid()
        os.sched_setaffinity(0, request["cores"])
        with suppress(PermissionError):  # lower than ours; Ray's workers have the highest
            _OOM_SCORE.write_text(request["oom_score"])
        # What else is in the environment is the same in both, or the imports have set it, as they would have in the worker's server.
        wanted = request["environment"]
        for name in filter(_may_differ, wanted.keys() | os.environ.keys()):
            if name in wanted:
                os.environ[name] = wanted[name]
            else:
                del os.environ[name]
        pidfd = os.pidfd_open(os.getpid())
        socket.send_fds(control, [READY], [pidfd])
        os.close(pidfd)
        Server(control, left_out).run()
    except BaseException:  # noqa: BLE001  (it must not go on as a second nursery)
        traceback.print_exc()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
