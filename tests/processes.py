"""The processes that a test started, as the system sees them."""

import psutil


def living_children() -> set[int]:
    """Process ids of this process's descendants that have not ended.

    Compare with those before a test: multiprocessing keeps a helper of its own until pytest ends.
    """
    return {child.pid for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE}
