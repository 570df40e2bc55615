"""The classes that lose most: a line for each arm that loses an image, worst first."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.tables import Findings
from lowbit_vit.report.number_format import MINUS
from lowbit_vit.report.page import build_report
from lowbit_vit.report.tables import MOST_CLASSES, class_table

HOSTILE = "</td><script>alert(1)</script>"


@pytest.fixture(scope="module")
def findings() -> Findings:
    return synthetic.findings("variants")


def test_each_arm_that_loses_images_has_a_line_with_its_worst_classes_first(findings: Findings) -> None:
    tables = findings.tables
    losing = tables.classes.filter(pl.col("lost") > 0)
    table = class_table(tables)
    assert [row.cells[1].text for row in table.lines("html")] == losing.get_column("arm").unique(maintain_order=True).to_list() != []
    for row in table.lines("html"):
        assert len(row.cells) == len(table.shown("html"))
        own = (
            losing.filter(pl.col("arm") == row.cells[1].text).sort("lost", "label", descending=[True, False]).head(MOST_CLASSES).to_dicts()
        )
        shown = [cell for cell in row.cells[2:] if cell.text]
        assert [cell.text for cell in shown] == [line["class"] for line in own]
        for cell, line in zip(shown, own, strict=True):
            assert cell.note.startswith(f"{MINUS}{line['lost']} +{line['gained']} of {line['images']} images")
        known = tables.variants.filter(pl.col("arm") == row.cells[1].text).get_column("trial_id")
        assert set(row.records.split()) == set(known)


def test_no_line_where_no_class_loses_an_image(findings: Findings) -> None:
    nothing = findings.tables.classes.with_columns(pl.lit(0, dtype=pl.Int64).alias("lost"))
    assert class_table(replace(findings.tables, classes=nothing)).lines("html") == []
    assert class_table(replace(findings.tables, classes=nothing.clear())).lines("html") == []


def test_the_page_has_the_section_and_escapes_class_names(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    for path in workspace.records("variants").glob("*.json"):
        record = synthetic.read_record(path)
        if record.evaluation is not None:
            names = tuple(f"{HOSTILE} {label}" for label in range(synthetic.CLASSES))
            changed = record.model_copy(update={"evaluation": record.evaluation.model_copy(update={"class_names": names})})
            synthetic.write_record(changed, path.parent)
    page = build_report(profile, workspace).read_text()
    assert "<h3>Classes that lose most images</h3>" in page
    assert "&lt;/td&gt;&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert r"\textless{}script\textgreater{}" in (workspace.reports / "tables" / "lost.tex").read_text()
