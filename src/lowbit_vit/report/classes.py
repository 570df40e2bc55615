"""Where each arm loses images: the classes that lose most against the baseline, as a printed table, and how they are named."""

from typing import Any

import polars as pl

from lowbit_vit.analysis.classes import most_lost
from lowbit_vit.analysis.tables import Tables
from lowbit_vit.report.cells import MINUS
from lowbit_vit.report.grids import Cell, Grid, Row

MOST = 3


def lost_grid(tables: Tables) -> Grid:
    """One line an arm that loses an image: the classes that lose most, worst first; no line where no class loses any."""
    done = tables.variants.filter(pl.col("status") == "success")
    behind = done.group_by("order", "arm").agg(pl.col("trial_id").unique(maintain_order=True).str.join(" ").alias("records"))
    lossy = most_lost(tables.classes, most=MOST).join(behind, on=["order", "arm"], how="left", maintain_order="left")
    rows = []
    for _, lines in lossy.group_by("order", "arm", maintain_order=True):
        found = lines.to_dicts()
        cells = [_cell(row) for row in found] + [Cell("")] * (MOST - len(found))
        rows.append(Row((Cell(str(found[0]["number"])), Cell(found[0]["arm"]), *cells), records=found[0]["records"]))
    headings = ("#", "arm", "class that loses most", "second", "third")
    return Grid(headings=headings, rows=tuple(rows), words=frozenset(range(1, len(headings))), name=1)


def _cell(row: dict[str, Any]) -> Cell:
    return Cell(row["class"], f"{MINUS}{row['lost']} +{row['gained']} of {row['images']} images; most wrong ones as {row['taken_for']}")
