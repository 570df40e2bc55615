"""The printed tables: one line for each thing, in as many cells as there are headings."""

import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.tables import Findings, find, read_paper_table
from lowbit_vit.report import grids


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return find(*synthetic.fill(tmp_path_factory.mktemp("grids") / "root"))


def all_grids(findings: Findings) -> dict[str, grids.Grid]:
    tables = findings.tables
    paper = read_paper_table(synthetic.PROJECT)
    return {
        "result": grids.result_grid(tables.paper_table),
        "paper": grids.paper_grid(tables.paper_table, paper, batch_size=1),
        "not measured": grids.paper_grid(tables.paper_table.clear(), paper, batch_size=None),
        "agreement": grids.agreement_grid(tables),
        "blocks": grids.block_grid(tables.sensitivity),
        "mixed": grids.mixed_grid(tables),
        "missing": grids.missing_grid(tables.not_successful),
        "times": grids.time_grid(findings.all_records),
    }


def test_every_line_has_a_cell_for_every_heading(findings: Findings) -> None:
    for name, grid in all_grids(findings).items():
        assert grid.rows, name
        assert all(len(row.cells) == len(grid.headings) for row in grid.rows), name


def test_each_of_the_papers_rows_is_followed_by_ours(findings: Findings) -> None:
    kinds = [row.kind for row in all_grids(findings)["paper"].rows]
    assert kinds == ["paper", "plain"] * 3 + ["paper", "missing"] * 2


def test_random_plans_are_one_line_for_each_k(findings: Findings) -> None:
    names = [row.cells[1].text for row in all_grids(findings)["mixed"].rows]
    assert names.count("random, 20 plans") == 2
    assert len(names) == 2 + 2 * 4


def test_unequal_bytes_are_said(findings: Findings) -> None:
    mixed = findings.tables.mixed
    assert "to the byte" in grids.byte_words(mixed)
    heavier = mixed.with_columns(pl.when(pl.col("blocks") == "0 7").then(pl.lit(9.0)).otherwise("weight_mib").alias("weight_mib"))
    assert "k = 2 do not weigh the same" in grids.byte_words(heavier)
