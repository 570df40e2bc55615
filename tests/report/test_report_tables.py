"""The printed tables: one line for each thing, in as many cells as there are headings."""

import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.tables import Findings
from lowbit_vit.report.allocation_tables import agreement_table, block_table, byte_words, mixed_table
from lowbit_vit.report.columns import Table
from lowbit_vit.report.number_format import probability
from lowbit_vit.report.roofline_tables import execution_table
from lowbit_vit.report.tables import result_table, time_table
from lowbit_vit.schema.config import STUDIES


@pytest.fixture(scope="module")
def findings() -> Findings:
    return synthetic.findings(*STUDIES)


def all_tables(findings: Findings) -> dict[str, Table]:
    tables = findings.tables
    return {
        "result": result_table(tables.paper_table, findings.results["variants"]),
        "agreement": agreement_table(tables),
        "blocks": block_table(tables.sensitivity),
        "mixed": mixed_table(tables),
        "times": time_table(findings.all_records),
    }


def test_every_line_has_a_cell_for_every_heading(findings: Findings) -> None:
    for name, table in all_tables(findings).items():
        for target in ("html", "latex"):
            lines = table.lines(target)
            assert lines, name
            assert all(len(line.cells) == len(table.shown(target)) for line in lines), name


def test_every_line_of_a_study_names_its_records(findings: Findings) -> None:
    known = {record.trial_id for record in findings.all_records}
    for name in ("result", "blocks", "mixed"):
        for row in all_tables(findings)[name].lines("html"):
            assert row.records, name
            assert set(row.records.split()) <= known, name


def test_eager_stands_beside_its_graph(findings: Findings) -> None:
    table = findings.tables.paper_table
    assert execution_table(table).lines("html") == []
    eager = table.filter((pl.col("arm") == "Baseline ViT") & (pl.col("batch_size") == 1))
    graph = eager.with_columns(pl.lit("cuda_graph").alias("execution"), pl.lit("as a graph").alias("arm"), pl.col("p50_ms") / 4)
    (row,) = execution_table(pl.concat([table, graph])).lines("html")
    assert [row.cells[0].text, row.cells[0].note, row.cells[-1].text] == ["Baseline ViT", "cuda_graph: as a graph", "4.00"]


def test_random_plans_are_one_line_for_each_k(findings: Findings) -> None:
    names = [row.cells[1].text for row in all_tables(findings)["mixed"].lines("html")]
    assert (names.count("random, 28 plans"), names.count("random, 39 plans")) == (1, 1)
    assert len(names) == 2 + 2 * 6


def test_unequal_bytes_are_said(findings: Findings) -> None:
    mixed = findings.tables.mixed
    assert "to the byte" in byte_words(mixed)
    heavier = mixed.with_columns(pl.when(pl.col("blocks") == "0 7").then(pl.lit(9.0)).otherwise("weight_mib").alias("weight_mib"))
    assert "k = 2 do not weigh the same" in byte_words(heavier)
    over = mixed.with_columns(pl.when(pl.col("strategy") == "milp").then(pl.lit(9.0)).otherwise("weight_mib").alias("weight_mib"))
    assert "plan milp of k = 2 is larger than its budget" in byte_words(over)


def test_the_p_of_an_arm_is_adjusted_for_all_arms_and_the_exact_one_is_its_hint(findings: Findings) -> None:
    table = findings.tables.paper_table.unique("arm", keep="first", maintain_order=True).filter(pl.col("p_value").is_not_null())
    lines = {row.cells[1].text: row.cells[3] for row in all_tables(findings)["result"].lines("html")}
    assert table.filter(pl.col("p_holm") > pl.col("p_value")).height > 0
    for row in table.to_dicts():
        assert lines[row["arm"]].note.endswith(f"Holm p {probability(row['p_holm'])}")
        assert lines[row["arm"]].hint.endswith(f"exact p {row['p_value']:.3g}")
