"""What is printed of choosing formats from data is what the frames say; what there is not leaves no empty table behind."""

from collections.abc import Callable

import pytest

import synthetic
from lowbit_vit.analysis.tables import Findings, Tables
from lowbit_vit.report.allocation_tables import additivity_words, contest_table, estimator_table, scan_words
from lowbit_vit.schema.config import STUDIES
from lowbit_vit.schema.workspace import Workspace


@pytest.fixture(scope="module")
def findings() -> Findings:
    return synthetic.findings(*STUDIES)


@pytest.fixture(scope="module")
def tables(findings: Findings) -> Tables:
    return findings.tables


def test_each_format_and_direction_is_a_line_and_each_estimator_a_column(tables: Tables) -> None:
    table = estimator_table(tables.estimators)
    assert [column.heading for column in table.shown("html")] == [
        "weights",
        "measured",
        "weight error",
        "activation error",
        "gradient",
        "fisher",
    ]
    assert [row.cells[1].text for row in table.lines("html")[:2]] == ["8 blocks, each quantized alone", "8 blocks, each spared alone"]
    assert all(len(row.cells) == len(table.shown("html")) for row in table.lines("html"))


def test_each_contest_is_a_line_with_its_record(tables: Tables) -> None:
    table = contest_table(tables.contests)
    assert len(table.lines("html")) == 2 * 5
    assert {row.records for row in table.lines("html")} <= set(tables.mixed.get_column("trial_id"))
    assert all(len(row.cells) == len(table.shown("html")) for row in table.lines("html"))


def test_additivity_is_said_in_one_sentence_or_not_at_all(tables: Tables) -> None:
    words = additivity_words(tables.additivity_fits)
    assert "KL: R2 " in words
    assert "; flips read off the summed KL: R2 " in words
    assert additivity_words(tables.additivity_fits.clear()) == ""


def test_a_scans_cost_is_counted_over_its_cells(findings: Findings) -> None:
    records = findings.records["sensitivity"]
    assert scan_words(records, 8) == ""
    counted = []
    for record in records[:4]:
        assert record.evaluation is not None
        counted.append(record.model_copy(update={"evaluation": record.evaluation.model_copy(update={"block_evaluations": 6})}))
    assert scan_words([*counted, *records[4:]], 8) == "4 cells cost 24 block evaluations = 3.0 passes of the plain model."


def test_the_page_has_them_where_there_is_something_to_show(whole: Workspace, page_of: Callable[..., Workspace]) -> None:
    page = (whole.reports / "report.html").read_text()
    assert "Who wins at equal bytes" in page
    assert "Kendall&#39;s tau of cheap estimates" in page
    bare = (page_of("sensitivity").reports / "report.html").read_text()
    assert "Who wins at equal bytes" not in bare
