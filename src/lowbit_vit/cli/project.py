"""Verbs that say what is here: checkpoints, config, doctor."""

from typing import Annotated

import typer

from lowbit_vit.cli.options import HERE, ProfileName, Root, console, open_profile
from lowbit_vit.errors import DataError

app = typer.Typer()


@app.command(epilog="Example: lowbit-vit checkpoints demo")
def checkpoints(
    profile: Annotated[str | None, typer.Argument(metavar="[PROFILE]", help="a name in profiles/", show_default="all of them")] = None,
    root: Root = HERE,
) -> None:
    """List backbones and adapters with how they were made, Top-1 and sha256; say which are missing or damaged."""
    from lowbit_vit.analysis.checkpoints import list_checkpoints
    from lowbit_vit.report.columns import to_terminal
    from lowbit_vit.report.terminal import checkpoint_table

    names = [profile] if profile is not None else sorted(file.stem for file in (root / "profiles").glob("*.yaml"))
    found = [checkpoint for name in names for checkpoint in list_checkpoints(*open_profile(name, root))]
    console(piped_width=160).print(to_terminal(checkpoint_table(found)))
    damaged = [checkpoint for checkpoint in found if checkpoint.state == "damaged"]
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0].file}: {damaged[0].problem}{more}")


@app.command(epilog="Example: lowbit-vit config demo")
def config(profile: ProfileName, root: Root = HERE) -> None:
    """Print the resolved profile, every value with what it means."""
    from lowbit_vit.schema.config_docs import explain

    settings, _ = open_profile(profile, root)
    print(explain(settings), end="")


@app.command(epilog="Example: lowbit-vit doctor demo")
def doctor(profile: Annotated[str, typer.Argument(metavar="[PROFILE]")] = "demo", root: Root = HERE) -> None:
    """Say what this machine can run, arm by arm, and why not."""
    from lowbit_vit.report.columns import to_terminal
    from lowbit_vit.report.terminal import doctor_table

    settings, _ = open_profile(profile, root)
    console().print(to_terminal(doctor_table(settings)))
