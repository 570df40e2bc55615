"""What takes long to make is made once for all of pytest's processes."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest


def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that whoever comes first makes; the others wait. Not to be changed.

    Args:
        tmp_path_factory: pytest's.
        worker_id: pytest-xdist's.
        name: of the folder.
        make: gets the folder, which does not exist. If it raises, the next one begins anew in another folder.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent  # xdist's processes share the parent
    done = shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder = tmp_path_factory.mktemp(name) / name
            make(folder)
            done.write_text(str(folder))
    return Path(done.read_text())
