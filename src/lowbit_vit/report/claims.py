"""The judged ledger for the terminal, a pull request, or another program: `lowbit-vit claims PROFILE`."""

from collections import Counter
from collections.abc import Sequence

from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from lowbit_vit.analysis.claims.ledger import Judged
from lowbit_vit.report.cells import DASH
from lowbit_vit.schema.claim import VERDICT_MEANS, VERDICTS

_JSON: TypeAdapter[tuple[Judged, ...]] = TypeAdapter(tuple[Judged, ...])


def claims_table(judged: Sequence[Judged]) -> Table:
    """One line a claim: its id, the verdict, our value, the reason. Quotes and places are in the other two forms."""
    table = Table(title=_title(judged), title_justify="left", caption=counts_line(judged), caption_justify="left", expand=True)
    for heading, share in (("claim", 3), ("verdict", 3), ("ours", 3), ("why", 8)):
        table.add_column(heading, overflow="fold", ratio=share)
    for item in judged:
        table.add_row(*(Text(cell) for cell in (item.claim.id, item.verdict_words, ours_words(item), item.words)))
    return table


def claims_markdown(judged: Sequence[Judged]) -> str:
    """Counts with what each verdict means, then one line a claim, in GitHub's Markdown."""
    counts = Counter(item.verdict for item in judged)
    lines = [f"**{_title(judged)}**", "", "| verdict | claims | it means |", "| --- | --: | --- |"]
    lines += [f"| {verdict} | {counts[verdict]} | {VERDICT_MEANS[verdict]} |" for verdict in VERDICTS if counts[verdict]]
    lines += ["", "| claim | place | verdict | ours | why |", "| --- | --- | --- | --- | --- |"]
    for item in judged:
        cells = (item.claim.id, item.claim.place, item.verdict_words, ours_words(item), item.words)
        lines.append(f"| {' | '.join(map(markdown_cell, cells))} |")
    return "\n".join(lines) + "\n"


def claims_json(judged: Sequence[Judged]) -> str:
    """Everything, as a JSON list of judged claims."""
    return _JSON.dump_json(tuple(judged), indent=1).decode() + "\n"


def counts_line(judged: Sequence[Judged]) -> str:
    """All counts in one line: `125 claims: 9 reproduced, 11 holds`."""
    counts = Counter(item.verdict for item in judged)
    return f"{len(judged)} claims: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])


def ours_words(item: Judged) -> str:
    """Our value as text, or a dash."""
    return item.ours.text if item.ours is not None else DASH


def markdown_cell(text: str) -> str:
    """Text that stays one cell of a Markdown table, and stays text."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    return " ".join(escaped.split())


def _title(judged: Sequence[Judged]) -> str:
    return f"{judged[0].profile}: the paper's claims on {judged[0].device}" if judged else "no claims"
