"""Worker processes for decoding: fresh interpreters without torch, which exit when their parent does."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar, TypeVarTuple

from lowbit_vit.errors import DataError

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


def map_in_processes(function: Callable[[*Arguments], Result], calls: Iterable[tuple[*Arguments]], workers: int) -> Generator[Result]:
    """Yield `function(*call)` for each call, in order; closing the generator stops the processes.

    Args:
        function: at the top of a module that imports little, because each process imports it again.
        calls: the arguments.
        workers: processes, at least 1.

    Raises:
        DataError: a process was killed.
        Exception: what the function raises.
    """
    # A fork of a process that runs torch's threads can deadlock, so the interpreters are fresh.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_follow_parent)
    try:
        yield from pool.map(function, *zip(*calls, strict=True))
    except BrokenProcessPool as error:
        raise DataError(f"one of {workers} decoding processes was killed; free some memory or use fewer, and run again") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Ignore Ctrl-C, after which the parent stops its workers, and exit when the parent exits, SIGKILL included."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
