"""Columns: declared once, shown by every target; text stays text in each of them."""

import re

import pytest

import synthetic
from lowbit_vit.report.columns import Cell, Column, Table, escape_latex, escape_markdown, to_latex, to_markdown, to_terminal
from lowbit_vit.report.number_format import DASH, percent
from lowbit_vit.report.paper_comparison import beside_paper, paper_table
from lowbit_vit.report.tables import result_table


@pytest.fixture(scope="module")
def documents() -> list[str]:
    findings = synthetic.findings("variants")
    tables = findings.tables
    tables_beside = beside_paper(tables.paper_table, synthetic.paper().table, [])
    return [to_latex(table) for table in (result_table(tables.paper_table, findings.results["variants"]), *map(paper_table, tables_beside))]


def test_every_line_has_a_cell_for_every_column(documents: list[str]) -> None:
    for document in documents:
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", document)
        assert columns is not None
        lines = [line for line in document.splitlines() if line.endswith(r" \\")]
        assert len(lines) > 5
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns[1])}
        assert [document.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_special_characters_print_as_themselves() -> None:
    assert escape_latex("50 % of a_b & {c} $d$ #1 ~ ^ \\") == (
        r"50 \% of a\_b \& \{c\} \$d\$ \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


def test_markup_stays_text_in_markdown() -> None:
    assert escape_markdown("<script> *a* [b](c) | `d`\ne") == r"&lt;script&gt; \*a\* \[b\](c) \| \`d\` e"
    assert escape_markdown("a | b\n<script> *c* d_e") == r"a \| b &lt;script&gt; \*c\* d\_e"


COLUMNS = (
    Column("arm", "arm", note="in {dtype}", kind="name"),
    Column("Top-1 %", "top1", percent, lambda row: f"of {row['images']}", hint=lambda row: "exact"),
    Column("dtype", lambda row: row["dtype"].upper(), kind="words", targets=("terminal", "markdown")),
)
TABLE = Table("title", COLUMNS, [{"arm": "a|b_c", "top1": 0.5, "images": 10, "dtype": "bf16", "why": "x"}], note="a note", records="why")


def test_a_cell_is_read_printed_and_annotated() -> None:
    (line,) = TABLE.lines("html")
    assert line.cells == (Cell("a|b_c", "in bf16"), Cell("50.00", "of 10", "exact"))
    assert (line.records, line.missing) == ("x", False)


def test_null_is_a_dash_without_a_note_and_text_is_printed_as_it_is() -> None:
    assert COLUMNS[1].cell({"top1": None, "images": 10}) == Cell(DASH)
    assert COLUMNS[1].cell({"top1": "baseline", "images": 10}).text == "baseline"


def test_each_target_shows_its_columns_and_escapes() -> None:
    assert to_markdown(TABLE) == "| arm | Top-1 % | dtype |\n| --- | --: | --- |\n| a\\|b\\_c | 50.00 | BF16 |\n\na note\n"
    assert r"a\textbar{}b\_c (in bf16) & 50.00 (of 10) \\" in to_latex(TABLE)
    shown = to_terminal(TABLE)
    assert [str(column.header) for column in shown.columns] == ["arm", "Top-1 %", "dtype"]
    assert [column.justify for column in shown.columns] == ["left", "right", "left"]
    assert str(next(iter(shown.columns[0].cells))) == "a|b_c"
