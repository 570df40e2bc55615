"""The judged ledger: claims in four tones, counts, and the table of claims as printed, as JSON and as CSV.

Four tones and not thirteen colours: what agrees, what fails, what cannot be told, and what is open. Each has a sign of its
own, so that nothing depends on colour.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import polars as pl
from pydantic import TypeAdapter

from lowbit_vit.analysis.claims.ledger import Judged
from lowbit_vit.report.columns import Column, Table, escape_markdown, to_markdown
from lowbit_vit.report.number_format import DASH
from lowbit_vit.schema.claim import VERDICT_MEANS, VERDICTS, Verdict

Tone = Literal["agrees", "fails", "unclear", "open", "unjudged"]
TONES: Mapping[Verdict, Tone] = {
    "reproduced": "agrees",
    "holds": "agrees",
    "not reproduced": "fails",
    "contradicts itself": "fails",
    "impossible": "fails",
    "understated": "fails",
    "confounded": "unclear",
    "underspecified": "unclear",
    "suspicious": "unclear",
    "not supported": "unclear",
    "underpowered": "unclear",
    "not comparable": "open",
    "not run": "open",
}
SIGNS: Mapping[Tone, str] = {
    "agrees": "\N{CHECK MARK}",
    "fails": "\N{MULTIPLICATION X}",
    "unclear": "?",
    "open": "\N{WHITE CIRCLE}",
    "unjudged": "",
}
TONE_WORDS: Mapping[Tone, str] = {
    "agrees": "agree with a run or with arithmetic",
    "fails": "fail",
    "unclear": "cannot be told as stated",
    "open": "are open here",
}
_JSON: TypeAdapter[tuple[Judged, ...]] = TypeAdapter(tuple[Judged, ...])


def counts(judged: Sequence[Judged]) -> dict[Verdict, int]:
    """Claims by verdict, of the verdicts that occur, best news first."""
    found = Counter(item.verdict for item in judged)
    return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}


def counts_table(judged: Sequence[Judged]) -> Table:
    """One line a verdict that occurs, with its sign and what it means."""
    columns = (
        Column("verdict", lambda row: f"{SIGNS[TONES[row[0]]]} {row[0]}", kind="name"),
        Column("claims", lambda row: row[1]),
        Column("it means", lambda row: VERDICT_MEANS[row[0]], kind="words"),
    )
    return Table("Claims by verdict", columns, list(counts(judged).items()))


def counts_line(judged: Sequence[Judged]) -> str:
    """All counts in one line: `125 claims: 9 reproduced, 11 holds`."""
    return f"{len(judged)} claims: " + ", ".join(f"{claims} {verdict}" for verdict, claims in counts(judged).items())


def tone_counts(judged: Sequence[Judged]) -> dict[Tone, int]:
    """Claims by tone, the four in order, zeros included."""
    found = [TONES[item.verdict] for item in judged]
    return {tone: found.count(tone) for tone in TONE_WORDS}


def claims_table(judged: Sequence[Judged]) -> Table:
    """One line a claim: its id, the verdict, our value, the reason."""
    columns = (
        Column("claim", lambda item: item.claim.id, kind="name"),
        Column("place", lambda item: item.claim.place, kind="words", targets=("markdown",)),
        Column("verdict", "verdict_words", kind="words"),
        Column("ours", ours_words, kind="words"),
        Column("why", "words", kind="words"),
    )
    title = f"{judged[0].profile}: the paper's claims on {judged[0].device}" if judged else "no claims"
    return Table(title, columns, judged, counts_line(judged))


def claims_markdown(judged: Sequence[Judged]) -> str:
    """Counts with what each verdict means, then one line a claim."""
    table = claims_table(judged)
    return f"**{escape_markdown(table.title)}**\n\n{to_markdown(counts_table(judged))}\n{to_markdown(replace(table, note=''))}"


def claims_json(judged: Sequence[Judged]) -> str:
    """Everything, as a JSON list of judged claims."""
    return _JSON.dump_json(tuple(judged), indent=1).decode() + "\n"


def ours_words(item: Judged) -> str:
    """Our value as text, or a dash."""
    return item.ours.text if item.ours is not None else DASH


def sections(judged: Sequence[Judged]) -> list[str]:
    """The paper's sections with a claim, in the ledger's order."""
    return list(dict.fromkeys(item.claim.section for item in judged))


def by_cell(judged: Sequence[Judged]) -> dict[tuple[int, str], Judged]:
    """The claim of each cell of the paper's table, by row and heading."""
    return {(item.claim.cell.row, item.claim.cell.column): item for item in judged if item.claim.cell is not None}


def command(item: Judged) -> str:
    """The command that makes the evidence, for this profile."""
    return item.claim.command.replace("PROFILE", item.profile)


def source_address(item: Judged) -> str | None:
    """The public address of somebody else's number, if it is one that a page may link to."""
    source = item.claim.source
    return source if source is not None and source.startswith("https://") else None


def claims_frame(judged: Sequence[Judged]) -> pl.DataFrame:
    """One row a claim, as tables/claims.csv has it."""
    rows = [
        {
            "id": item.claim.id,
            "section": item.claim.section,
            "place": item.claim.place,
            "quote": item.claim.quote,
            "verdict": item.verdict,
            "because": item.because,
            "words": item.words,
            "ours": item.ours.text if item.ours else None,
            "tolerance": item.claim.tolerance.within,
            "transfer": item.claim.transfer,
            "command": command(item),
            "records": " ".join(item.record_ids),
            "device": item.device,
        }
        for item in judged
    ]
    return pl.DataFrame(rows, infer_schema_length=None)
