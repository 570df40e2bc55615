"""The tables of the variants study and of what the run cost, declared from the tidy frames."""

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.tables import Tables, with_cost
from lowbit_vit.analysis.variants import most_lost, paper_table, variants
from lowbit_vit.report.columns import PAGE, PLAIN, Column, Table
from lowbit_vit.report.number_format import (
    decimals,
    image_changes,
    milliseconds,
    number,
    percent,
    points,
    probability,
    process_range,
    process_words,
    spread,
    status_words,
    within,
)
from lowbit_vit.schema.config import Prices
from lowbit_vit.schema.record import Record

Row = dict[str, Any]
MOST_CLASSES = 3
_ENERGY = "calls back to back; of the whole GPU by NVML's counter, of all processor packages by RAPL's on a CPU"


def result_table(frame: pl.DataFrame, results: Sequence[Result]) -> Table:
    """One line an arm of the paper's table: accuracy, size, latency at each batch size, peak memory, or why it has none.

    Args:
        frame: as `paper_table` returns it; the page's columns need its `number`, and the paired comparison.
        results: for the title and the note.
    """
    rows = []
    for _, lines in frame.group_by("order", "arm", maintain_order=True):
        by_batch = {row["batch_size"]: row for row in lines.to_dicts()}
        first = next(iter(by_batch.values()))
        peak = max(by_batch.values(), key=lambda row: row["peak_memory_mib"] or 0)
        rows.append({**first, **{name: peak[name] for name in ("peak_memory_mib", "memory_is")}, "by_batch": by_batch})
    batches = frame.get_column("batch_size").drop_nulls().unique().sort().to_list()
    columns = (
        Column("#", "number", targets=PAGE),
        Column("arm", "arm", note=_settings, kind="name"),
        Column("attention", "attention", kind="words", targets=PLAIN),
        Column("Top-1 %", "top1", percent, _top1_note),
        Column("against row 1, points", _difference, points, _difference_note, hint=_exact_p, targets=PAGE),
        Column("size MiB", "file_mib", number),
        *(latency_column(f"P50 ms, batch {batch}", batch) for batch in batches),
        *(_times_first_column(batch) for batch in batches if any(row["by_batch"].get(batch, {}).get("times_first") for row in rows)),
        *_energy_columns(frame),
        Column("peak MiB", "peak_memory_mib", decimals(1), "{memory_is}"),
        Column("status", status_words, kind="words", style=lambda row: "" if status_words(row) == "success" else "yellow"),
    )
    title = f"{results[0].record.trial.profile}: variants" if results else "variants"
    beside = "Disturbed: other work took the CPUs; the same command times it again." if frame["disturbed"].sum() else ""
    note = " ".join(filter(None, (_result_note(results), process_words(frame["processes"]), beside)))
    return Table(title, columns, rows, note, records=_all_records, missing=unfinished)


def _all_records(row: Row) -> str:
    return " ".join(filter(None, (row["records"], row["failed_records"])))


def result_table_of(results: Sequence[Result], *, arms: Sequence[str] = (), prices: Prices | None = None) -> Table:
    """The columns of `result_table` that need the records alone, for Markdown and the terminal.

    `arms` gives the order (the profile's labels); arms of the paper's table come first without it. `prices` are the profile's.
    """
    trials = (result.record.trial for result in results)
    ranked = sorted(trials, key=lambda trial: (trial.paper_row is None, trial.paper_row or 0, trial.label))
    frames = Frames(results, arms=list(arms) or list(dict.fromkeys(trial.label for trial in ranked)))
    return result_table(with_cost(paper_table(variants(frames)), prices), results)


def _result_note(results: Sequence[Result]) -> str:
    counts = sorted({result.whole.images for result in results if result.whole is not None})
    devices = sorted({result.record.trial.device for result in results if result.whole is not None})
    images = " or ".join(f"{count:,}" for count in counts) or "no"
    resident = "; peak memory on the cpu is the resident set" if "cpu" in devices else ""
    return f"Top-1 on {images} test images; measured on {', '.join(devices) or 'nothing'}{resident}."


def unfinished(row: Row) -> bool:
    """Whether the row is of trials without a result."""
    return bool(row["status"] != "success")


def _settings(row: Row) -> str:
    settings = [f"weights {row['weights']}", row["compute_dtype"], row["attention"], row["adaptation"], row["execution"]]
    return " · ".join([*settings, *(["fused qkv"] if row["qkv"] == "fused" else [])])


def _top1_note(row: Row) -> str:
    return spread(row, "top1", within("top1_low", "top1_high", lambda rate: percent(rate, 1))(row), digits=2, scale=100)


def _difference(row: Row) -> float | str | None:
    baseline = row["difference"] is None and row["order"] == 0 and not unfinished(row)
    return "baseline" if baseline else row["difference"]


def _difference_note(row: Row) -> str:
    return "" if row["difference"] is None else f"{image_changes(row)} images, Holm p {probability(row['p_holm'])}"


def _exact_p(row: Row) -> str:
    return "" if row["difference"] is None else f"before the adjustment: exact p {row['p_value']:.3g}"


def latency_column(heading: str, batch: int | None = None) -> Column:
    """The median with its interval, of the row itself or of its `by_batch` at a batch size; of a host-bound one the range as well."""

    def timed(row: Row) -> Row:
        return row if batch is None else row["by_batch"].get(batch, {})

    def value(row: Row) -> float | str | None:
        row = timed(row)
        marks = ["host-bound"] if row.get("host_bound") else []
        marks += [f"{row['disturbed']} of {row['processes']} disturbed"] if row.get("disturbed") else []
        return f"{milliseconds(row['p50_ms'])} ({process_range(row)}, {', '.join(marks)})" if marks else row.get("p50_ms")

    def note(row: Row) -> str:
        row = timed(row)
        if row["p50_low_ms"] is None and row["processes"] > 1:
            return f"{row['processes']} processes: {process_range(row)}"
        return within("p50_low_ms", "p50_high_ms", milliseconds)(row)

    return Column(heading, value, milliseconds, note)


def _times_first_column(batch: int) -> Column:
    def note(row: Row) -> str:
        its = row["by_batch"][batch]
        return f"{within('times_first_low', 'times_first_high', number)(its)}, p {probability(its['times_first_p'])}"

    return Column(
        f"times row 1's, batch {batch}", lambda row: row["by_batch"].get(batch, {}).get("times_first"), number, note, targets=PAGE
    )


def _energy_columns(frame: pl.DataFrame) -> list[Column]:
    """Joules of an image at each batch size; images a kWh and cost at the greatest. None where no energy was counted."""
    if "joules_per_image" not in frame.columns:
        return []
    counted = frame.drop_nulls("joules_per_image")
    batches = counted["batch_size"].unique().sort().to_list()

    def column(heading: str, name: str, batch: int, printed: Callable[[float | None], str], note: str = "") -> Column:
        def timed(row: Row) -> Row:
            its: Row = row["by_batch"].get(batch, {})
            return its

        return Column(heading, lambda row: timed(row).get(name), printed, lambda row: note.format_map(timed(row)), hint=lambda _: _ENERGY)

    power = "{watts:.0f} W; idle {idle_watts_before:.0f} W before, {idle_watts_after:.0f} W after"
    columns = [column(f"J/image, batch {batch}", "joules_per_image", batch, milliseconds, power) for batch in batches]
    columns += [column(f"images/kWh, batch {batch}", "images_per_kwh", batch, decimals(0)) for batch in batches[-1:]]
    if "cost_per_million" in counted.columns and counted["cost_per_million"].count():
        heading = f"{counted['currency'][0]} a million images, batch {batches[-1]}"
        columns.append(column(heading, "cost_per_million", batches[-1], decimals(2)))
    return columns


def class_table(tables: Tables) -> Table:
    """One line an arm that loses an image: the classes that lose most, worst first; no line where no class loses any."""
    done = tables.variants.filter(pl.col("status") == "success")
    behind = done.group_by("order", "arm").agg(pl.col("trial_id").unique(maintain_order=True).str.join(" ").alias("records"))
    lossy = most_lost(tables.classes, most=MOST_CLASSES).join(behind, on=["order", "arm"], how="left", maintain_order="left")
    rows = [lines.to_dicts() for _, lines in lossy.group_by("order", "arm", maintain_order=True)]
    columns = (
        Column("#", lambda row: row[0]["number"]),
        Column("arm", lambda row: row[0]["arm"], kind="name"),
        *(_class_column(heading, rank) for rank, heading in enumerate(("class that loses most", "second", "third"))),
    )
    return Table("Classes that lose most images", columns, rows, records=lambda row: row[0]["records"])


def _class_column(heading: str, rank: int) -> Column:
    def note(row: Sequence[Row]) -> str:
        if rank >= len(row):
            return ""
        return f"{image_changes(row[rank])} of {row[rank]['images']} images; most wrong ones as {row[rank]['taken_for']}"

    return Column(heading, lambda row: row[rank]["class"] if rank < len(row) else "", note=note, kind="words")


def time_table(records: Sequence[Record]) -> Table:
    """Where the hours went: wall seconds of the trials of each study."""
    spent: dict[str, list[float]] = {}
    for record in records:
        spent.setdefault(record.trial.study, []).append(sum(record.durations_s.values()))
    columns = (
        Column("study", lambda row: row[0], kind="name"),
        Column("trials", lambda row: len(row[1])),
        Column("seconds in all", lambda row: sum(row[1]), decimals(1)),
        Column("longest trial, s", lambda row: max(row[1]), decimals(1)),
    )
    return Table("Wall time of the trials", columns, list(spent.items()))
