"""The ledger as people read it: claims in four tones, counts for the strip, and the rows of tables/claims.csv.

Four tones and not thirteen colours: what agrees, what fails, what cannot be told, and what is open. Each has a sign of its
own, so that nothing depends on colour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from lowbit_vit.analysis.claims.ledger import Judged
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


@dataclass(frozen=True)
class Count:
    """One verdict in the strip."""

    verdict: Verdict
    tone: Tone
    sign: str
    claims: int
    means: str


def counts(judged: Sequence[Judged]) -> list[Count]:
    """The verdicts that occur, best news first."""
    found = [item.verdict for item in judged]
    return [
        Count(verdict=verdict, tone=TONES[verdict], sign=SIGNS[TONES[verdict]], claims=found.count(verdict), means=VERDICT_MEANS[verdict])
        for verdict in VERDICTS
        if verdict in found
    ]


def tone_counts(judged: Sequence[Judged]) -> dict[Tone, int]:
    """Claims by tone, the four in order, zeros included."""
    found = [TONES[item.verdict] for item in judged]
    return {tone: found.count(tone) for tone in TONE_WORDS}


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
    judgement = ("verdict", "because", "words", "ours", "tolerance", "transfer", "command", "records", "device")
    rows = [
        (
            item.claim.id,
            item.claim.section,
            item.claim.place,
            item.claim.quote,
            item.verdict,
            item.because,
            item.words,
            item.ours.text if item.ours else None,
            item.claim.tolerance.within,
            item.claim.transfer,
            command(item),
            " ".join(item.record_ids),
            item.device,
        )
        for item in judged
    ]
    return pl.DataFrame(rows, schema=dict.fromkeys(("id", "section", "place", "quote", *judgement), pl.String), orient="row")
