"""The report in a page of Markdown, short enough for a pull request: verdict, counts, the arms, what was not run."""

from collections.abc import Sequence

from lowbit_vit.report.cells import in_markdown
from lowbit_vit.report.ledger import Count
from lowbit_vit.report.missing import Missing
from lowbit_vit.report.verdict import Sentence

# More lines than this nobody reads in a pull request; the page has them all.
MOST_MISSING = 12


def report_markdown(
    *,
    title: str,
    headline: str,
    sentences: Sequence[Sentence],
    counts: Sequence[Count],
    arms: str,
    missing: Sequence[Missing],
) -> str:
    """The document; `arms` is the result table as Markdown already."""
    parts = [f"# {in_markdown(headline or title)}", in_markdown(title) if headline else ""]
    parts.append("\n".join(f"- **{sentence.about}:** {in_markdown(sentence.text)}" for sentence in sentences))
    if counts:
        lines = [f"| {count.sign} {count.verdict} | {count.claims} | {count.means} |" for count in counts]
        parts.append("\n".join(["| verdict | statements | means |", "| --- | --: | --- |", *lines]))
    parts.append(arms.rstrip())
    if missing:
        shown = [f"- {in_markdown(item.what)}: {in_markdown(item.why)}" for item in missing[:MOST_MISSING]]
        more = len(missing) - MOST_MISSING
        parts.append("\n".join(["Not run:", "", *shown, *([f"- and {more} more, in report.html"] if more > 0 else [])]))
    return "\n\n".join(part for part in parts if part) + "\n"
