"""The tables that people read: rows of printed cells, made from the tidy frames; the page's template only lays them out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from lowbit_vit.analysis.tables import Tables
from lowbit_vit.report.cells import DASH, MINUS, milliseconds, nats, number, percent, points, probability, spread, status_words
from lowbit_vit.schema.record import Record


@dataclass(frozen=True)
class Cell:
    """One printed cell: a value and, smaller below it, a note; `hint` shows when pointed at the note."""

    text: str
    note: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Row:
    """One line; `kind` is `plain` or `missing` (no result); `records` are the trial ids behind it, separated by spaces."""

    cells: tuple[Cell, ...]
    kind: str = "plain"
    records: str = ""


@dataclass(frozen=True)
class Grid:
    """A table: headings, rows, which columns are words (left-aligned; numbers are right-aligned), and which one names the row."""

    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    words: frozenset[int] = field(default_factory=frozenset)
    name: int = 0


def result_grid(table: pl.DataFrame) -> Grid:
    """One line an arm: accuracy with its interval, the paired difference from the baseline, size, latency, memory."""
    batches = table.get_column("batch_size").drop_nulls().unique().sort().to_list()
    rows = []
    for _, lines in table.group_by("order", "arm", maintain_order=True):
        by_batch = {row["batch_size"]: row for row in lines.to_dicts()}
        rows.append(_result_row(next(iter(by_batch.values())), by_batch, batches))
    latency = tuple(f"P50 ms, batch\N{NO-BREAK SPACE}{batch}" for batch in batches)
    headings = ("#", "arm", "Top-1 %", "against row 1, points", "size MiB", *latency, "peak MiB", "status")
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({1, len(headings) - 1}), name=1)


def _result_row(first: dict[str, Any], by_batch: dict[int, dict[str, Any]], batches: Sequence[int]) -> Row:
    settings = [f"weights {first['weights']}", first["compute_dtype"], first["attention"], first["adaptation"], first["execution"]]
    if first["qkv"] == "fused":
        settings.append("fused qkv")
    name = Cell(first["arm"], " · ".join(settings))
    if first["status"] != "success":
        blank = (Cell(DASH),) * (4 + len(batches))
        missing = first["failed_records"] or ""
        return Row((Cell(str(first["number"])), name, *blank, Cell(status_words(first))), kind="missing", records=missing)
    peaks = [row for row in by_batch.values() if row["peak_memory_mib"] is not None]
    peak = max(peaks, key=lambda row: float(row["peak_memory_mib"]), default=None)
    return Row(
        (
            Cell(str(first["number"])),
            name,
            Cell(percent(first["top1"]), _top1_note(first)),
            _difference(first),
            Cell(number(first["file_mib"])),
            *(latency_cell(by_batch.get(batch)) for batch in batches),
            Cell(number(peak["peak_memory_mib"], 1), peak["memory_is"]) if peak else Cell(DASH),
            Cell(status_words(first)),
        ),
        records=" ".join(filter(None, (first["records"], first["failed_records"]))),
    )


def _top1_note(row: dict[str, Any]) -> str:
    interval = f"{percent(row['top1_low'], 1)} to {percent(row['top1_high'], 1)}"
    return spread(row, "top1", interval, digits=2, scale=100)


def _difference(row: dict[str, Any]) -> Cell:
    if row["difference"] is None:
        return Cell("baseline" if row["order"] == 0 else DASH)
    note = f"{MINUS}{row['lost']} +{row['gained']} images, Holm p {probability(row['p_holm'])}"
    return Cell(points(row["difference"]), note, hint=f"before the adjustment: exact p {row['p_value']:.3g}")


def latency_cell(row: dict[str, Any] | None) -> Cell:
    """The median with its interval; a dash where nothing was timed."""
    if row is None:
        return Cell(DASH)
    if row["p50_low_ms"] is None:
        return Cell(milliseconds(row["p50_ms"]))
    return Cell(milliseconds(row["p50_ms"]), f"{milliseconds(row['p50_low_ms'])} to {milliseconds(row['p50_high_ms'])}")


def agreement_grid(tables: Tables) -> Grid:
    """For each format and direction: the blocks that cost most, and how well the draws agree."""
    rows = []
    for row in tables.draw_agreement.to_dicts():
        direction = row["direction"]
        cells = tables.sensitivity.filter((pl.col("weights") == row["weights"]) & (pl.col("direction") == direction))
        # Sparing the most sensitive block leaves the least KL.
        ranked = cells.sort("kl_mean", "block", descending=[direction == "only", False]).head(4)
        words = "only this block quantized" if direction == "only" else "all but this block quantized"
        top = ", ".join(map(str, ranked.get_column("block")))
        rows.append(Row((Cell(row["weights"]), Cell(words), Cell(top), Cell(number(row["kendall_tau"])), Cell(str(row["draws"])))))
    headings = ("weights", "cells", "most sensitive blocks, worst first", "Kendall's tau between draws", "draws")
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({0, 1, 2}))


def block_grid(frame: pl.DataFrame) -> Grid:
    """Every cell of the sensitivity study."""
    words = {"reference": "nothing quantized", "all": "all blocks", "only": "only", "all_but": "all but"}
    rows = []
    for row in frame.to_dicts():
        block = DASH if row["block"] is None else str(row["block"])
        name = (Cell(row["weights"] or "high precision"), Cell(words[row["direction"]]), Cell(block))
        if row["status"] != "success":
            blank = (*name, *(Cell(DASH),) * 3, Cell(f"{row['status']}: {row['reason']}"))
            rows.append(Row(blank, kind="missing", records=row["trial_id"]))
            continue
        kl = Cell(nats(row["kl"]))
        if row["kl_mean"] is not None:
            kl = Cell(nats(row["kl_mean"]), f"{nats(row['kl_low'])} to {nats(row['kl_high'])}")
        cells = (*name, kl, Cell(number(row["flips_mean"], 1)), Cell(percent(row["top1"])), _paired(row))
        rows.append(Row(cells, records=row["trial_id"]))
    headings = (
        "weights",
        "quantized",
        "block",
        "KL, nats (range of draws)",
        "flipped images a draw",
        "Top-1 %, report half",
        "against high precision",
    )
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({0, 1}))


def mixed_grid(tables: Tables) -> Grid:
    """Each way to choose the blocks; the random plans of one k are one line with their range."""
    frame = tables.mixed
    rows = [_plan_row(row, "") for row in frame.filter(pl.col("k").is_null()).to_dicts()]
    for k in frame.get_column("k").drop_nulls().unique().sort():
        same = frame.filter(pl.col("k") == k)
        beaten = {row["strategy"]: row for row in tables.beats_random.filter(pl.col("k") == k).to_dicts()}
        for row in same.filter(pl.col("strategy") != "random").to_dicts():
            wins = beaten.get(row["strategy"])
            rows.append(_plan_row(row, f"{wins['beaten_top1']:g} of {wins['random_plans']}" if wins else DASH))
        rows += _random_row(k, same.filter(pl.col("strategy") == "random"), tables.random_bands.filter(pl.col("k") == k))
    headings = (
        "k",
        "blocks chosen by",
        "blocks spared",
        "weights MiB",
        "Top-1 %, report half",
        "against fully quantized",
        "KL, nats",
        "random plans beaten",
    )
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({1, 2}), name=1)


def byte_words(frame: pl.DataFrame) -> str:
    """Whether the plans of each k really weigh the same, and those chosen within their bytes no more, counted on the models."""
    within = pl.col("strategy").is_in(["gradient", "milp"])
    counted = frame.filter(pl.col("k").is_not_null()).drop_nulls("weight_mib")
    sizes = counted.filter(~within).group_by("k").agg(pl.col("weight_mib").n_unique()).sort("k")
    most = counted.filter(~within).group_by("k").agg(pl.col("weight_mib").max().alias("most"))
    heavier = counted.filter(within).join(most, on="k").filter(pl.col("weight_mib") > pl.col("most"))
    unequal = [str(k) for k, count in sizes.iter_rows() if count > 1]
    if sizes.is_empty():
        return "No plan's bytes were counted."
    if not heavier.is_empty():
        return f"The plan {heavier.item(0, 'strategy')} of k = {heavier.item(0, 'k')} is larger than its budget: compare it with care."
    if unequal:
        return f"The plans of k = {', '.join(unequal)} do not weigh the same: compare them with care."
    chosen = " (milp and gradient: at most as much)" if counted.filter(within).height else ""
    return f"All plans of one k weigh the same to the byte{chosen}, as counted on the models."


def _plan_row(row: dict[str, Any], wins: str) -> Row:
    name = (Cell(DASH if row["k"] is None else str(row["k"])), Cell(row["strategy"]), Cell(row["blocks"]))
    if row["status"] != "success":
        blank = (*name, *(Cell(DASH),) * 4, Cell(f"{row['status']}: {row['reason']}"))
        return Row(blank, kind="missing", records=row["trial_id"])
    top1 = Cell(percent(row["top1"]), f"{percent(row['top1_low'], 1)} to {percent(row['top1_high'], 1)}")
    cells = (*name, Cell(number(row["weight_mib"], 3)), top1, _paired(row), Cell(nats(row["kl"])), Cell(wins))
    return Row(cells, records=row["trial_id"])


def _random_row(k: int, random: pl.DataFrame, bands: pl.DataFrame) -> list[Row]:
    band = {row["metric"]: row for row in bands.to_dicts()}
    if "top1" not in band:
        return []
    sizes = random.get_column("weight_mib").drop_nulls()
    size = (
        number(sizes.item(0), 3) if sizes.n_unique() == 1 else f"{number(sizes.to_numpy().min(), 3)} to {number(sizes.to_numpy().max(), 3)}"
    )
    top1, kl = band["top1"], band.get("kl")
    failed = random.filter(pl.col("status") != "success").height
    missing = f"; {failed} without a result" if failed else ""
    return [
        Row(
            (
                Cell(str(k)),
                Cell(f"random, {top1['plans']} plans{missing}"),
                Cell("see tables/mixed.csv"),
                Cell(size),
                Cell(number(top1["median"]), f"median; {number(top1['least'])} to {number(top1['greatest'])}"),
                Cell(DASH),
                Cell(nats(kl["median"]), f"{nats(kl['least'])} to {nats(kl['greatest'])}") if kl else Cell(DASH),
                Cell(DASH),
            ),
            records=" ".join(random.get_column("trial_id")),
        )
    ]


def _paired(row: dict[str, Any]) -> Cell:
    if row["difference"] is None:
        return Cell(DASH)
    interval = f"{points(row['difference_low'])} to {points(row['difference_high'])}"
    return Cell(points(row["difference"]), f"{interval}; {MINUS}{row['lost']} +{row['gained']} images, p {probability(row['p_value'])}")


def missing_grid(frame: pl.DataFrame) -> Grid:
    """Trials without a result, and why."""
    rows = [
        Row(
            (Cell(row["study"]), Cell(row["label"]), Cell(str(row["seed"])), Cell(row["status"]), Cell(row["reason"] or DASH)),
            kind="missing",
            records=row["trial_id"],
        )
        for row in frame.to_dicts()
    ]
    return Grid(headings=("study", "trial", "seed", "status", "reason"), rows=tuple(rows), words=frozenset({0, 1, 3, 4}), name=1)


def time_grid(records: Sequence[Record]) -> Grid:
    """Where the hours went: wall seconds of the trials of each study."""
    rows = []
    for study in dict.fromkeys(record.trial.study for record in records):
        spent = [sum(record.durations_s.values()) for record in records if record.trial.study == study]
        rows.append(Row((Cell(study), Cell(str(len(spent))), Cell(number(sum(spent), 1)), Cell(number(max(spent), 1)))))
    return Grid(headings=("study", "trials", "seconds in all", "longest trial, s"), rows=tuple(rows), words=frozenset({0}))


def twin_grid(table: pl.DataFrame) -> Grid:
    """Arms that differ in their execution alone, eager against graph: what replaying or compiling the same kernels saves."""
    same = ("weights", "compute_dtype", "attention", "qkv", "adaptation", "device", "batch_size")
    good = table.filter((pl.col("status") == "success") & pl.col("p50_ms").is_not_null())
    eager = good.filter(pl.col("execution") == "eager").unique(list(same), keep="first", maintain_order=True)
    pairs = eager.join(good.filter(pl.col("execution") != "eager"), on=list(same), suffix="_twin", maintain_order="left")
    rows = [
        Row(
            (
                Cell(row["arm"], f"{row['execution_twin']}: {row['arm_twin']}"),
                Cell(str(row["batch_size"])),
                Cell(milliseconds(row["p50_ms"]), _idle_note(row, "")),
                Cell(milliseconds(row["p50_ms_twin"]), _idle_note(row, "_twin")),
                Cell(number(row["p50_ms"] / row["p50_ms_twin"])),
            ),
            records=f"{row['records']} {row['records_twin']}",
        )
        for row in pairs.to_dicts()
    ]
    headings = ("arm", "batch", "eager, P50 ms", "graph or compiled, P50 ms", "eager / graph")
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({0}))


def _idle_note(row: dict[str, Any], suffix: str) -> str:
    idle, wall = row[f"idle_us{suffix}"], row[f"wall_us{suffix}"]
    return "" if idle is None or not wall else f"idle {100 * idle / wall:.0f} %"
