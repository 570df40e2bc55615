"""Printed table of the arms in CUDA graphs beside their reference."""

from typing import Any

import polars as pl

from lowbit_vit.analysis.graphs import MARGIN
from lowbit_vit.report.cells import DASH, MINUS, milliseconds, number, points, probability
from lowbit_vit.report.grids import Cell, Grid, Row
from lowbit_vit.report.limits import arm_cells


def graph_grid(frame: pl.DataFrame) -> Grid:
    """One line an arm, seed and batch size."""
    rows = [
        Row(
            (
                *arm_cells(row),
                Cell(milliseconds(row["p50_ms"])),
                _times(row),
                _flips(row),
                _accuracy(row),
                Cell(number(row["over_weights_mib"], 1)),
            ),
            records=row["records"],
        )
        for row in frame.to_dicts()
    ]
    headings = (
        "#", "arm", "batch", "P50 ms", "times the reference", "other class than fp32's", "against the reference, points",
        "peak over weights and cuBLAS, MiB",
    )  # fmt: skip
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({1}), name=1)


def graph_words(frame: pl.DataFrame) -> str:
    """What the table compares with what."""
    if frame.is_empty():
        return ""
    return (
        f"The reference is {frame.item(0, 'reference')}: times is its median latency over the arm's, with a 95 % interval. "
        f"p is of worse than the reference by {100 * MARGIN:g} points or more, by Tango's score test."
    )


def _times(row: dict[str, Any]) -> Cell:
    if row["arm"] == row["reference"]:
        return Cell("reference")
    note = "" if row["times_low"] is None else f"{row['times_low']:.3f} to {row['times_high']:.3f}"
    return Cell(f"{row['times']:.3f}", note)


def _flips(row: dict[str, Any]) -> Cell:
    if row["flips_of_fp32"] is None:
        return Cell(DASH)
    return Cell(f"{row['flips_of_fp32']}", f"the reference {row['reference_flips_of_fp32']}")


def _accuracy(row: dict[str, Any]) -> Cell:
    if row["difference"] is None:
        return Cell(DASH)
    return Cell(points(row["difference"]), f"{MINUS}{row['lost']} +{row['gained']} images, p {probability(row['p_inferior'])}")
