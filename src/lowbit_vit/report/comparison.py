"""Two runs side by side, and a run against its reference, as tables. No torch."""

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from lowbit_vit.analysis.check import Line, Verdict, misses
from lowbit_vit.analysis.compare import PAIRED
from lowbit_vit.analysis.runs import Run, origins
from lowbit_vit.report.columns import Column, Table
from lowbit_vit.report.number_format import milliseconds, number, percent, points, probability, process_words, within

Row = dict[str, Any]
_STYLES: dict[Verdict, str] = {"within": "green", "miss": "bold red", "not compared": "yellow"}


def comparison_table(frame: pl.DataFrame, first: Run, second: Run, *, margin: float) -> Table:
    """The variants study of both sides: one line for each arm and batch size, what is of the arm in its first line alone."""
    rows = frame.filter(pl.col("study") == "variants").to_dicts()
    arms = [(row["trial_id"], row["trial_id_b"]) for row in rows]
    columns = (
        Column("arm", _once(_arm), kind="name"),
        Column("seed", _once("seed")),
        Column("Top-1 % A", _once("top1"), percent),
        Column("Top-1 % B", _once("top1_b"), percent),
        Column("B - A, points (95 %)", _once(_difference)),
        Column("p (Holm)", _once("p_holm"), probability),
        Column(f"p, B worse by {100 * margin:g} point{'' if margin == 0.01 else 's'}", _once("p_inferior"), probability),
        Column("batch", "batch_size"),
        Column("P50 ms A", "p50_ms", milliseconds),
        Column("P50 ms B", "p50_ms_b", milliseconds),
        Column("B / A (95 %)", _ratio),
        Column("compared", _how, kind="words"),
    )
    rows = [row | {"again": arm == before} for row, arm, before in zip(rows, arms, [None, *arms], strict=False)]
    return Table(f"A: {first.name}   B: {second.name}", columns, rows)


def _once(value: str | Callable[[Row], Any]) -> Callable[[Row], Any]:
    return lambda row: "" if row["again"] else value(row) if callable(value) else row[value]


def _arm(row: Row) -> str:
    label = str(row["arm"] or row["arm_b"])
    return label if row["arm_b"] in (None, label) else f"{label} / {row['arm_b']}"


def _difference(row: Row) -> str:
    interval = "" if row["difference"] is None else f" ({within('difference_low', 'difference_high', points)(row)})"
    return points(row["difference"]) + interval


def _ratio(row: Row) -> str:
    interval = "" if row["ratio_low"] is None else f" ({within('ratio_low', 'ratio_high', number)(row)})"
    return number(row["ratio"]) + interval


def _how(row: dict[str, Any]) -> str:
    """How accuracy and time were compared; where an arm has no result, which."""
    missing = [f"{side} {row[key]}" for side, key in (("A", "status"), ("B", "status_b")) if row[key] != "success"]
    if missing:
        return "; ".join(missing)
    timing = None if row["timing"] is None else str(row["timing"]).split(":", maxsplit=1)[0]
    return "; ".join(part for part in (row["accuracy_test"], timing) if part)


def comparison_notes(frame: pl.DataFrame, first: Run, second: Run) -> list[str]:
    """What the two sides are, in what they differ beyond the arms, and the other studies in one line each."""
    before, after = origins(first), origins(second)
    notes = [f"{name}: " + (before[name] if before[name] == after[name] else f"A {before[name]}; B {after[name]}") for name in before]
    settings = sorted({name for text in frame["settings_differ"].drop_nulls() for name in text.split(", ")})
    if settings:
        notes.append(f"settings of arms differ: {', '.join(settings)}")
    unpaired = frame.filter(pl.col("accuracy_test").is_not_null() & (pl.col("accuracy_test") != PAIRED))
    if not unpaired.is_empty():
        notes.append("accuracy is compared unpaired, because the test images are others: that sees less than a paired test")
    for name, counts in (("A", frame["processes"]), ("B", frame["processes_b"])):
        if words := process_words(counts):
            notes.append(f"{name}: {words[0].lower()}{words[1:-1]}")
    if not frame.filter(pl.col("timing").str.starts_with("different processor")).is_empty():
        notes.append("latencies of different processors are shown and not compared")
    for study in frame["study"].unique(maintain_order=True):
        arms = frame.filter(pl.col("study") == study).unique(["trial_id", "trial_id_b"])
        both = arms.filter(pl.col("p_value").is_not_null())
        differ = both.filter(pl.col("p_holm") < 0.05).height
        what = "arms" if study == "variants" else "cells"
        notes.append(f"{study}: {both.height} of {arms.height} {what} have accuracy on both sides, {differ} differ at 5 % (Holm)")
    return notes


def check_table(lines: Sequence[Line]) -> Table:
    """Every line of a check; why a verdict is what it is stands behind it."""
    columns = (
        Column("arm", lambda line: f"{line.study}: {line.arm}", kind="name"),
        Column("seed", "seed", kind="words"),
        Column("number", lambda line: line.outcome.metric, kind="words"),
        Column("expected", lambda line: line.outcome.expected, kind="words"),
        Column("found", lambda line: line.outcome.found, kind="words"),
        Column("tolerance", lambda line: line.outcome.tolerance, kind="words"),
        Column("verdict", _verdict, kind="words", style=lambda line: _STYLES[line.outcome.verdict]),
    )
    return Table(check_summary(lines), columns, lines)


def _verdict(line: Line) -> str:
    because = line.outcome.because
    return f"{line.outcome.verdict}: {because}" if because else line.outcome.verdict


def check_summary(lines: Sequence[Line]) -> str:
    """How many numbers are within tolerance, off, and not compared."""
    off = len(misses(lines))
    skipped = sum(line.outcome.verdict == "not compared" for line in lines)
    return f"{len(lines)} numbers: {len(lines) - off - skipped} within tolerance, {off} out of it, {skipped} not compared"
