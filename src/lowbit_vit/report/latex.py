r"""The printed tables as LaTeX: one `tabular` with booktabs' rules a file, to be \input into a paper."""

from collections.abc import Sequence

from lowbit_vit.report.beside import Beside
from lowbit_vit.report.cells import DASH, MINUS
from lowbit_vit.report.grids import Grid

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    DASH: "--",
    MINUS: "$-$",
    "\N{NO-BREAK SPACE}": "~",
    "\n": " ",
}


def escaped(text: str) -> str:
    """Text in which no character is a command; TeX's special characters print as themselves."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def grid_latex(grid: Grid) -> str:
    """A printed table; a cell's note stands behind it in parentheses."""
    columns = "".join("l" if index in grid.words else "r" for index in range(len(grid.headings)))
    rows = [[f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in row.cells] for row in grid.rows]
    return _tabular(columns, grid.headings, rows)


def beside_latex(table: Beside) -> str:
    """The paper's table beside ours: two lines a row, as printed and as measured, the metrics as columns."""
    rows = []
    for row in table.rows:
        rows.append([row.model, "paper", *(cell.printed for cell in row.cells)])
        rows.append(["", row.missing or "ours", *(cell.ours for cell in row.cells)])
    return _tabular("ll" + "r" * len(table.headings), ("Model", "", *table.headings), rows)


def _tabular(columns: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in (headings, *rows)]
    head = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}", r"\toprule"]
    return "\n".join([*head, lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", ""])
