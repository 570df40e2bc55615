"""Verbs that put two runs side by side: compare, check."""

from pathlib import Path
from typing import Annotated

import typer

from lowbit_vit.cli.options import HERE, Markdown, Root, console
from lowbit_vit.errors import OutOfTolerance

app = typer.Typer()


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
