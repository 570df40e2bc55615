"""Verbs that a study starts in processes of their own: trial, scan."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lowbit_vit.cli.options import HERE, Root
from lowbit_vit.schema.workspace import Workspace

app = typer.Typer()


@app.command(epilog="Example: lowbit-vit trial trial.json --out reports/one")
def trial(
    file: Annotated[Path, typer.Argument(metavar="TRIAL.json", help="one resolved trial, as in a record's key trial")],
    out: Annotated[Path, typer.Option("--out", help="folder for the record and its predictions")],
    root: Root = HERE,
) -> None:
    """Run one trial in this process and write its record."""
    from lowbit_vit.schema.config import load_trial
    from lowbit_vit.study.process import stop_with_parent

    stop_with_parent()
    settings = load_trial(file)
    # After the file is read: this imports torch, and a file that is not there is said at once.
    from lowbit_vit.trial.run import record_trial

    record = record_trial(settings, Workspace(root=root.resolve(), profile=settings.profile), out)
    print(f"{record.trial_id}: {record.status}" + (f" ({record.reason})" if record.reason else ""))
    if record.status in ("failed", "oom", "timeout"):
        sys.exit(5)


@app.command(epilog="Example: lowbit-vit scan trials.json --out reports/scan")
def scan(
    file: Annotated[Path, typer.Argument(metavar="TRIALS.json", help="a JSON list of accuracy-only trials on one backbone")],
    out: Annotated[Path, typer.Option("--out", help="folder for the records and predictions")],
    root: Root = HERE,
) -> None:
    """Run many accuracy-only trials in this process on one resident model."""
    from lowbit_vit.schema.config import load_trials
    from lowbit_vit.study.process import stop_with_parent

    stop_with_parent()
    trials = load_trials(file)
    # After the file is read: this imports torch, and a file that is not there is said at once.
    from lowbit_vit.trial.scan import run_scan

    records = run_scan(trials, Workspace(root=root.resolve(), profile=trials[0].profile), out)
    print(f"{len(records)} trials done")
