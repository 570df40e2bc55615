"""The audit's findings for the terminal, for Markdown and for programs. Needs no torch."""

import json
from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lowbit_vit.analysis.audit import Finding

_STYLES = {"holds": "green", "exact": "green", "not checked": "dim"}
_HEADINGS = ("check", "verdict", "rows", "what the numbers say")


def findings_table(findings: Sequence[Finding], *, title: str) -> Table:
    """One line a finding, the counts by verdict below; rows count from 0, as in the table's order."""
    table = Table(title=Text(title), title_justify="left", caption=Text(counts(findings)), caption_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, overflow="fold", no_wrap=heading in ("check", "verdict"))
    for finding in findings:
        style = _STYLES.get(finding.verdict, "yellow")
        table.add_row(finding.check, Text(finding.verdict, style=style), _rows(finding), Text(finding.words))
    return table


def findings_markdown(findings: Sequence[Finding]) -> str:
    """The same in GitHub's Markdown."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS)]
    lines += [(finding.check, finding.verdict, _rows(finding), finding.words) for finding in findings]
    body = "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)
    return f"{body}\n\n{counts(findings)}\n"


def findings_json(findings: Sequence[Finding]) -> str:
    """A JSON list of the findings with their numbers."""
    return json.dumps([finding.model_dump(mode="json") for finding in findings], indent=2, ensure_ascii=False) + "\n"


def counts(findings: Sequence[Finding]) -> str:
    """How many findings there are of each verdict."""
    number = Counter(finding.verdict for finding in findings)
    said = ", ".join(f"{count} {verdict}" for verdict, count in number.most_common())
    return f"{sum(finding.fault for finding in findings)} faults of {len(findings)} findings: {said}"


def _rows(finding: Finding) -> str:
    return ", ".join(map(str, finding.rows)) or "table"


def _escaped(text: str) -> str:
    for character in "\\`*_[]<>|":
        text = text.replace(character, {"<": "&lt;", ">": "&gt;"}.get(character, f"\\{character}"))
    return " ".join(text.split())
