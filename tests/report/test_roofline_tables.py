import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.tables import Tables
from lowbit_vit.analysis.variants import invariances
from lowbit_vit.report.number_format import DASH
from lowbit_vit.report.roofline_tables import invariance_table, memory_table, roofline_table
from lowbit_vit.study.cells import cells

PARTS = pl.DataFrame(
    {
        "order": [0],
        "arm": ["NF4"],
        "batch_size": [1],
        "weights_mib": [164.7],
        "resident_mib": [0.4],
        "workspace_mib": [32.0],
        "activation_mib": [11.5],
        "peak_mib": [208.6],
        "reserved_mib": [240.0],
        "process_mib": [None],
        "records": ["first second"],
    },
    schema_overrides={"process_mib": pl.Float64},
)


@pytest.fixture(scope="module")
def invariance() -> pl.DataFrame:
    trial = synthetic.with_invariance(cells(synthetic.load_profile(synthetic.PROJECT / "profiles" / "demo.yaml"), "variants")[0])
    return invariances(Frames([Result(synthetic.succeeded(trial)[0], None)]))


@pytest.fixture(scope="module")
def tables() -> Tables:
    return synthetic.findings("variants").tables


def test_every_line_has_a_cell_for_every_heading_and_names_its_records(tables: Tables, invariance: pl.DataFrame) -> None:
    for table in (roofline_table(tables.rooflines), invariance_table(invariance), memory_table(PARTS)):
        assert table.lines("html")
        assert all(len(row.cells) == len(table.shown("html")) for row in table.lines("html"))
        assert all(row.records for row in table.lines("html"))


def test_an_arm_stands_as_far_over_its_roofline_as_its_latency(tables: Tables) -> None:
    first = roofline_table(tables.rooflines).lines("html")[0]
    p50, limit, over = (float(first.cells[column].text) for column in (3, 4, 5))
    assert over == pytest.approx(p50 / limit, rel=0.05)
    assert first.cells[4].note == "bound by memory"


def test_a_part_that_was_not_measured_is_a_dash_and_not_a_zero() -> None:
    cells = [cell.text for cell in memory_table(PARTS).lines("html")[0].cells]
    assert cells == ["1", "NF4", "1", "164.7", "0.4", "32.0", "11.5", "208.6", DASH]


def test_logits_equal_to_the_bit_are_said_so(invariance: pl.DataFrame) -> None:
    equal = invariance.with_columns(pl.lit(value=True).alias("bit_equal"), pl.lit(0.0).alias("max_abs_logit_difference"))
    assert [cell.text for cell in invariance_table(equal).lines("html")[0].cells[-2:]] == ["0", "yes"]
    assert [cell.text for cell in invariance_table(invariance).lines("html")[0].cells[-2:]] == ["2e-06", "no"]
