"""What forks do in tests/study/test_process.py. The server imports this module in the place of `lowbit_vit.trial.forked`."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

IMPORTED = time.monotonic_ns()
# A test makes the imports slow: they end when this file is there; the server's process id is in `importing` beside it.
if "LOWBIT_VIT_TEST_WAIT" in os.environ:
    done = Path(os.environ["LOWBIT_VIT_TEST_WAIT"])
    done.with_name("importing").write_text(str(os.getpid()))
    while not done.exists():
        time.sleep(0.05)


def say(*words: str) -> int:
    """Write what this process is to stdout, and a line to stderr."""
    said = {
        "words": words,
        "folder": str(Path.cwd()),
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "imported": IMPORTED,
        "environment": dict(os.environ),
        "threads": [thread.name for thread in threading.enumerate()],
        "stdin": sys.stdin.read(),
        "child": repr(signal.getsignal(signal.SIGCHLD)),
        "interrupt": repr(signal.getsignal(signal.SIGINT)),
        "main": getattr(sys.modules["__main__"], "__file__", None),
    }
    sys.stdout.write(f"{json.dumps(said)}\n")
    sys.stdout.flush()
    sys.stderr.write("and to stderr\n")
    return 0


def end(code: str) -> object:
    """Return a value."""
    return eval(code)


def fail() -> int:
    """Raise."""
    raise RuntimeError("the matter")


def die(name: str) -> int:
    """End by a signal."""
    os.kill(os.getpid(), getattr(signal, name))
    return 0


def sleep() -> int:
    """Wait, with a process of its own that waits, too, whose id it writes to stdout."""
    helper = subprocess.Popen(["sleep", "60"])
    sys.stdout.write(f"{helper.pid}\n")
    sys.stdout.flush()
    time.sleep(60)
    return 0
