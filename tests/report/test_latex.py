"""Tables for a paper: as many cells a line as columns, and no text that TeX would take for a command."""

import re

import pytest

import synthetic
from lowbit_vit.report.beside import beside_paper
from lowbit_vit.report.grids import result_grid
from lowbit_vit.report.latex import beside_latex, escaped, grid_latex


@pytest.fixture(scope="module")
def documents() -> list[str]:
    tables = synthetic.findings("variants").tables
    tables_beside = beside_paper(tables.paper_table, synthetic.paper().table, [])
    return [grid_latex(result_grid(tables.paper_table)), *map(beside_latex, tables_beside)]


def test_every_line_has_a_cell_for_every_column(documents: list[str]) -> None:
    for document in documents:
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", document)
        assert columns is not None
        lines = [line for line in document.splitlines() if line.endswith(r" \\")]
        assert len(lines) > 5
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns[1])}
        assert [document.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]


def test_special_characters_print_as_themselves() -> None:
    assert escaped("50 % of a_b & {c} $d$ #1 ~ ^ \\") == (
        r"50 \% of a\_b \& \{c\} \$d\$ \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
