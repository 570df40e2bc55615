"""Tables as people keep them, CSV, Markdown, LaTeX or HTML, as rows of cells: text alone, a merged cell in each place that it covers."""

import codecs
import csv
import html.parser
import io
import re
import unicodedata
from collections import Counter
from itertools import count, product
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

from lowbit_vit.errors import DataError, first_line

Rows = list[list[str]]


class Grid(NamedTuple):
    """The cells of a table, and what parts them in a CSV; "" in other forms."""

    rows: Rows
    separator: str


# HTML's own bound for a merged cell; a file may ask for more.
_MOST_SPANNED = 1_000
_UNSEEN = ("Cf", "Cn", "Co")
_RULE = re.compile(r"^[ >]*\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)+\|?[ \t]*$|^[ >]*\|[ \t]*:?-+:?[ \t]*\|[ \t]*$", re.MULTILINE)


def read_grids(path: Path) -> list[Grid]:
    """Every table of a file, in its order, without blank rows.

    Raises:
        DataError: the file is missing, not text, holds no table, or a cell holds control characters; one line.
    """
    text = _decoded(path)
    try:
        if re.search(r"\\begin\{(tabular|longtable|array)", text):
            grids = _latex(text)
        elif _RULE.search(text):
            grids = _html(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
        elif re.search(r"<t[rdh]\b", text, flags=re.IGNORECASE):
            grids = _html(text)
        else:
            grids = [_csv(text)]
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a parser says of a file is said of that file)
        raise DataError(f"{path}: not a table in CSV, Markdown, LaTeX or HTML: {first_line(error)!a}") from None
    tidy = [Grid(_tidy(path, grid.rows), grid.separator) for grid in grids]
    return [grid for grid in tidy if grid.rows]


def _decoded(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path}: no such table")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeError:
        raise DataError(f"{path}: not text in UTF-8; save the table as UTF-8 (in Excel: CSV UTF-8)") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _tidy(path: Path, grid: Rows) -> Rows:
    """Cells on one line, without characters that have no width or no shape; control characters are refused, as they reach a terminal."""
    rows = [["".join(c for c in " ".join(cell.split()) if unicodedata.category(c) not in _UNSEEN) for cell in row] for row in grid]
    rows = [row for row in rows if any(row)]
    for number, cell in ((number, cell) for number, row in enumerate(rows, 1) for cell in row):
        if any(unicodedata.category(character) in {"Cc", "Cs"} for character in cell):
            raise DataError(f"{path}: line {number}: the cell {cell[:40]!a} holds control characters; take them out")
    return rows


def _csv(text: str) -> Grid:
    """Parted by what `sep=` in the first line says, else by what parts most lines into equally many cells."""
    first, _, rest = text.partition("\n")
    stated = re.fullmatch(r'"?sep=(.)"?', first.strip())
    body, separators = (rest, stated[1]) if stated else (text, ",;\t")
    return max((Grid(list(csv.reader(io.StringIO(body), delimiter=one)), one) for one in separators), key=_evenness)


def _evenness(grid: Grid) -> tuple[float, int]:
    widths = [len(row) for row in grid.rows if any(map(str.strip, row))]
    width, number = Counter(widths).most_common(1)[0] if widths else (0, 0)
    return (number / len(widths), width) if width > 1 else (0.0, 0)


class _Tables(html.parser.HTMLParser):
    """Collects the cells of each <table>; what is in <sup>, <script> or <style> is no cell's text."""

    def __init__(self) -> None:
        super().__init__()
        # Of each table, the text by line and column, and the number of lines; those that no </table> has closed.
        self.tables: list[dict[tuple[int, int], str]] = []
        self.lines: list[int] = []
        self.open: list[int] = []
        # Of the open cell.
        self.text: list[str] | None = None
        self.span = (1, 1)
        self.silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._close()
            self.open.append(len(self.tables))
            self.tables.append({})
            self.lines.append(0)
        elif tag == "tr" and self.open:
            self._close()
            self.lines[self.open[-1]] += 1
        elif tag in {"td", "th"} and self.open and self.lines[self.open[-1]]:
            self._close()
            self.text = []
            spans = [dict(attrs).get(name) or "1" for name in ("rowspan", "colspan")]
            rows, columns = (min(_MOST_SPANNED, max(1, int(span))) if re.fullmatch(r"\d{1,9}", span) else 1 for span in spans)
            self.span = rows if rows * columns <= _MOST_SPANNED else 1, columns
        elif tag in {"sup", "script", "style"}:
            self.silent += 1
        elif tag in {"br", "p", "div"}:
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th", "tr", "table"}:
            self._close()
        if tag == "table" and self.open:
            self.open.pop()
        elif tag in {"sup", "script", "style"}:
            self.silent = max(0, self.silent - 1)

    def handle_data(self, data: str) -> None:
        if self.text is not None and not self.silent:
            self.text.append(data)

    def _close(self) -> None:
        """Put the open cell into the first free place of its line, and into all that it spans."""
        if self.text is not None and self.open:
            cells, line, (rows, columns) = self.tables[self.open[-1]], self.lines[self.open[-1]] - 1, self.span
            at = next(column for column in count() if (line, column) not in cells)
            cells |= dict.fromkeys(product(range(line, line + rows), range(at, at + columns)), "".join(self.text))
            self.text = None


def _html(text: str) -> list[Grid]:
    reader = _Tables()
    reader.feed(text)
    reader.close()
    grids = []
    for cells, lines in zip(reader.tables, reader.lines, strict=True):
        width = 1 + max((column for line, column in cells if line < lines), default=-1)
        grids.append(Grid([[cells.get((line, column), "") for column in range(width)] for line in range(lines)], ""))
    return grids


_TEX_WORDS = {"pm": "\N{PLUS-MINUS SIGN}", "times": "\N{MULTIPLICATION SIGN}", "mu": "\N{MICRO SIGN}", "Delta": "\N{INCREMENT}", "sim": "~"}
_TEX_WORDS |= {"uparrow": "\N{UPWARDS ARROW}", "downarrow": "\N{DOWNWARDS ARROW}", "checkmark": "\N{CHECK MARK}", "approx": "~"}
_TEX_RULES = r"\\(?:toprule|midrule|bottomrule|hline|hdashline|specialrule(?:\{[^}]*\}){3}|"
_TEX_RULES += r"addlinespace(?:\[[^]]*\])?|(?:cmidrule|cline)(?:\[[^]]*\])?(?:\([^)]*\))?\{[^}]*\})"
_TEX_WITH_SETTING = (
    r"\\(?:cellcolor|rowcolor|color|textcolor|hspace|vspace|cite[pt]?|ref|label|footnote|textsuperscript|tnote)\*?(?:\[[^]]*\])?\{[^{}]*\}"
)


def _latex(text: str) -> list[Grid]:
    bare = re.sub(r"(?<!\\)%.*", "", text)
    tables = re.finditer(r"\\begin\{(tabular[*x]?|longtable|array)\}(.*?)\\end\{\1\}", bare, flags=re.DOTALL)
    return [Grid(_tex_rows(table[2]), "") for table in tables]


def _tex_rows(body: str) -> Rows:
    body = re.sub(_TEX_RULES, "", body)
    # The column types, after a width or a position.
    body = re.sub(r"^\s*(?:\[[^]]*\])?(?:\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}\s*){1,2}", "", body)
    # Lines of one cell.
    body = re.sub(r"\\(?:makecell|shortstack|thead)(?:\[[^]]*\])?\{[^{}]*\}", lambda cell: cell[0].replace("\\\\", " "), body)
    grid: Rows = []
    for line in re.split(r"\\\\\*?(?:\s*\[-?[\d.]+ *[a-z]+\])?|\\tabularnewline", body):
        grid.append([])
        for cell in re.split(r"(?<!\\)&", line):
            merged = re.match(r"\s*\\multicolumn\{(\d{1,4})\}\{(?:[^{}]|\{[^{}]*\})*\}", cell)
            times = min(_MOST_SPANNED, max(1, int(merged[1]))) if merged else 1
            grid[-1] += [_tex_text(cell[merged.end() :] if merged else cell)] * times
    width = max(map(len, filter(any, grid)), default=0)
    return [row + [""] * (width - len(row)) for row in grid]


def _tex_text(cell: str) -> str:
    """A cell without commands: what they enclose stays, but for colours and footnotes."""
    text = re.sub(r"\\multirow\*?(?:\[[^]]*\])?\{[^{}]*\}(?:\[[^]]*\])?\{[^{}]*\}", "", re.sub(_TEX_WITH_SETTING, "", cell))
    text = text.replace("{,}", ",").replace(r"\,", "").replace("~", " ").replace("---", "-").replace("--", "-")
    text = re.sub(r"\\([%&#_$])", r"\1", re.sub(r"(?<!\\)[$]", "", text))
    text = re.sub(r"\\([A-Za-z]+)\*?\s*", lambda word: _TEX_WORDS.get(word[1], ""), text)
    return re.sub(r"[{}]|[_^](?=\s*[{*\N{PLUS-MINUS SIGN}])", "", text).strip()
