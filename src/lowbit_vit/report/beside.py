"""The paper's table beside ours, cell by cell: the printed value, our value, the verdict of the cell's claim and its reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from lowbit_vit.analysis.audit.table import Quantity, ResultsTable
from lowbit_vit.analysis.claims.ledger import Judged
from lowbit_vit.analysis.claims.performance_checks import COLUMNS
from lowbit_vit.report.cells import DASH, milliseconds, number, spread
from lowbit_vit.report.ledger import SIGNS, TONES, Tone, by_cell


@dataclass(frozen=True)
class Pair:
    """One cell.

    Attributes:
        printed: as the paper prints it; N/A where it has no number.
        ours: as we print it; a dash where there is none.
        tone: of the verdict; `unjudged` where no claim is about this cell.
        sign: the tone's.
        claim: id, or null.
        explanation: what a reader is told on hover, focus or tap: sentences.
        records: trial ids behind ours, separated by spaces.
    """

    printed: str
    ours: str
    tone: Tone
    sign: str
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
        values = _our_cells(ours) if ours else {}
        records = (ours or {}).get("records") or ""
        cells = []
        for quantity, heading in paper.headings.items():
            cell = paper.cell(index, quantity)
            value = _with_unit(paper, quantity, values.get(quantity, (DASH, "")))
            printed = cell.text if cell is not None else "N/A"
            cells.append(_cell(printed, value, claims.get((index, heading)), heading=heading, missing=missing, records=records))
        rows.append(PairedRow(model=_bare(label), missing=missing, cells=tuple(cells)))
    return Beside(batch_size=batch_size, headings=tuple(paper.headings.values()), rows=tuple(rows))


def _with_unit(paper: ResultsTable, quantity: Quantity, value: tuple[str, str]) -> tuple[str, str]:
    """Our value with its unit where the heading has another one."""
    ours, note = value
    column = COLUMNS.get(quantity)
    if column is None or ours == DASH or all(cell.scale == column.scale for cell in paper.column(quantity)):
        return value
    return f"{ours} {column.unit or '(of 1)'}", note


def _bare(name: str) -> str:
    """The name of a row without its number."""
    first, dot, rest = name.partition(". ")
    return rest if dot and first.isdigit() else name


def _cell(printed: str, value: tuple[str, str], judged: Judged | None, *, heading: str, missing: str | None, records: str) -> Pair:
    ours, note = value
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
        sign=SIGNS[tone],
        claim=judged.claim.id if judged else None,
        explanation=tuple(told),
        records=records or " ".join(judged.record_ids if judged else ()),
    )


def _our_cells(row: dict[str, Any]) -> dict[Quantity, tuple[str, str]]:
    """Our values by what a column of the paper's table holds, each with what it is where the heading does not say."""
    device = "" if row["device"] == "cuda" else f"on the {row['device']}"
    operators = "time of operators, not kernels" if row["device"] == "cpu" else ""
    memory = "" if row["memory_is"] == "CUDA allocator" else row["memory_is"] or ""

    def percentile(name: str) -> tuple[str, str]:
        return milliseconds(row[name]), "too few samples" if row[name] is None else device

    return {
        "size": (number(row["file_mib"]), ""),
        "mean": (spread(row, "mean_ms", milliseconds(row["mean_ms"]), digits=2), device),
        "p50": percentile("p50_ms"),
        "p95": percentile("p95_ms"),
        "p99": percentile("p99_ms"),
        "throughput": (number(row["images_per_s"], 1), device),
        "vram": (number(row["peak_memory_mib"], 1), memory),
        "cpu": (milliseconds(row["cpu_mean_ms"]), "not run on the CPU" if row["cpu_mean_ms"] is None else ""),
        "top1": (spread(row, "top1", number(row["top1"], 4), digits=4), ""),
        "top5": (number(row["top5"], 4), ""),
        "f1": (number(row["macro_f1"], 4), ""),
        "kernel": (number(row["kernel_us"], 0), operators),
        "attention": (number(row["attention_us"], 0), operators),
        "images": (str(row["images"]), ""),
        "batch": (str(row["batch_size"]), ""),
    }
