"""Printed tables of what stands beside the latencies: rooflines, the parts of the memory peaks, batch invariance."""

from typing import Any

import polars as pl

from lowbit_vit.report.cells import milliseconds, number
from lowbit_vit.report.grids import Cell, Grid, Row


def arm_cells(row: dict[str, Any]) -> tuple[Cell, Cell, Cell]:
    """What an arm's line at one batch size begins with: its number, its name, the batch size."""
    return Cell(str(row["order"] + 1)), Cell(row["arm"]), Cell(str(row["batch_size"]))


def roofline_grid(frame: pl.DataFrame) -> Grid:
    """One line an arm and batch size: the median latency, the device's own limit, and how far above it the arm is."""
    rows = [
        Row(
            (
                *arm_cells(row),
                Cell(milliseconds(row["p50_ms"])),
                Cell(milliseconds(row["roofline_ms"]), f"bound by {row['bound']}"),
                Cell(number(row["over_roofline"], 1)),
                Cell(number(row["tflop_per_s"], 1 if row["tflop_per_s"] >= 1 else 4)),
                Cell(number(row["ceiling_tflop_per_s"], 1 if row["ceiling_tflop_per_s"] >= 1 else 4)),
                Cell(number(row["ceiling_gb_per_s"], 0)),
            ),
            records=row["records"],
        )
        for row in frame.to_dicts()
    ]
    headings = (
        "#",
        "arm",
        "batch",
        "P50 ms",
        "roofline ms",
        "P50 / roofline",
        "TFLOP/s",
        "matmul ceiling, TFLOP/s",
        "copy ceiling, GB/s",
    )
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({1}), name=1)


def memory_grid(frame: pl.DataFrame) -> Grid:
    """One line an arm and batch size: the parts of the peak, MiB."""
    parts = ("weights_mib", "resident_mib", "workspace_mib", "activation_mib", "peak_mib", "process_mib")
    rows = [
        Row(
            (*arm_cells(row), *(Cell(number(row[name], 1)) for name in parts)),
            records=row["records"],
        )
        for row in frame.to_dicts()
    ]
    headings = ("#", "arm", "batch", "weights", "images, constants", "cuBLAS", "activations, scratch", "peak MiB", "process MiB (NVML)")
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({1}), name=1)


def invariance_grid(frame: pl.DataFrame) -> Grid:
    """One line an arm: whether the same images get the same logits at two batch sizes."""
    rows = [
        Row(
            (
                Cell(str(row["order"] + 1)),
                Cell(row["arm"]),
                Cell(f"{row['first_batch']}, {row['second_batch']}"),
                Cell(str(row["images"])),
                Cell(str(row["flips"])),
                Cell("0" if row["bit_equal"] else f"{row['max_abs_logit_difference']:.2g}"),
                Cell("yes" if row["bit_equal"] else "no"),
            ),
            records=row["records"],
        )
        for row in frame.to_dicts()
    ]
    headings = ("#", "arm", "batches", "images", "flipped", "greatest difference of a logit", "equal to the bit")
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({1}), name=1)
