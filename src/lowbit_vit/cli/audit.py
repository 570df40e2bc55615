"""The verb audit: a published table against itself."""

from pathlib import Path
from typing import Annotated

import typer

from lowbit_vit.cli.options import AsJson, Markdown, console

app = typer.Typer()


@app.command(epilog="Example: lowbit-vit audit papers/NAME/table.csv --context papers/NAME/context.yaml")
def audit(
    file: Annotated[Path, typer.Argument(metavar="TABLE.csv", help="a published table of results, its cells as printed")],
    context: Annotated[
        Path | None, typer.Option("--context", help="YAML: what is known beside the table, see docs/audit.md", show_default="none")
    ] = None,
    every_row: Annotated[bool, typer.Option("--rows", help="one line a finding, not one a check")] = False,
    markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Check a published table of results against itself: arithmetic alone, no run.

    Exit code 1 if something in it is impossible in every reading, 0 if not.
    """
    from lowbit_vit.analysis.audit import audit as find
    from lowbit_vit.analysis.audit import load_context, load_table
    from lowbit_vit.errors import ConfigError
    from lowbit_vit.report.columns import to_markdown, to_terminal
    from lowbit_vit.report.findings import findings_json, findings_table

    if markdown and as_json:
        raise ConfigError("audit: --markdown and --json are two forms of one output; give one of them")
    table = load_table(file)
    findings = find(table, None if context is None else load_context(context))
    if as_json:
        print(findings_json(findings), end="")
    else:
        shown = findings_table(findings, table, title=f"{file}: the audit", every_row=every_row)
        if markdown:
            print(to_markdown(shown), end="")
        else:
            console().print(to_terminal(shown))
    if any(finding.hard for finding in findings):
        raise typer.Exit(1)
