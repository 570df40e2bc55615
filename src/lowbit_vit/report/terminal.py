"""The result table and the doctor's table as rich tables, for the terminal. Neither needs torch."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lowbit_vit.analysis.arms import paper_table, variants
from lowbit_vit.analysis.results import Result
from lowbit_vit.report.cells import DASH, milliseconds, number, percent, status_words
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.machine import doctor


def result_table(results: Sequence[Result], *, arms: Sequence[str] = ()) -> Table:
    """One line an arm of the variants study: accuracy, size, latency at each batch size, peak memory, or why it has none.

    `arms` gives the order (the profile's labels); arms of the paper's table come first without it.
    """
    table = Table(title=_title(results), title_justify="left", caption=_caption(results), caption_justify="left")
    headings, rows = _grid(results, arms=arms)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if 1 < index < len(headings) - 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row[:-1]), Text(row[-1], style="" if row[-1] == "success" else "yellow"))
    return table


def result_markdown(results: Sequence[Result], *, arms: Sequence[str] = ()) -> str:
    """The same table in GitHub's Markdown, its caption behind it."""
    headings, rows = _grid(results, arms=arms)
    rule = ["--:" if 1 < index < len(headings) - 1 else "---" for index in range(len(headings))]
    lines = [f"| {' | '.join(map(_markdown_cell, line))} |" for line in (headings, rule, *rows)]
    return "\n".join(lines) + f"\n\n{_caption(results)}.\n"


def _markdown_cell(text: str) -> str:
    """Text that neither ends the cell nor becomes HTML."""
    return text.replace("|", r"\|").replace("<", "&lt;")


def _grid(results: Sequence[Result], *, arms: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the result table."""
    frame = paper_table(variants(results, arms=arms or _labels(results)))
    batches = frame.get_column("batch_size").drop_nulls().unique().sort().to_list()
    headings = ["arm", "attention", "Top-1 %", "size MiB", *(f"P50 ms, batch {batch}" for batch in batches), "peak MiB", "status"]
    rows = []
    for (_, arm), of_arm in frame.group_by("order", "arm", maintain_order=True):
        lines = {row["batch_size"]: row for row in of_arm.to_dicts()}
        first = next(iter(lines.values()))
        peaks = [line["peak_memory_mib"] for line in lines.values() if line["peak_memory_mib"] is not None]
        rows.append(
            [
                str(arm),
                str(first["attention"]),
                percent(first["top1"]),
                number(first["file_mib"]),
                *(milliseconds(lines[batch]["p50_ms"]) if batch in lines else DASH for batch in batches),
                number(max(peaks, default=None), 1),
                status_words(first),
            ]
        )
    return headings, rows


def doctor_table(profile: Profile) -> Table:
    """What this machine can run of a profile, arm by arm, and why not."""
    table = Table(title=f"{profile.name}: what this machine can run", title_justify="left")
    for heading in ("study", "arm", "precision", "attention", "adaptation", "execution", "device"):
        table.add_column(heading)
    table.add_column("can run", overflow="fold")
    for row in doctor(profile):
        verdict = Text("yes", style="green") if row.reason is None else Text(f"no: {row.reason}", style="yellow")
        table.add_row(row.study, Text(row.label), row.precision, row.attention, row.adaptation, row.execution, row.device, verdict)
    return table


def _labels(results: Sequence[Result]) -> list[str]:
    """Arms of the paper's table in its order, then the others by name."""
    trials = (result.record.trial for result in results)
    ranked = sorted(trials, key=lambda trial: (trial.paper_row is None, trial.paper_row or 0, trial.label))
    return list(dict.fromkeys(trial.label for trial in ranked))


def _title(results: Sequence[Result]) -> Text:
    return Text(f"{results[0].record.trial.profile}: variants" if results else "variants")


def _caption(results: Sequence[Result]) -> Text:
    counts = sorted({result.whole.images for result in results if result.whole is not None})
    devices = sorted({result.record.trial.device for result in results if result.whole is not None})
    images = " or ".join(f"{count:,}" for count in counts) or "no"
    resident = "; peak memory on the cpu is the resident set" if "cpu" in devices else ""
    return Text(f"Top-1 on {images} test images; measured on {', '.join(devices) or 'nothing'}{resident}")
