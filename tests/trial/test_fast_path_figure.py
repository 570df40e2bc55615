"""The fast path's figure is of its record: bars are as long as what was timed, or as their kernels where those overlap."""

import json

import polars as pl
import pytest

from fast_path_figure import BARS, FIGURE, RECORD, Bar, frame

SIDES = {
    int(batch): next(group for group in groups.values() if group.get("kernels_us"))
    for batch, groups in json.loads(RECORD.read_text())["batches"].items()
}


@pytest.mark.parametrize("batch", SIDES)
@pytest.mark.parametrize("bar", BARS, ids=lambda bar: bar.name)
def test_a_bar_is_as_long_as_its_call(bar: Bar, batch: int) -> None:
    sides = SIDES[batch]
    drawn = frame(json.loads(RECORD.read_text())).filter((pl.col("row") == bar.name) & (pl.col("batch_size") == batch))
    kernels = sum(sides["kernels_us"][bar.kernels].values())
    assert drawn["us"].sum() == pytest.approx(max(1000 * sides["median_ms"][bar.timed], kernels))
    assert drawn.filter(pl.col("class") == "gemm")["us"].item() > 0


def test_the_committed_picture_has_every_bar() -> None:
    text = FIGURE.read_text()
    assert all(bar.name in text for bar in BARS)
