"""The command line: one verb for each DVC stage, and a few to look with; a module for each group of verbs.

Each verb imports what it needs inside itself, so that `lowbit-vit report` runs where there is no torch and `--help` is
quick. Results go to stdout, logs and progress to stderr. Exit codes: 0 done; 1 `check` found a miss, or a defect of ours
(which shows its traceback); 2 a profile, plan or option is wrong; 3 data, checkpoint or record is missing or damaged; 4 this
machine cannot run it; 5 some trials failed; 6 another run holds the folder or the device; 130 interrupted.
"""

import logging
import os
import sys
from pathlib import Path

import typer
from rich.console import Console
from rich.logging import RichHandler

from lowbit_vit.cli import audit, compare, plans, project, report, studies
from lowbit_vit.errors import DataError, LowbitVitError, Unavailable

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
for group in (project, studies, plans, report, audit, compare):
    app.add_typer(group.app)


def main() -> None:
    """Run the command line; an error meant for the user is one line on stderr and its class's exit code."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
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
