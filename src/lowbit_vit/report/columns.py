"""Tables: each column is declared once; each target format has one renderer and one escaper.

The renderer for HTML is the macro `table` of templates/macros.html.jinja, where Jinja escapes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import rich.table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text

from lowbit_vit.errors import escape_controls
from lowbit_vit.report.number_format import DASH, MINUS

Target = Literal["html", "latex", "markdown", "terminal"]
Source = str | Callable[[Any], Any]  # a key or attribute of a row, or a function of it
PAGE: tuple[Target, ...] = ("html", "latex")
PLAIN: tuple[Target, ...] = ("markdown", "terminal")


@dataclass(frozen=True)
class Cell:
    """One printed cell.

    Attributes:
        text: the value; it stands alone in Markdown and in the terminal.
        note: stands below it on the page, behind it in LaTeX.
        hint: shown when the note is pointed at.
        style: rich's, for the terminal.
    """

    text: str
    note: str = ""
    hint: str = ""
    style: str = ""


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        heading: as printed.
        value: where a row's value is. Null prints as a dash without a note, text as it is.
        format: prints any other value.
        note: the cell's note: a function of the row, or text with keys of the row in braces.
        kind: numbers are right-aligned, words left-aligned; one column names the row.
        hint, style: functions of the row, of the cell's hint and style.
        targets: formats that have this column.
        no_wrap: in the terminal.
    """

    heading: str
    value: Source
    format: Callable[[Any], str] = str
    note: str | Callable[[Any], str | None] = ""
    kind: Literal["number", "words", "name"] = "number"
    hint: Callable[[Any], str] = lambda row: ""
    style: Callable[[Any], str] = lambda row: ""
    targets: tuple[Target, ...] = (*PAGE, *PLAIN)
    no_wrap: bool = False

    def cell(self, row: Any) -> Cell:
        """The printed cell of a row."""
        value = _read(self.value, row)
        if value is None:
            return Cell(DASH)
        note = self.note(row) if callable(self.note) else self.note.format_map(row) if self.note else ""
        return Cell(value if isinstance(value, str) else self.format(value), note or "", self.hint(row), self.style(row))


@dataclass(frozen=True)
class Line:
    """One printed row: its cells, the trial ids behind it separated by spaces, and whether it is of something without a result."""

    cells: tuple[Cell, ...]
    records: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Table:
    """Columns, and the rows to read them from: mappings or objects.

    Attributes:
        title: above the table in the terminal, its accessible name on the page.
        columns: in their order.
        rows: one a line.
        note: below the table in the terminal and in Markdown.
        records: where a row has the trial ids behind it.
        missing: where a row says that it has no result.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Any]
    note: str = ""
    records: Source | None = None
    missing: Source | None = None

    def shown(self, target: Target) -> list[Column]:
        """The columns of a format."""
        return [column for column in self.columns if target in column.targets]

    def lines(self, target: Target) -> list[Line]:
        """The printed rows of a format."""
        return [
            Line(
                tuple(column.cell(row) for column in self.shown(target)),
                (self.records and _read(self.records, row)) or "",
                bool(self.missing and _read(self.missing, row)),
            )
            for row in self.rows
        ]


def _read(source: Source, row: Any) -> Any:
    if callable(source):
        return source(row)
    return row[source] if isinstance(row, Mapping) else getattr(row, source)


_MARKDOWN = str.maketrans({"<": "&lt;", ">": "&gt;"} | {character: f"\\{character}" for character in "\\`*_[]|"})


def escape_markdown(text: str) -> str:
    """Text that Markdown prints as it stands, on one line, in a cell of a table as well."""
    return " ".join(text.translate(_MARKDOWN).split())


def to_markdown(table: Table) -> str:
    """GitHub's Markdown, the note behind the table."""
    columns = table.shown("markdown")
    rule = " | ".join("--:" if column.kind == "number" else "---" for column in columns)
    rows = [[column.heading for column in columns], *([cell.text for cell in line.cells] for line in table.lines("markdown"))]
    heading, *lines = (" | ".join(map(escape_markdown, row)) for row in rows)
    return "".join(f"| {line} |\n" for line in (heading, rule, *lines)) + (f"\n{escape_markdown(table.note)}\n" if table.note else "")


_TEX = str.maketrans(
    {character: f"\\{character}" for character in "{}$&#%_"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    | {DASH: "--", MINUS: "$-$", "\N{NO-BREAK SPACE}": "~", "\n": " "}
)


def escape_latex(text: str) -> str:
    """Text in which no character is a command; TeX's special characters print as themselves."""
    return text.translate(_TEX)


def to_latex(table: Table) -> str:
    r"""One `tabular` with booktabs' rules, to be \input into a paper; a cell's note stands behind it in parentheses."""
    columns = table.shown("latex")
    rows = [[f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in line.cells] for line in table.lines("latex")]
    heading, *lines = (" & ".join(map(escape_latex, row)) + r" \\" for row in ([column.heading for column in columns], *rows))
    alignment = "".join("r" if column.kind == "number" else "l" for column in columns)
    head = ["% needs \\usepackage{booktabs}", f"\\begin{{tabular}}{{{alignment}}}", r"\toprule", heading, r"\midrule"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{tabular}", ""])


def to_terminal(table: Table) -> rich.table.Table:
    """A table of rich, in which no text is markup, no name a command to the terminal, and no word is broken."""
    columns = table.shown("terminal")
    title, caption = (Text(text) if text else None for text in (table.title, table.note))
    shown = _Unbroken(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column.kind == "number" else "left"
        shown.add_column(Text(column.heading), justify=justify, overflow="fold", no_wrap=column.no_wrap)
    for line in table.lines("terminal"):
        shown.add_row(*(Text(escape_controls(cell.text, keep="\n"), style=cell.style) for cell in line.cells))
    return shown


class _Unbroken(rich.table.Table):
    """Columns as wide as their longest word at least: with rules between them, or closer, or else each row as a paragraph."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        cells = [[str(text) for text in (column.header, *column.cells)] for column in self.columns]
        most = [max(map(cell_len, column)) for column in cells]
        words = [max((cell_len(word) for text in column for word in text.split()), default=0) for column in cells]
        least = [full if column.no_wrap else word for full, word, column in zip(most, words, self.columns, strict=True)]
        for rules, spaces in ((True, 3 * len(cells) + 1), (False, len(cells))):
            spare = options.max_width - spaces - sum(least)
            if spare >= 0:
                wanted = sum(most) - sum(least)
                for column, low, high in zip(self.columns, least, most, strict=True):
                    column.width = high if wanted <= spare else low + (high - low) * spare // wanted
                if not rules:
                    self.box, self.padding = None, (0, 1, 0, 0)
                yield from super().__rich_console__(console, options)
                return
        yield self.title or Text()
        for first, *others in zip(*(column.cells for column in self.columns), strict=True):
            named = [f"{column.header}: {cell}" for column, cell in zip(self.columns[1:], others, strict=True)]
            yield from (Text(str(first), style="bold"), Padding(Text(" · ".join(named)), (0, 0, 0, 2)))
        yield self.caption or Text()
