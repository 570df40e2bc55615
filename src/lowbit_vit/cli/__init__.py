"""The command line: one verb for each DVC stage, and a few to look with; a module for each group of verbs.

Each verb imports what it needs inside itself, so that `lowbit-vit report` runs where there is no torch and `--help` is
quick. Results go to stdout, logs and progress to stderr. Exit codes: 0 done; 1 `check` found a miss, or a defect of ours
(which shows its traceback); 2 a profile, plan or option is wrong; 3 data, checkpoint or record is missing or damaged; 4 this
machine cannot run it; 5 some trials failed; 6 another run holds the folder or the device; 130 interrupted.
"""

import io
import logging
import os
import sys
from pathlib import Path
from typing import Any, TextIO, cast

import typer
from rich.console import Console
from rich.logging import RichHandler

from lowbit_vit.cli import plans, project, report, studies
from lowbit_vit.errors import DataError, LowbitVitError, Unavailable, escape_controls

app = typer.Typer(
    name="lowbit-vit",
    help="What low-bit weights and fused attention really cost and give in Vision Transformers.",
    epilog=(
        "Exit codes: 0 done · 1 check missed, audit found what cannot be, or defect · 2 wrong profile or option · "
        "3 missing or damaged data · 4 this machine cannot run it · 5 some trials failed · 6 busy · 130 interrupted"
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (project, studies, plans, report):
    app.add_typer(group.app)


class _Escaping:
    """A text stream that prints no name as a command to the terminal, and that no name stops.

    Attributes:
        rich_proxied_file: where rich prints to, whose own commands are no names (`rich.file_proxy`).
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        return self.rich_proxied_file.write(escape_controls(text, keep="\n\t"))


class _EscapingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(super().format(record), keep="\n")


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record is of this package; what libraries advise is about their own use, and their errors are raised."""
    return record.name.startswith("lowbit_vit")


def main() -> None:
    """Run the command line; an error meant for the user is one line on stderr and its class's exit code."""
    sys.stdout, sys.stderr = (cast("TextIO", _Escaping(stream)) for stream in (sys.stdout, sys.stderr))
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
    handler.setFormatter(_EscapingFormatter("%(message)s"))
    handler.addFilter(_is_ours)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(capture=True)
    if "DVC_STAGE" in os.environ:
        from lowbit_vit.study.process import stop_with_dvc

        stop_with_dvc()
    try:
        app()
    except LowbitVitError as error:
        print(f"lowbit-vit: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a place: a folder that cannot be made, a file that cannot be opened
        if error.filename is None:
            raise
        print(f"lowbit-vit: {error.filename}: {error.strerror}; choose another place, or mend this one", file=sys.stderr)
        sys.exit(DataError.exit_code)
    except RuntimeError:
        try:
            Path.home()
        except RuntimeError:  # libraries keep caches there
            print(f"lowbit-vit: user {os.getuid()} has no home folder; set HOME to a folder that can be written to", file=sys.stderr)
            sys.exit(Unavailable.exit_code)
        raise
