"""The verb audit: a published table against itself."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lowbit_vit.cli.options import AsJson, Markdown, console

app = typer.Typer()


@app.command(epilog="Example: lowbit-vit audit papers/NAME/table.csv --context papers/NAME/context.yaml")
def audit(
    files: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="published tables, cells as printed: CSV, Markdown, LaTeX, HTML")],
    context: Annotated[
        Path | None, typer.Option("--context", help="YAML: what is known beside the table, see docs/audit.md", show_default="none")
    ] = None,
    decimal: Annotated[
        Literal["point", "comma"] | None, typer.Option("--decimal", help="what parts decimals", show_default="told by the numbers")
    ] = None,
    every_row: Annotated[bool, typer.Option("--rows", help="one line a finding, not one a check")] = False,
    markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Check published tables of results against themselves and each other: arithmetic alone, no run.

    Exit code 1 if something in one is impossible in every reading, 0 if not.
    """
    from lowbit_vit.analysis.audit import audit as find
    from lowbit_vit.analysis.audit import load_context, load_tables
    from lowbit_vit.errors import ConfigError
    from lowbit_vit.report.columns import escape_markdown, to_markdown, to_terminal
    from lowbit_vit.report.findings import findings_json, findings_table

    if markdown and as_json:
        raise ConfigError("audit: --markdown and --json are two forms of one output; give one of them")
    tables = [table for file in files for table in load_tables(file, decimal=decimal)]
    known = [None] * len(tables) if context is None else load_context(context).parted(tables)
    findings = [find(table, known[at], before=tables[:at]) for at, table in enumerate(tables)]
    if as_json:
        print(findings_json({table.name: found for table, found in zip(tables, findings, strict=True)}), end="")
    else:
        for table, found in zip(tables, findings, strict=True):
            shown = findings_table(found, table, title=f"{table.name}: the audit", every_row=every_row)
            if not markdown:
                console().print(to_terminal(shown))
            elif len(tables) == 1:
                print(to_markdown(shown), end="")
            else:
                print(f"**{escape_markdown(table.name)}**\n\n{to_markdown(shown)}")
    if any(finding.hard for found in findings for finding in found):
        raise typer.Exit(1)
