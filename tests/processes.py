"""Trials launched without Ray, and the processes that a test started, as the system sees them."""

import time
from collections.abc import Callable, Sequence

import psutil

from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.record import Record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.container import Starter
from lowbit_vit.study.launch import Verb, launch
from lowbit_vit.study.resume import put_record


def launched(
    trials: Sequence[Trial], workspace: Workspace, *, verb: Verb = "trial", threads: int = 1, command: Starter | None = None
) -> list[Record]:
    """Launch trials in this process and put their records in place."""
    finished = launch(trials, workspace, verb=verb, threads=threads, command=command)
    return [put_record(record, predictions, workspace) for record, predictions in finished]


def living_children() -> set[int]:
    """Process ids of this process's descendants that have not ended.

    Compare with those before a test: multiprocessing keeps a helper of its own until pytest ends.
    """
    return {child.pid for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE}


def wait_until(true: Callable[[], object], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
