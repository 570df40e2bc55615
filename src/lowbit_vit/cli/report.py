"""Verbs that read records or published tables: report, pack, show, claims, artifact, compare, check, audit. None needs torch."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lowbit_vit.cli.options import HERE, AsJson, Markdown, ProfileName, Reports, Root, console, open_profile
from lowbit_vit.errors import ConfigError, DataError, OutOfTolerance

app = typer.Typer()


@app.command(epilog="Example: lowbit-vit report demo")
def report(profile: ProfileName, root: Root = HERE, reports: Reports = None) -> None:
    """Build tables, figures and report.html from the records alone. Needs no torch."""
    from lowbit_vit.report.page import build_report

    settings, workspace = open_profile(profile, root, reports)
    print(build_report(settings, workspace))


@app.command(epilog="Example: lowbit-vit pack demo --to reports/reference/mine")
def pack(
    profile: ProfileName,
    *,
    to: Annotated[Path, typer.Option("--to", help="folder of the reference run; the files go to records/ in it")],
    add: Annotated[bool, typer.Option("--add", help="keep the cells that are packed there and are not among these records")] = False,
    root: Root = HERE,
    reports: Reports = None,
) -> None:
    """Write all records and per-image predictions as Parquet files, which are read like the records. Needs no torch."""
    from lowbit_vit.analysis.packing import pack_records

    settings, workspace = open_profile(profile, root, reports)
    for path in pack_records(settings, workspace, to, add=add):
        print(f"{path}: {path.stat().st_size:,} bytes")


@app.command(epilog="Example: lowbit-vit show demo")
def show(
    profile: ProfileName,
    root: Root = HERE,
    reports: Reports = None,
    markdown: Markdown = False,
) -> None:
    """Print the result table and where the page is."""
    from lowbit_vit.analysis.results import load_results
    from lowbit_vit.report.columns import to_markdown, to_terminal
    from lowbit_vit.report.tables import result_table_of

    settings, workspace = open_profile(profile, root, reports)
    results = load_results(workspace, "variants")
    if not results:
        raise DataError(f"{workspace.records('variants')}: no records; run dvc repro report@{profile} first")
    table = result_table_of(results, arms=[arm.label for arm in settings.variants.arms], prices=settings.prices)
    if markdown:
        print(to_markdown(table), end="")
        return
    console().print(to_terminal(table))
    page = workspace.reports / "report.html"
    print(f"The page: {page}" if page.is_file() else f"No page yet: lowbit-vit report {profile}")


@app.command(epilog="Example: lowbit-vit claims demo")
def claims(
    profile: ProfileName,
    root: Root = HERE,
    reports: Reports = None,
    markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Judge every claim of the profile's paper on its records. Needs no torch."""
    from lowbit_vit.analysis.claims.ledger import gather, judge, load_paper, paper_names
    from lowbit_vit.analysis.results import load_all_results
    from lowbit_vit.report.columns import to_terminal
    from lowbit_vit.report.ledger import claims_json, claims_markdown, claims_table

    if markdown and as_json:
        raise ConfigError("claims: --markdown and --json are two forms of one output; give one of them")
    settings, workspace = open_profile(profile, root, reports)
    if settings.paper is None:
        known = ", ".join(paper_names(workspace.root)) or "none"
        raise ConfigError(f"{workspace.profile_file}: key paper is null, so there are no claims to judge; in papers/ there are: {known}")
    paper = load_paper(workspace.root, settings.paper)
    judged = judge(paper.ledger.claims, gather(settings, load_all_results(workspace), paper))
    if markdown or as_json:
        print(claims_markdown(judged) if markdown else claims_json(judged), end="")
    else:
        console().print(to_terminal(claims_table(judged)))


@app.command(epilog="Example: lowbit-vit artifact")
def artifact(root: Root = HERE) -> None:
    """Write ARTIFACT.md from the ledger and the committed reference runs. Needs no torch."""
    from lowbit_vit.report.artifact import artifact_markdown
    from lowbit_vit.schema.record import write_atomic

    write_atomic(root.resolve() / "ARTIFACT.md", artifact_markdown(root.resolve()).encode())
    print("ARTIFACT.md")


@app.command(epilog="Example: lowbit-vit compare demo reports/reference/cpu")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="a profile, or a folder with records/, such as a reference run")],
    b: Annotated[str, typer.Argument(metavar="B", help="the same")],
    root: Root = HERE,
    markdown: Markdown = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="also write every arm of every study to this file")] = None,
) -> None:
    """Put two runs side by side: paired tests of accuracy where the images are the same, latency where the GPU is."""
    from lowbit_vit.analysis.compare import compare_runs
    from lowbit_vit.analysis.runs import load_run
    from lowbit_vit.report.columns import escape_markdown, to_markdown, to_terminal
    from lowbit_vit.report.comparison import comparison_notes, comparison_table
    from lowbit_vit.schema.config import STUDIES
    from lowbit_vit.schema.record import write_atomic

    first, second = load_run(a, root=root.resolve()), load_run(b, root=root.resolve())
    margin = first.profile.statistics.margin
    frame = compare_runs(first, second, studies=STUDIES, margin=margin)
    if csv is not None:
        write_atomic(csv, frame.write_csv().encode())
    table, notes = comparison_table(frame, first, second, margin=margin), comparison_notes(frame, first, second)
    if markdown:
        print(to_markdown(table), *(f"- {escape_markdown(note)}" for note in notes), sep="\n")
        return
    console(piped_width=180).print(to_terminal(table))
    for note in notes:
        print(note)


@app.command(epilog="Example: lowbit-vit check demo reports/reference/cpu")
def check(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a profile, or a folder with records/")],
    reference: Annotated[str, typer.Argument(metavar="REFERENCE", help="the same, such as a reference run")],
    root: Root = HERE,
    markdown: Markdown = False,
    csv: Annotated[Path | None, typer.Option("--csv", help="also write the lines to this file")] = None,
) -> None:
    """Say number by number whether a run repeats a reference within tolerance; exit 1 where it does not."""
    from lowbit_vit.analysis.check import check_frame, check_run, misses
    from lowbit_vit.analysis.runs import load_run
    from lowbit_vit.report.columns import to_markdown, to_terminal
    from lowbit_vit.report.comparison import check_summary, check_table
    from lowbit_vit.schema.record import write_atomic

    lines = check_run(load_run(run, root=root.resolve()), load_run(reference, root=root.resolve()))
    if csv is not None:
        write_atomic(csv, check_frame(lines).write_csv().encode())
    table = check_table(lines)
    if markdown:
        print(f"{table.title}.\n\n{to_markdown(table)}", end="")
    else:
        console(piped_width=180).print(to_terminal(table))
    off = misses(lines)
    if off:
        raise OutOfTolerance(f"{check_summary(lines)}; the first that is off: {off[0].name} (see its line in the table)")


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
