"""The result table and the doctor's table as rich tables, for the terminal. Neither needs torch."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lowbit_vit.analysis.arms import paper_table, variants
from lowbit_vit.analysis.results import Result
from lowbit_vit.report.cells import DASH, milliseconds, number, percent, status_words
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.machine import doctor
from lowbit_vit.schema.record import Record


def result_table(records: Sequence[Record], *, arms: Sequence[str] = ()) -> Table:
    """One line an arm of the variants study: accuracy, size, latency at each batch size, peak memory, or why it has none.

    `arms` gives the order (the profile's labels); arms of the paper's table come first without it.
    """
    table = Table(title=_title(records), title_justify="left", caption=_caption(records), caption_justify="left")
    headings, rows = _grid(records, arms=arms)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if 1 < index < len(headings) - 1 else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row[:-1]), Text(row[-1], style="" if row[-1] == "success" else "yellow"))
    return table


def result_markdown(records: Sequence[Record], *, arms: Sequence[str] = ()) -> str:
    """The same table in GitHub's Markdown, its caption behind it."""
    headings, rows = _grid(records, arms=arms)
    rule = ["--:" if 1 < index < len(headings) - 1 else "---" for index in range(len(headings))]
    lines = [f"| {' | '.join(map(_markdown_cell, line))} |" for line in (headings, rule, *rows)]
    return "\n".join(lines) + f"\n\n{_caption(records)}.\n"


def _markdown_cell(text: str) -> str:
    """Text that neither ends the cell nor becomes HTML."""
    return text.replace("|", r"\|").replace("<", "&lt;")


def _grid(records: Sequence[Record], *, arms: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the result table."""
    frame = paper_table(variants([Result(record=record, predictions=None) for record in records], arms=arms or _labels(records)))
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


def _labels(records: Sequence[Record]) -> list[str]:
    """Arms of the paper's table in its order, then the others by name."""
    ranked = sorted(records, key=lambda record: (record.trial.paper_row is None, record.trial.paper_row or 0, record.trial.label))
    return list(dict.fromkeys(record.trial.label for record in ranked))


def _title(records: Sequence[Record]) -> Text:
    return Text(f"{records[0].trial.profile}: variants" if records else "variants")


def _caption(records: Sequence[Record]) -> Text:
    counts = sorted({record.evaluation.whole.images for record in records if record.evaluation is not None})
    devices = sorted({record.trial.device for record in records if record.evaluation is not None})
    images = " or ".join(f"{count:,}" for count in counts) or "no"
    resident = "; peak memory on the cpu is the resident set" if "cpu" in devices else ""
    return Text(f"Top-1 on {images} test images; measured on {', '.join(devices) or 'nothing'}{resident}")
