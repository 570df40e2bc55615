"""Options that several verbs take, and how a verb opens its profile and prints a table."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.config import Profile, load_profile
from lowbit_vit.schema.workspace import Workspace

ProfileName = Annotated[str, typer.Argument(metavar="PROFILE", help="a name in profiles/, such as demo")]
Root = Annotated[Path, typer.Option("--root", help="the project's folder", show_default="this folder")]
Reports = Annotated[
    Path | None, typer.Option("--reports", help="folder with records/, such as a reference run", show_default="reports/PROFILE")
]
Markdown = Annotated[bool, typer.Option("--markdown", help="print as Markdown, for a README or an issue")]
AsJson = Annotated[bool, typer.Option("--json", help="print everything as JSON, with all numbers")]
HERE = Path()


def open_profile(name: str, root: Path, reports: Path | None = None) -> tuple[Profile, Workspace]:
    """Read a profile; its files lie below `root`, its records and report below `reports` where that is given.

    Raises:
        ConfigError: there is no such profile, or it is wrong.
        DataError: in a stage of DVC: its outputs cannot be kept.
    """
    if Path(name).name != name:
        raise ConfigError(f"PROFILE {name}: a path; give the name of a file in profiles/ without .yaml, and the project with --root")
    workspace = Workspace(root=root.resolve(), profile=name, elsewhere=None if reports is None else reports.resolve())
    profile = load_profile(workspace.profile_file)
    if "DVC_STAGE" in os.environ:
        workspace.require_outputs()
    return profile, workspace


def console(*, piped_width: int = 140) -> Console:
    """Return stdout as rich prints to it: as wide as the terminal, or `piped_width` characters where there is none."""
    return Console(width=None if sys.stdout.isatty() else piped_width)
