"""The command line called where the tests run: starting an interpreter that imports everything again takes seconds a call.

The output, the exit code and the folder are those of a process; a file of tests that uses this starts a real one, too.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import patch

from lowbit_vit.cli import main

ROOT = Path(__file__).parents[1]


class _Terminal(TextIOWrapper):
    def isatty(self) -> bool:
        return True


def call(*arguments: str, cwd: Path = ROOT, encoding: str = "utf-8", terminal: bool = False) -> CompletedProcess[str]:
    """Run `lowbit-vit ARGUMENTS` in this process; what is no error for people is raised here as it is.

    Args:
        arguments: of the command line.
        cwd: folder to run in.
        encoding: of stdout.
        terminal: whether stdout says that it is one.
    """
    stdout = _Terminal if terminal else TextIOWrapper
    out, err, code = stdout(BytesIO(), encoding=encoding), TextIOWrapper(BytesIO(), encoding="utf-8"), 0
    with chdir(cwd), redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["lowbit-vit", *arguments]), _fresh_logging():
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    for stream in (out, err):
        stream.seek(0)
    return CompletedProcess(arguments, code, out.read(), err.read())


@contextmanager
def _fresh_logging() -> Iterator[None]:
    """As in a new process: no handlers but those that `main` adds, so that a log line would show on stderr."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield
    finally:
        logging.captureWarnings(capture=False)
        root.handlers[:] = handlers
        root.setLevel(level)
