"""The audit's findings: the table that sums them up, and JSON. Needs neither torch nor polars."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from lowbit_vit.analysis.audit import GOOD, Finding, ResultsTable, Verdict
from lowbit_vit.report.columns import Column, Table

_STYLES = {"impossible": "bold red", "contradicts itself": "bold red", "holds": "green", "exact": "green"}
_STYLES |= {"noted": "cyan", "not checked": "dim"}
_ORDER: tuple[Verdict, ...] = get_args(Verdict)
_EXAMPLES = 3
# What a reader asks first where nothing is wrong.
_TOLD = ("split-size", "hidden-images", "batch-size")
_NEEDS = "not checked: needs "


@dataclass(frozen=True)
class Line:
    """What is printed of the findings of one check with one verdict.

    Attributes:
        verdict: of all of them.
        check: the check's name.
        rows: how many of how many.
        words: of the first, and who else.
    """

    verdict: Verdict
    check: str
    rows: str
    words: str


def summary(findings: Sequence[Finding], table: ResultsTable, *, every_row: bool = False) -> list[Line]:
    """One line a check and verdict, worst first, at most three rows named; with `every_row` one a finding. Then what was not checked."""
    ordered = sorted(findings, key=lambda finding: _ORDER.index(finding.verdict))
    if every_row:
        return [Line(finding.verdict, finding.check, _share([finding], table), finding.words) for finding in ordered]
    groups: defaultdict[tuple[Verdict, str], list[Finding]] = defaultdict(list)
    for finding in ordered:
        if finding.fault or finding.verdict == "noted":
            groups[finding.verdict, finding.check].append(finding)
    lines = [Line(verdict, check, _share(group, table), _words(group, table)) for (verdict, check), group in groups.items()]
    return [*lines, *_good(ordered), *_lacking(ordered)]


def _good(findings: Sequence[Finding]) -> list[Line]:
    """One line for what holds: the counts of images in words, the other checks by name."""
    good = [finding for finding in findings if finding.verdict in GOOD]
    names = dict.fromkeys(finding.check for finding in good)
    told = [finding.words for finding in good if finding.check in _TOLD]
    return [Line("holds", "", "", "; ".join([", ".join(names), *told]))] if good else []


def _share(group: Sequence[Finding], table: ResultsTable) -> str:
    """How many rows, or rates where each is a finding."""
    rates = group[0].numbers.get("rates")
    if rates is not None and len(group) > 1:
        return f"{len(group):,} of {int(rates):,} rates"
    rows = {row for finding in group for row in finding.rows}
    return f"{len(rows):,} of {len(table.rows):,}" if rows else "table"


def _words(group: Sequence[Finding], table: ResultsTable) -> str:
    # The row that all of them are compared with names none of them.
    shared = set.intersection(*(set(finding.rows) for finding in group))
    own = [[row for row in finding.rows if row not in shared] for finding in group[1:]]
    more = [table.labels[rows[0]] for rows in own if rows]
    if not more:
        return group[0].words
    named = ", ".join(more[: _EXAMPLES - 1])
    rest = len(more) - (_EXAMPLES - 1)
    return f"{group[0].words}. Likewise {named}" + (f" and {rest:,} more" if rest > 0 else "")


def _lacking(findings: Sequence[Finding]) -> list[Line]:
    """One line for what was not checked: cells without a number, and what the checks need, the most wanted first."""
    lacking = [finding for finding in findings if finding.words.startswith(_NEEDS)]
    others = [finding.words for finding in findings if finding.verdict == "not checked" and finding not in lacking]
    needs = Counter(need for finding in lacking for need in finding.words.removeprefix(_NEEDS).split(" and "))
    named = ", ".join(f"{need} ({count})" for need, count in needs.most_common(2 * _EXAMPLES))
    words = f"{len({finding.check for finding in lacking})} checks lack {named}"
    words += f" and {len(needs) - 2 * _EXAMPLES} more" if len(needs) > 2 * _EXAMPLES else ""
    told = [*others, *([words] if lacking else [])]
    return [Line("not checked", "", "", "; ".join(told))] if told else []


def findings_table(findings: Sequence[Finding], table: ResultsTable, *, title: str = "", every_row: bool = False) -> Table:
    """The summary, the counts by verdict below."""
    columns = (
        Column("verdict", "verdict", kind="name", style=lambda line: _STYLES.get(line.verdict, "yellow"), no_wrap=True),
        Column("check", "check", kind="words", no_wrap=True),
        Column("rows", "rows", kind="words"),
        Column("what the numbers say", "words", kind="words"),
    )
    return Table(title, columns, summary(findings, table, every_row=every_row), counts(findings))


def findings_json(findings: Mapping[str, Sequence[Finding]]) -> str:
    """A JSON list of a table's findings with their numbers; of several tables, one list each by the table's name."""
    listed = {name: [finding.model_dump(mode="json") for finding in found] for name, found in findings.items()}
    return json.dumps(listed if len(listed) > 1 else next(iter(listed.values())), indent=2, ensure_ascii=False) + "\n"


def counts(findings: Sequence[Finding]) -> str:
    """How many findings there are of each verdict."""
    number = Counter(finding.verdict for finding in findings)
    said = ", ".join(f"{number[verdict]:,} {verdict}" for verdict in _ORDER if number[verdict])
    return f"{sum(finding.hard for finding in findings):,} findings that no honest reading allows; of all {len(findings):,}: {said}"
