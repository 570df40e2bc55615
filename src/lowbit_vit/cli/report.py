"""Verbs that read a run's records: report, pack, show, claims, artifact. None needs torch."""

from pathlib import Path
from typing import Annotated

import typer

from lowbit_vit.cli.options import HERE, AsJson, Markdown, ProfileName, Reports, Root, console, open_profile
from lowbit_vit.errors import ConfigError, DataError

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
