"""A process ends with the process that started it: a trial with its study, a stage with DVC.

Otherwise it would hold the machine and write beside the next run.
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

# Set for the programs that `study.process` starts: a trial started by hand must not stop at the end of its stdin.
LIFELINE = "LOWBIT_VIT_LIFELINE"
# DVC sets it for the command of a stage.
_OF_DVC = "DVC_STAGE"
# Seconds between two looks at DVC, and to unwind in once it is gone. A look costs some 50 us.
_PERIOD = 0.25
_GRACE = 20.0


def stop_with_parent() -> None:
    """In a program that `study.process` started: kill our own process group when the other end of stdin is closed.

    Does nothing in a process that was started by hand.
    """
    if os.environ.pop(LIFELINE, None) is not None:
        kill_group_after(_read_stdin)


def kill_group_after(ended: Callable[[], object]) -> None:
    """Kill our own process group when the function returns, which a thread calls: nothing polls, and it works on every POSIX.

    PR_SET_PDEATHSIG would be Linux only, and fires when the *thread* that started us ends.
    """

    def watch() -> None:
        ended()
        # We lead a group of our own, so this reaches our children and no other process.
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
        while dvc is not None and _lives(dvc):
            time.sleep(_PERIOD)
        log.warning("dvc is gone: stopping")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def _starter() -> psutil.Process | None:
    """The DVC process above us, past the shell that DVC may have put between; None if it is gone already.

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
