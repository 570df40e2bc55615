"""One process at a time in a folder. The kernel drops the lock when its process ends, however it ends."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lowbit_vit.errors import Busy

log = logging.getLogger(__name__)

# A run that is stopped needs some seconds to end its processes; the next run may start before.
PATIENCE_S = 20.0
# The file in a temporary folder that its process has locked.
_OWNER = "owner"


@contextmanager
def hold(path: Path, *, named: str, doing: str) -> Iterator[None]:
    """Hold a lock while the block runs; another process that wants it waits for `PATIENCE_S` seconds.

    Args:
        path: the lock's file, which stays behind; not inside an output of DVC.
        named: what is held, for messages, such as reports/demo.
        doing: what for.

    Raises:
        Busy: another process still holds it; the message names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: held by %s; waiting %.0f s for it to end", named, _holder(path), PATIENCE_S)
        try:
            lock.acquire(timeout=PATIENCE_S)
        except Timeout:
            raise Busy(f"{named}: held by {_holder(path)}; wait for it or stop it") from None
    try:
        path.write_text(f"process {os.getpid()} ({doing})", encoding="utf-8")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() or "another process"


@contextmanager
def temporary_folder(parent: Path, *, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, gone afterwards; folders of the same prefix whose process was killed are removed first.

    Raises:
        OSError: it cannot be made.
    """
    for left in parent.glob(f"{prefix}*/{_OWNER}"):
        with suppress(OSError), FileLock(left, blocking=False):  # of another user, of a process that goes on, or just going
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    with FileLock(folder / f".{_OWNER}"):
        (folder / f".{_OWNER}").rename(folder / _OWNER)  # seen by others only when it is locked
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
