"""A process that was started for somebody ends with them: a trial with its study, a stage with DVC.

What outlived its starter would hold the machine and write beside the next run.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

log = logging.getLogger(__name__)

# Set for the processes that `launch` starts: a trial started by hand must not stop at the end of its stdin.
LIFELINE = "LOWBIT_VIT_LIFELINE"
# DVC sets it for the command of a stage.
_OF_DVC = "DVC_STAGE"
# Seconds between two looks at DVC, and to unwind in once it is gone. A look costs some 50 us.
_PERIOD = 0.25
_GRACE = 20.0


def stop_with_parent() -> None:
    """In a process that `launch` started: watch stdin and kill our own process group when its other end is closed.

    Does nothing in a process that somebody started by hand. A read in a thread needs no polling and works on every POSIX;
    PR_SET_PDEATHSIG would be Linux only, and fires when the *thread* that started us ends.
    """
    if os.environ.pop(LIFELINE, None) is None:
        return

    def watch() -> None:
        while os.read(0, 1):
            pass
        # launch made us the leader of a group of our own, so this reaches our children and nobody else.
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def stop_with_dvc() -> None:
    """In the command of a DVC stage: end as on SIGTERM when DVC is gone.

    Ctrl-C reaches DVC's whole process group, but a kill may reach DVC alone, and DVC passes nothing on. Does nothing in a
    process that DVC did not start.
    """
    if _OF_DVC not in os.environ or LIFELINE in os.environ:
        return
    dvc = _starter()

    def watch() -> None:
        while dvc is not None and _lives(dvc):
            time.sleep(_PERIOD)
        log.warning("dvc is gone: stopping")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def _starter() -> psutil.Process | None:
    """The DVC process above us, past the shell that DVC may have put between; None if it is gone already.

    Whoever adopts orphans is of another session: DVC leaves its commands in its own.
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


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def unwinding_on_sigterm() -> Iterator[Callable[[], None]]:
    """Let SIGTERM unwind as Ctrl-C does, so that processes and folders are cleared, from when the yielded function is called.

    Ray's init sets a handler that ends the process on the spot: call it after that. The handler before is put back at the end.
    """

    def prepare() -> None:
        signal.signal(signal.SIGTERM, _interrupt)

    before = signal.getsignal(signal.SIGTERM)
    try:
        yield prepare
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C: the one exception that Ray passes on from everywhere."""
    raise KeyboardInterrupt
