"""One process at a time in a folder. The lock is the kernel's: it is gone with the process, however that ended."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lowbit_vit.errors import Busy

log = logging.getLogger(__name__)

# A run that was told to stop needs some seconds to end what it started; the next one may be there already.
PATIENCE_S = 20.0
_PERIOD_S = 0.2


@contextmanager
def hold(lock: Path, *, named: str, doing: str) -> Iterator[None]:
    """Hold what `lock` stands for; whoever comes meanwhile waits `PATIENCE_S` seconds.

    Args:
        lock: the lock's file, which stays behind; not inside an output of DVC.
        named: what is held, for messages, such as reports/demo.
        doing: what for.

    Raises:
        Busy: another process still holds it; the message names that process.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        deadline = time.monotonic() + PATIENCE_S
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                if time.monotonic() > deadline:
                    raise Busy(f"{named}: held by {holder}; wait for it or stop it") from None
                if not told:
                    log.info("%s: held by %s; waiting %.0f s for it to end", named, holder, PATIENCE_S)
                    told = True
                time.sleep(_PERIOD_S)
        file.truncate(0)
        file.write(f"process {os.getpid()} ({doing})")
        file.flush()
        yield
