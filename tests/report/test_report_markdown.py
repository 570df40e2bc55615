"""The page of Markdown: short, and any text stays text."""

from lowbit_vit.report.columns import Column, Table
from lowbit_vit.report.page import MOST_MISSING, report_markdown
from lowbit_vit.report.recommendation import Sentence
from lowbit_vit.report.verdict import Missing


def document(missing: int) -> str:
    return report_markdown(
        title="A run",
        headline="Of 2 statements, 1 agrees",
        sentences=[Sentence("Speed", "at batch 1, slow.")],
        tables=[
            Table("", (Column("verdict", "verdict", kind="name"), Column("claims", "claims")), [{"verdict": "+ holds", "claims": 1}]),
            Table("", (Column("arm", "arm", kind="name"),), [{"arm": "one"}]),
        ],
        missing=[Missing(what=f"study {number}", why="no records") for number in range(missing)],
    )


def test_it_has_the_verdict_the_counts_the_arms_and_what_is_missing() -> None:
    text = document(2)
    for part in ("# Of 2 statements, 1 agrees", "- **Speed:** at batch 1", "| + holds | 1 |", "| one |", "- study 1: no records"):
        assert part in text


def test_it_stays_short() -> None:
    text = document(500)
    assert len(text.splitlines()) < MOST_MISSING + 25
    assert f"and {500 - MOST_MISSING} more" in text
