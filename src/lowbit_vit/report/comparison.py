"""Two runs side by side, and a run against its reference, as tables for the terminal and in Markdown. No torch."""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
from rich.table import Table
from rich.text import Text

from lowbit_vit.analysis.check import Line, Verdict, misses
from lowbit_vit.analysis.compare import PAIRED
from lowbit_vit.analysis.sides import Side, origins
from lowbit_vit.report.cells import DASH, milliseconds, percent, points, probability

_STYLES: dict[Verdict, str] = {"within": "green", "miss": "bold red", "not compared": "yellow"}
_CHECK_HEADINGS = ("arm", "seed", "number", "expected", "found", "tolerance", "verdict")


def comparison_table(frame: pl.DataFrame, first: Side, second: Side, *, margin: float) -> Table:
    """The variants study of both sides: one line for each arm and batch size."""
    headings, rows = _comparison_grid(frame, margin=margin)
    table = Table(title=Text(f"A: {first.name}   B: {second.name}"), title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index in (0, len(headings) - 1) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def comparison_markdown(frame: pl.DataFrame, first: Side, second: Side, *, margin: float) -> str:
    """The same in GitHub's Markdown, with the notes behind it."""
    headings, rows = _comparison_grid(frame, margin=margin)
    notes = "\n".join(f"- {_escaped(note)}" for note in comparison_notes(frame, first, second))
    return f"{_markdown(headings, rows)}\n{notes}\n"


def comparison_notes(frame: pl.DataFrame, first: Side, second: Side) -> list[str]:
    """What the two sides are, in what they differ beyond the arms, and the other studies in one line each."""
    before, after = origins(first), origins(second)
    notes = [f"{name}: " + (before[name] if before[name] == after[name] else f"A {before[name]}; B {after[name]}") for name in before]
    settings = sorted({name for text in frame["settings_differ"].drop_nulls() for name in text.split(", ")})
    if settings:
        notes.append(f"settings of arms differ: {', '.join(settings)}")
    unpaired = frame.filter(pl.col("accuracy_test").is_not_null() & (pl.col("accuracy_test") != PAIRED))
    if not unpaired.is_empty():
        notes.append("accuracy is compared unpaired, because the test images are others: that sees less than a paired test")
    if not frame.filter(pl.col("timing").str.starts_with("different card")).is_empty():
        notes.append("latencies of different cards are shown and not compared")
    for study in frame["study"].unique(maintain_order=True):
        arms = frame.filter(pl.col("study") == study).unique(["trial_id", "trial_id_b"])
        both = arms.filter(pl.col("p_value").is_not_null())
        differ = both.filter(pl.col("p_holm") < 0.05).height
        notes.append(f"{study}: {both.height} of {arms.height} arms have accuracy on both sides, {differ} differ at 5 % (Holm)")
    return notes


def _comparison_grid(frame: pl.DataFrame, *, margin: float) -> tuple[list[str], list[list[str]]]:
    headings = [
        "arm",
        "seed",
        "Top-1 % A",
        "Top-1 % B",
        "B - A, points (95 %)",
        "p (Holm)",
        f"p, B worse by {100 * margin:g} point{'' if margin == 0.01 else 's'}",
        "batch",
        "P50 ms A",
        "P50 ms B",
        "B / A (95 %)",
        "compared",
    ]
    rows: list[list[str]] = []
    before: tuple[Any, Any] | None = None
    for row in frame.filter(pl.col("study") == "variants").iter_rows(named=True):
        arm = (row["trial_id"], row["trial_id_b"])
        rows.append([*(_arm_cells(row) if arm != before else [""] * 7), *_time_cells(row)])
        before = arm
    return headings, rows


def _arm_cells(row: dict[str, Any]) -> list[str]:
    difference = points(row["difference"])
    if row["difference"] is not None:
        difference += f" ({points(row['difference_low'])} to {points(row['difference_high'])})"
    label = row["arm"] or row["arm_b"]
    return [
        label if row["arm_b"] in (None, label) else f"{label} / {row['arm_b']}",
        str(row["seed"]),
        percent(row["top1"]),
        percent(row["top1_b"]),
        difference,
        probability(row["p_holm"]),
        probability(row["p_inferior"]),
    ]


def _time_cells(row: dict[str, Any]) -> list[str]:
    ratio = DASH if row["ratio"] is None else f"{row['ratio']:.2f}"
    if row["ratio_low"] is not None:
        ratio += f" ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
    batch = DASH if row["batch_size"] is None else str(row["batch_size"])
    return [batch, milliseconds(row["p50_ms"]), milliseconds(row["p50_ms_b"]), ratio, _how(row)]


def _how(row: dict[str, Any]) -> str:
    """How accuracy and time were compared; where an arm has no result, which."""
    missing = [f"{side} {row[key]}" for side, key in (("A", "status"), ("B", "status_b")) if row[key] != "success"]
    if missing:
        return "; ".join(missing)
    timing = None if row["timing"] is None else str(row["timing"]).split(":", maxsplit=1)[0]
    return "; ".join(part for part in (row["accuracy_test"], timing) if part)


def check_table(lines: Sequence[Line]) -> Table:
    """Every line of a check; why a verdict is what it is stands behind it."""
    table = Table(title=Text(check_summary(lines)), title_justify="left")
    for heading in _CHECK_HEADINGS:
        table.add_column(heading, overflow="fold")
    for line, row in zip(lines, _check_rows(lines), strict=True):
        table.add_row(*(Text(cell) for cell in row[:-1]), Text(row[-1], style=_STYLES[line.outcome.verdict]))
    return table


def check_markdown(lines: Sequence[Line]) -> str:
    """The same in GitHub's Markdown."""
    return f"{check_summary(lines)}.\n\n{_markdown(_CHECK_HEADINGS, _check_rows(lines))}"


def check_summary(lines: Sequence[Line]) -> str:
    """How many numbers are within tolerance, off, and not compared."""
    off = len(misses(lines))
    skipped = sum(line.outcome.verdict == "not compared" for line in lines)
    return f"{len(lines)} numbers: {len(lines) - off - skipped} within tolerance, {off} out of it, {skipped} not compared"


def _check_rows(lines: Sequence[Line]) -> list[list[str]]:
    return [
        [f"{line.study}: {line.arm}", str(line.seed), outcome.metric, outcome.expected, outcome.found, outcome.tolerance, _verdict(line)]
        for line in lines
        for outcome in [line.outcome]
    ]


def _verdict(line: Line) -> str:
    because = line.outcome.because
    return f"{line.outcome.verdict}: {because}" if because else line.outcome.verdict


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(_markdown_lines(headings, rows)) + "\n"


def _markdown_lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (headings, ["---"] * len(headings), *rows):
        yield f"| {' | '.join(_escaped(cell) for cell in row)} |"


def _escaped(text: str) -> str:
    """Text of records stays text: neither a cell's border nor HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")
