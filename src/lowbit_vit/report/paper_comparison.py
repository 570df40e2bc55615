"""The paper's table beside ours, cell by cell: the printed value, our value, the verdict of the cell's claim and its reason."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import polars as pl

from lowbit_vit.analysis.audit.headings import Quantity
from lowbit_vit.analysis.audit.table import ResultsTable
from lowbit_vit.analysis.claims.ledger import Judged
from lowbit_vit.analysis.claims.performance_checks import COLUMNS
from lowbit_vit.report.columns import Cell, Column, Table
from lowbit_vit.report.ledger import TONES, Tone, by_cell
from lowbit_vit.report.number_format import DASH, decimals, milliseconds, number, spread

Row = dict[str, Any]


def _device(row: Row) -> str:
    return "" if row["device"] == "cuda" else f"on the {row['device']}"


def _operators(row: Row) -> str:
    return "time of operators, not kernels" if row["device"] == "cpu" else ""


def _or_dash(name: str) -> Callable[[Row], Any]:
    """A dash is text, so that its note says why there is no number."""
    return lambda row: DASH if row[name] is None else row[name]


def _percentile(heading: str, name: str) -> Column:
    return Column(heading, _or_dash(name), milliseconds, lambda row: "too few samples" if row[name] is None else _device(row))


# Ours by what a column of the paper's table holds; a note says what its heading does not.
OURS: dict[Quantity, Column] = {
    "size": Column("size MiB", "file_mib", number),
    "mean": Column("mean ms", lambda row: spread(row, "mean_ms", milliseconds(row["mean_ms"]), digits=2), note=_device),
    "p50": _percentile("P50 ms", "p50_ms"),
    "p95": _percentile("P95 ms", "p95_ms"),
    "p99": _percentile("P99 ms", "p99_ms"),
    "throughput": Column("images/s", "images_per_s", decimals(1), note=_device),
    "vram": Column(
        "peak MiB", "peak_memory_mib", decimals(1), note=lambda row: "" if row["memory_is"] == "CUDA allocator" else row["memory_is"]
    ),
    "cpu": Column(
        "CPU mean ms", _or_dash("cpu_mean_ms"), milliseconds, lambda row: "not run on the CPU" if row["cpu_mean_ms"] is None else ""
    ),
    "top1": Column("Top-1", lambda row: spread(row, "top1", number(row["top1"], 4), digits=4)),
    "top5": Column("Top-5", "top5", decimals(4)),
    "f1": Column("macro F1", "macro_f1", decimals(4)),
    "kernel": Column("kernels us", "kernel_us", decimals(0), note=_operators),
    "attention": Column("attention us", "attention_us", decimals(0), note=_operators),
    "images": Column("images", "images"),
    "batch": Column("batch", "batch_size"),
}


@dataclass(frozen=True)
class Pair:
    """One cell.

    Attributes:
        printed: as the paper prints it; N/A where it has no number.
        ours: as we print it; a dash where there is none.
        tone: of the verdict; `unjudged` where no claim is about this cell.
        claim: id, or null.
        explanation: what a reader is told on hover, focus or tap: sentences.
        records: trial ids behind ours, separated by spaces.
    """

    printed: str
    ours: str
    tone: Tone
    claim: str | None
    explanation: tuple[str, ...]
    records: str


@dataclass(frozen=True)
class PairedRow:
    """One of the paper's rows. `missing` says why there is nothing of ours; it is null where there is."""

    model: str
    missing: str | None
    cells: tuple[Pair, ...]


@dataclass(frozen=True)
class Beside:
    """The table at one batch size of ours; null: no batch size was measured."""

    batch_size: int | None
    headings: tuple[str, ...]
    rows: tuple[PairedRow, ...]


def beside_paper(table: pl.DataFrame, paper: ResultsTable, judged: Sequence[Judged]) -> list[Beside]:
    """One table for each batch size that was measured, the smallest first; one without numbers of ours if none was."""
    batches = table.get_column("batch_size").drop_nulls().unique().sort().to_list()
    claims = by_cell(judged)
    return [_beside(table, paper, claims, batch_size=batch) for batch in batches or [None]]


def _beside(table: pl.DataFrame, paper: ResultsTable, claims: Mapping[tuple[int, str], Judged], *, batch_size: int | None) -> Beside:
    rows = []
    for index, label in enumerate(paper.labels):
        arms = table.filter(pl.col("paper_row") == index)
        found = arms.filter(pl.col("batch_size").is_null() | pl.col("batch_size").eq_missing(batch_size)).to_dicts()
        ours = next((row for row in found if row["status"] == "success"), None)
        missing = None if ours else found[0]["reason"] if found else "not run" if arms.is_empty() else f"not measured at batch {batch_size}"
        records = (ours or {}).get("records") or ""
        cells = []
        for quantity, heading in paper.headings.items():
            printed = paper.cell(index, quantity)
            value = _with_unit(paper, quantity, OURS[quantity].cell(ours)) if ours else Cell(DASH)
            claim, text = claims.get((index, heading)), "N/A" if printed is None else printed.text
            cells.append(_cell(text, value, claim, heading=heading, missing=missing, records=records))
        rows.append(PairedRow(model=_bare(label), missing=missing, cells=tuple(cells)))
    return Beside(batch_size=batch_size, headings=tuple(paper.headings.values()), rows=tuple(rows))


def _with_unit(paper: ResultsTable, quantity: Quantity, value: Cell) -> Cell:
    """Our value with its unit where the heading has another one."""
    column = COLUMNS.get(quantity)
    if column is None or value.text == DASH or all(cell.scale == column.scale for cell in paper.column(quantity)):
        return value
    return replace(value, text=f"{value.text} {column.unit or '(of 1)'}")


def _bare(name: str) -> str:
    """The name of a row without its number."""
    first, dot, rest = name.partition(". ")
    return rest if dot and first.isdigit() else name


def _cell(printed: str, value: Cell, judged: Judged | None, *, heading: str, missing: str | None, records: str) -> Pair:
    ours, note = value.text, value.note
    tone: Tone = "unjudged" if judged is None else TONES[judged.verdict]
    words = f"is missing ({missing or note or 'not measured'})" if ours == DASH else f"is {ours}" + (f" ({note})" if note else "")
    told = [f"{heading}: the paper prints {printed}; ours {words}."]
    if judged is not None:
        told.append(f"{judged.verdict_words[0].upper()}{judged.verdict_words[1:]}: {judged.words}")
        # Judged at the claim's own batch size, which need not be this table's.
        told += [f"Judged on {judged.ours.text}; tolerance {judged.claim.tolerance.within}."] if judged.ours else []
    return Pair(
        printed=printed,
        ours=ours,
        tone=tone,
        claim=judged.claim.id if judged else None,
        explanation=tuple(told),
        records=records or " ".join(judged.record_ids if judged else ()),
    )


def paper_table(beside: Beside) -> Table:
    """The table for LaTeX: two lines a row, as printed and as measured, the metrics as columns."""
    rows = []
    for row in beside.rows:
        rows.append([row.model, "paper", *(cell.printed for cell in row.cells)])
        rows.append(["", row.missing or "ours", *(cell.ours for cell in row.cells)])
    metrics = [Column(heading, itemgetter(place)) for place, heading in enumerate(beside.headings, 2)]
    return Table("", (Column("Model", itemgetter(0), kind="name"), Column("", itemgetter(1), kind="words"), *metrics), rows)
