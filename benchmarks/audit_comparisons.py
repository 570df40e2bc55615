"""Tables that compare formats, as people publish them, sound or with one fault: what the audit's newer checks are measured on.

Rows are models x formats (x batch sizes), named by one column or by several; columns are measured, or computed from others by a formula
that is drawn: from what was measured, from what is printed, or from another pass. Files are CSV with a comma, a semicolon or a tab,
Markdown, LaTeX or HTML; decimals follow a point or a comma. Some rows are innocently equal, some columns innocently constant.
"""

import html
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

BITS = {"FP32": 32, "FP16": 16, "BF16": 16, "INT8": 8, "W8A8": 8, "NF4": 4, "INT4": 4}
FORMULAS: dict[str, Callable[[float, float], float]] = {
    "old / new": lambda old, new: old / new,
    "new / old": lambda old, new: new / old,
    "(old - new) / old": lambda old, new: (old - new) / old,
    "(new - old) / old": lambda old, new: (new - old) / old,
    "new - old": lambda old, new: new - old,
    "old - new": lambda old, new: old - new,
    "(old - new) / new": lambda old, new: (old - new) / new,
    "1 + (old - new) / old": lambda old, new: 1 + (old - new) / old,
}
WORDS = {
    "old / new": ("Speedup", "Speed-up vs {base} (x)", "Speedup ↑"),
    "new / old": ("Relative latency", "Latency ratio"),
    "(old - new) / old": ("Latency reduction (%)", "Reduction", "Latency saving"),
    "(new - old) / old": ("Latency change (%)", "Overhead"),
    "new - old": ("Δ Latency", "Latency difference"),
    "old - new": ("Latency gain", "Latency drop"),
    "(old - new) / new": ("Latency improvement (%)", "Improvement"),
    "1 + (old - new) / old": ("Latency Improvement", "Improvement"),
}
FORMS = ("comma", "semicolon", "tab", "markdown", "latex", "html")
APART = 0.0041


@dataclass
class Compared:
    """A table with what it was made from.

    Attributes:
        headings: of all columns.
        cells: by row, as printed with a point.
        names: columns that name the row.
        formula: of the column `derived`, if there is one.
        old: for each row the one that it is compared with; itself if with none.
        form: one of FORMS.
        comma: whether decimals follow a comma.
        follows: whether the derived numbers follow from the printed ones to the last digit.
    """

    headings: list[str]
    cells: list[list[str]]
    names: int
    formula: str = ""
    derived: int = -1
    old: list[int] = field(default_factory=list)
    form: str = "comma"
    comma: bool = False
    follows: bool = False

    def at(self, start: str) -> int:
        """The column whose heading starts so, or -1."""
        return next((at for at, heading in enumerate(self.headings) if heading.startswith(start)), -1)

    @property
    def text(self) -> str:
        """The file."""
        shown = [[cell.replace(".", ",") if self.comma and at >= self.names else cell for at, cell in enumerate(row)] for row in self.cells]
        rows = [self.headings, *shown]
        if self.form in {"comma", "semicolon", "tab"}:
            mark = {"comma": ",", "semicolon": ";", "tab": "\t"}[self.form]
            return "\n".join(mark.join(f'"{cell}"' if mark in cell else cell for cell in row) for row in rows) + "\n"
        if self.form == "markdown":
            lines = [" | ".join(row) for row in rows]
            return "\n".join(f"| {line} |" for line in [lines[0], " | ".join("---" for _ in self.headings), *lines[1:]]) + "\n"
        if self.form == "latex":
            body = "\\\\\n".join(" & ".join(cell.replace("%", "\\%").replace("_", "\\_") for cell in row) for row in rows)
            return f"\\begin{{tabular}}{{{'l' * len(self.headings)}}}\\toprule\n{body}\\\\\\bottomrule\\end{{tabular}}\n"
        lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
        return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def sound(chance: random.Random) -> Compared:
    """A table without a fault."""
    base, *formats = [chance.choice(("FP32", "FP16")), *chance.sample(("INT8", "W8A8", "NF4", "INT4", "BF16"), chance.randint(1, 3))]
    models = [f"net{chance.choice('abcdef')}{number}" for number in range(chance.randint(1, 8))]
    batches = sorted(chance.sample((1, 8, 16, 32, 64), chance.choice((1, 1, 2, 3))))
    rows = [(model, weights, batch) for batch in batches for model in models for weights in (base, *formats)]
    speed = {model: math.exp(chance.uniform(0, 5)) for model in models}
    faster = {weights: math.exp(chance.uniform(-0.3, 0.9)) for weights in formats} | {base: 1.0}
    parameters = {model: math.exp(chance.uniform(15.5, 19.5)) for model in models}
    latency = [
        speed[model] * batch**0.8 / faster[weights] * math.exp(0 if weights == base else chance.gauss(0, 0.1))
        for model, weights, batch in rows
    ]
    first = chance.random() < 0.2
    old = [0 if first else at - at % (1 + len(formats)) for at in range(len(rows))]
    table = _named(chance, rows, batches)
    table.old = old
    shown = _add(table, "Latency (ms)", latency, chance.choice((1, 2, 3)) + max(0, 1 - math.floor(math.log10(min(latency)))))
    if chance.random() < 0.5:
        share = {weights: chance.uniform(0.85, 0.995) for weights in formats}
        bits = [
            BITS[weights] if weights == base else share[weights] * BITS[weights] + (1 - share[weights]) * BITS[base]
            for _, weights, _ in rows
        ]
        sizes = [parameters[model] * own / 8e6 for (model, _, _), own in zip(rows, bits, strict=True)]
        _add(table, "Size (MB)", sizes, chance.choice((1, 2)))
        if chance.random() < 0.5:
            _add(table, "Params (M)", [parameters[model] / 1e6 for model, _, _ in rows], chance.choice((1, 2)))
    if chance.random() < 0.5:
        right = [chance.randint(30_000, 45_000) / 500 for _ in rows]
        decimals = chance.choice((1, 2, 3))
        _add(table, "Top-1 (%)", right, decimals)
        if chance.random() < 0.5:
            _add(table, "Top-1 error (%)", [100 - rate for rate in right], decimals)
    if chance.random() < 0.2:
        watt = [chance.uniform(100, 700) for _ in rows]
        apart = 0.1 if chance.random() < 0.3 else 0.0
        _add(table, "Power (W)", watt, 0)
        joule = [power * ms / 1000 * (1 + chance.uniform(-apart, apart)) for power, ms in zip(watt, latency, strict=True)]
        _add(table, "Energy (J)", joule, 2 + max(0, 1 - math.floor(math.log10(min(joule)))))
    if chance.random() < 0.1:
        _add(table, "Peak VRAM (MB)", [chance.uniform(500, 2000)] * len(rows), 1)
    if chance.random() < 0.8:
        _compare(chance, table, latency, shown, base)
    if chance.random() < 0.15:
        # One network under two names.
        row = chance.randrange(len(rows))
        table.cells.append([f"{table.cells[row][0]} again", *table.cells[row][1:]])
        table.old.append(len(rows) if old[row] == row else old[row])
    table.form = chance.choice(FORMS)
    table.comma = table.form in {"semicolon", "tab"} and chance.random() < 0.5
    return table


def _named(chance: random.Random, rows: list[tuple[str, str, int]], batches: list[int]) -> Compared:
    """Rows named by one column or by several."""
    apart = chance.random() < 0.5
    headings = ["Model", chance.choice(("Format", "Precision", "W/A"))] if apart else ["Model"]
    cells = [[model, weights] if apart else [f"{model} {weights}"] for model, weights, _ in rows]
    if len(batches) > 1:
        headings.append("Batch size")
        cells = [[*own, str(batch)] for own, (_, _, batch) in zip(cells, rows, strict=True)]
    return Compared(headings, cells, names=len(headings))


def _add(table: Compared, heading: str, values: list[float], decimals: int) -> list[float]:
    """Add a column, and return what is printed of it."""
    texts = [f"{value:.{decimals}f}" for value in values]
    table.headings.append(heading)
    for row, text in zip(table.cells, texts, strict=True):
        row.append(text)
    return list(map(float, texts))


def _compare(chance: random.Random, table: Compared, latency: list[float], shown: list[float], base: str) -> None:
    """Add a column that compares, by a formula that is drawn, with an old column or another row."""
    formula = chance.choices(list(FORMULAS), weights=(6, 1, 3, 1, 1, 1, 1, 2))[0]
    source = chance.choice(("measured", "printed", "another pass"))
    values = {"measured": latency, "printed": shown}.get(source) or [one * (1 + chance.uniform(-APART, APART)) for one in latency]
    old = [values[at] for at in table.old]
    beside = chance.random() < 0.2
    if beside:
        before = [value * math.exp(chance.gauss(0.2, 0.2)) for value in latency]
        decimals = len(table.cells[0][table.at("Latency (ms)")].partition(".")[2])
        printed = _add(table, "Latency v1 (ms)", before, decimals)
        old, table.old = (printed if source == "printed" else before), [-1] * len(table.cells)
    heading = chance.choice(WORDS[formula]).format(base=base)
    scale, decimals = (100, chance.choice((1, 2))) if "%" in heading else (1, chance.choice((2, 3)))
    if formula in {"new - old", "old - new"}:
        decimals = len(table.cells[0][table.at("Latency (ms)")].partition(".")[2])
    mark = chance.choice(("", "x")) if "/ " in formula and scale == 1 and not formula.startswith("(") else ""
    blank = chance.random() < 0.5
    table.headings.append(heading)
    table.formula, table.derived, table.follows = formula, len(table.headings) - 1, source != "another pass"
    for row, own in enumerate(table.cells):
        value = FORMULAS[formula](old[row], values[row])
        own.append(
            ("-" if blank else f"{FORMULAS[formula](1.0, 1.0) * scale:.{decimals}f}{mark}")
            if table.old[row] == row
            else f"{value * scale:.{decimals}f}{mark}"
        )


# ---------------------------------------------------------------------------------------------------------------------- planted faults


@dataclass(frozen=True)
class Planted:
    """A table with a fault, another table before it, the check that may find it, its row, and whether it can be seen."""

    table: Compared
    before: Compared | None
    check: str
    row: int
    decidable: bool


def _compared_rows(table: Compared) -> list[int]:
    return [row for row in range(len(table.cells)) if table.old[row] != row and table.cells[row][table.derived] not in {"", "-"}]


def comparison_off(chance: random.Random) -> Planted:
    """One speedup, reduction or improvement is off by 5 % and more than the digits hide."""
    table = sound(chance)
    while not table.formula:
        table = sound(chance)
    rows = _compared_rows(table)
    row = chance.choice(rows)
    text = table.cells[row][table.derived]
    decimals = len(text.rstrip("x").partition(".")[2])
    moved = float(text.rstrip("x")) * chance.choice((0.9, 0.95, 1.05, 1.1))
    new = f"{moved:.{decimals}f}" + "x" * text.endswith("x")
    units = abs(float(new.rstrip("x")) - float(text.rstrip("x"))) * 10**decimals
    table.cells[row][table.derived] = new
    column, before = table.at("Latency (ms)"), table.at("Latency v1 (ms)")
    latencies = [float(own[column]) for own in table.cells]
    old = [float(own[before]) if table.old[at] < 0 else latencies[table.old[at]] for at, own in enumerate(table.cells)]
    fine = all(len(own[column].replace(".", "").lstrip("0")) >= 4 for own in table.cells)
    changed = sum(abs(old[at] / latencies[at] - 1) > 0.05 for at in rows)
    # Latencies of another pass, which is no fault, are up to 1 % apart.
    formula, scale = FORMULAS[table.formula], 100 if "%" in table.headings[table.derived] else 1
    passes = [formula(old[row] * 1.01, latencies[row]), formula(old[row], latencies[row] * 1.01)]
    apart = scale * max(abs(value - formula(old[row], latencies[row])) for value in passes)
    beyond = abs(moved - float(text.rstrip("x"))) > 1.5 * apart
    return Planted(table, None, "derived", row, table.follows and beyond and units > 4 and fine and changed >= 8)


def error_off(chance: random.Random) -> Planted:
    """One error rate is not what is missing from Top-1 to 100 %."""
    table = sound(chance)
    while table.at("Top-1 error") < 0 or len(table.cells) < 3:
        table = sound(chance)
    row, at = chance.randrange(len(table.cells)), table.at("Top-1 error")
    text = table.cells[row][at]
    decimals, units = len(text.partition(".")[2]), chance.randint(1, 40)
    table.cells[row][at] = f"{float(text) + units / 10**decimals:.{decimals}f}"
    return Planted(table, None, "error", row, units > 3 and len(table.cells) >= 6)


def another_formats_size(chance: random.Random) -> Planted:
    """A low-bit row has the size of its model's first row."""
    table = sound(chance)
    while (
        table.at("Size (MB)") < 0 or not table.old or min(table.old) < 0 or len(set(table.old)) == 1 != table.old.count(0) == len(table.old)
    ):
        table = sound(chance)
    at = table.at("Size (MB)")
    group = next(step for step in range(1, len(table.cells) + 1) if step == len(table.cells) or _base(table, step))
    row = chance.choice([row for row in range(len(table.cells)) if row % group and not table.cells[row][0].endswith("again")])
    first = row - row % group
    bits = [next(own for name, own in BITS.items() if name in " ".join(table.cells[at][: table.names])) for at in (first, row)]
    table.cells[row][at] = table.cells[first][at]
    return Planted(table, None, "format-size", row, bits[0] > bits[1] and len(table.cells[row][at].replace(".", "").strip("0")) >= 3)


def _base(table: Compared, row: int) -> bool:
    return any(name in " ".join(table.cells[row][: table.names]) for name in ("FP32", "FP16")) and "BF16" not in table.cells[row]


def printed_twice(chance: random.Random) -> Planted:
    """Another table has one latency otherwise, and the rest alike."""
    table = sound(chance)
    while len(table.cells) < 3 or len({tuple(own[: table.names]) for own in table.cells}) < len(table.cells):
        table = sound(chance)
    other = Compared(list(table.headings), [list(own) for own in table.cells], table.names, form=chance.choice(FORMS))
    row, at = chance.randrange(len(table.cells)), table.at("Latency (ms)")
    text = table.cells[row][at]
    decimals = len(text.partition(".")[2])
    other.cells[row][at] = f"{float(text) * chance.choice((0.9, 1.02, 1.1)):.{decimals}f}"
    units = abs(float(other.cells[row][at]) - float(text)) * 10**decimals
    return Planted(table, other, "printed-twice", row, units >= 3)


FAULTS: tuple[Callable[[random.Random], Planted], ...] = (comparison_off, error_off, another_formats_size, printed_twice)
