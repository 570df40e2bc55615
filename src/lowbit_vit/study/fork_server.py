"""The process that trials are forked from: it imports what a trial needs, once, and a trial then starts in milliseconds.

A trial must be a process of its own, and most of a short one is the import of torch, transformers and peft: seconds on any
machine, and on a card seconds that the card waits. `forked` starts this program once for a launching process and sends it one
request a trial; each fork has a session, a log, limits and, on a card, a CUDA context of its own, and then does what
`python -m lowbit_vit` does. Where a `nursery` has imported all this already, the launching process gets a fork of that instead,
which then serves as this program does.

What a fork cannot take over must not be here: no thread of Python's, no parallel region of OpenMP, no CUDA. bitsandbytes asks
for the card's capability when it is imported, and peft imports it; so on a machine with a card both are left to the trial, and
only what they import is here. So is transformers, where torchao is installed.

A trial runs the sources as they were when this process imported them. So does the hash in its record, which `trial.run` takes
in that very import.

Usage: python -m lowbit_vit.study.fork_server SOCKET card|none (by `forked` alone: SOCKET is an open file's number)
"""

import gc
import importlib
import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from lowbit_vit.errors import LowbitVitError
from lowbit_vit.schema.plan import FORMATS

READY = b"ready"
_OURS = (
    "lowbit_vit.cli",
    # Imported otherwise when a plan names a format and when its layers first run.
    *(f"lowbit_vit.model.formats.{name}" for name in FORMATS),
    "lowbit_vit.model.kernels.gemm",
    "lowbit_vit.model.kernels.nf4",
    "lowbit_vit.study.lifeline",
    "lowbit_vit.trial.run",
    "lowbit_vit.trial.scan",
)
# What trials import beside that, by themselves or through bitsandbytes and peft. A test holds them to asking nothing of CUDA.
_LIBRARIES = (
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torchvision",
    "accelerate",
    "transformers.modeling_utils",
)
_ASKING_CUDA = ("bitsandbytes", "peft")
# Imports torchao where it is installed, and torchao asks the card for its capability when it is imported (transformers 5.17, torchao 0.18).
_IMPORTING_TORCHAO = "transformers.modeling_utils"
# torch then looks for cards through NVML, which leaves CUDA alone: for a library whose newer version asks.
_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


def libraries(*, card: bool) -> tuple[str, ...]:
    """What is imported beside our own modules, in order."""
    if not card:
        return (*_LIBRARIES, *_ASKING_CUDA)
    return tuple(name for name in _LIBRARIES if name != _IMPORTING_TORCHAO or importlib.util.find_spec("torchao") is None)


def preload(*, card: bool) -> dict[str, str]:
    """Import what trials need.

    Args:
        card: whether this machine has one: then nothing may ask CUDA.

    Returns:
        Library -> why it could not be imported. It is the trial that needs it that must say so: others do without.
    """
    before = os.environ.get(_NVML)
    if card:
        os.environ[_NVML] = "1"
    for name in _OURS:
        importlib.import_module(name)
    left_out = {}
    for name in libraries(card=card):
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  (whatever a library's own code raises)
            left_out[name] = f"{type(error).__name__}: {error}"
    if card and before is None:
        del os.environ[_NVML]
    return left_out


def require_forkable() -> None:
    """Refuse to fork a process whose children could not work.

    Raises:
        LowbitVitError: CUDA was asked, or threads run.
    """
    torch: Any = sys.modules["torch"]
    if torch.cuda.is_initialized():
        raise LowbitVitError("the process that trials are forked from: an import initialized CUDA, which no fork of it could use")
    if threading.active_count() > 1:
        named = ", ".join(thread.name for thread in threading.enumerate())
        raise LowbitVitError(f"the process that trials are forked from: an import started threads, which no fork would have: {named}")


def require_cuda_untouched() -> None:
    """As `require_forkable`, for what torch says only in a fork: whether one may use CUDA.

    Raises:
        LowbitVitError: it may not.
    """
    torch: Any = sys.modules["torch"]
    pid = os.fork()
    if pid == 0:
        os._exit(int(torch.cuda._is_in_bad_fork()))  # noqa: SLF001  (there is no public way to ask)
    if os.waitpid(pid, 0)[1]:
        raise LowbitVitError("the process that trials are forked from: an import asked CUDA for its cards, so no fork could use one")


def prepare(control: socket.socket, *, card: bool) -> dict[str, str]:
    """Make this process one to fork, or end it with a line on why it cannot be; it ends, too, when the other end of the socket does.

    Returns:
        As `preload`.
    """
    with _ending_with(control):
        left_out = preload(card=card)
    try:
        require_forkable()
        if card:
            require_cuda_untouched()
    except LowbitVitError as error:
        sys.exit(str(error))
    os.chdir("/")  # the folder that it started in may be a trial's, which is removed
    gc.collect()
    gc.freeze()  # a collection in a fork would otherwise write to, and so copy, every page of what was imported
    return left_out


@contextmanager
def _ending_with(control: socket.socket) -> Iterator[None]:
    """End the process at once if the launching process ends inside the block, which takes seconds."""
    woken, waker = os.pipe()

    def watch() -> None:
        # Nothing is asked before we are ready: what can be read is the end.
        if control.fileno() in select.select([control.fileno(), woken], [], [])[0]:
            os._exit(0)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(waker)
        thread.join()
        os.close(woken)


# ------------------------------------------------------------------------------------------------------------- the server


def main() -> None:
    """Import, say so, and fork until nobody is there to ask for more."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    left_out = prepare(control, card=sys.argv[2] == "card")
    control.send(READY)
    Server(control, left_out).run()
    os._exit(0)  # nothing of what was imported was used


class Server:
    """Forks on request and says how each fork ended, on the pipe that came with its request."""

    def __init__(self, control: socket.socket, left_out: dict[str, str]) -> None:
        self._control = control
        self._left_out = left_out
        self._answers: dict[int, int] = {}  # pid of a living fork -> where its end is to be written
        self._woken, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def run(self) -> None:
        """Until the launching process closes its socket, or ends, and every fork has ended."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # else it is ignored, and nothing is written to the pipe
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        wanted = True
        while wanted or self._answers:
            ready = select.select([self._woken, *([self._control.fileno()] if wanted else [])], [], [])[0]
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._control.fileno() in ready:
                message, files, _, _ = socket.recv_fds(self._control, 65536, 3)
                wanted = bool(message)
                if wanted:
                    self._fork(json.loads(message), files)

    def _fork(self, request: dict[str, Any], files: list[int]) -> None:
        lifeline, output, answer = files
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._become_trial(request, lifeline=lifeline, output=output, answer=answer)
        os.close(lifeline)
        os.close(output)
        self._answers[pid] = answer

    def _reap(self) -> None:
        for pid, answer in list(self._answers.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                with suppress(BrokenPipeError):  # nobody wants to know any more
                    os.write(answer, b"ended %d\n" % os.waitstatus_to_exitcode(status))
                os.close(answer)
                del self._answers[pid]

    def _become_trial(self, request: dict[str, Any], *, lifeline: int, output: int, answer: int) -> NoReturn:
        """In the fork: be what `python -m lowbit_vit` in a session of its own would be, and end as it would."""
        code = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for source, target in ((lifeline, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            os.write(answer, b"began %d\n" % os.getpid())
            # Whoever holds the end of a pipe keeps the other side waiting: ours and those of the other forks.
            self._control.close()
            for file in (lifeline, output, answer, self._woken, self._waker, *self._answers.values()):
                os.close(file)
            os.chdir(request["folder"])
            for name, reason in self._left_out.items():
                sys.stderr.write(f"not imported beforehand: {name} ({reason})\n")
            code = _run(request["arguments"])
        except BaseException:  # noqa: BLE001  (what Python itself does at the top)
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # a full disk: there is nobody left to tell
                    stream.flush()
            os._exit(code)


def _run(arguments: list[str]) -> int:
    """Run `python -m lowbit_vit ARGUMENTS` here; its exit code."""
    sys.argv = ["lowbit-vit", *arguments]
    try:
        runpy.run_module("lowbit_vit", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    return 0


if __name__ == "__main__":
    main()
