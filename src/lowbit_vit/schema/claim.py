"""The ledger's two documents: a claim as `paper/claims.yaml` states it, and the same claim judged on a profile's records.

A claim says what the paper (or somebody whose number is leaned on) states, where, and how it is tested. It holds no verdict:
`analysis/claims.py` computes that, and a claim file with a key `verdict` is refused. Pure data: no torch, no polars.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from lowbit_vit.schema.claim_checks import Check, StatedCheck
from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.plan import Frozen

Verdict = Literal[
    "holds",
    "reproduced",
    "not reproduced",
    "contradicts itself",
    "impossible",
    "understated",
    "confounded",
    "underspecified",
    "suspicious",
    "not supported",
    "underpowered",
    "not comparable",
    "not run",
]
# From the best news for a claim to the least; the page and ARTIFACT.md count in this order.
VERDICTS: tuple[Verdict, ...] = (
    "reproduced",
    "holds",
    "not reproduced",
    "contradicts itself",
    "impossible",
    "understated",
    "confounded",
    "underspecified",
    "suspicious",
    "not supported",
    "underpowered",
    "not comparable",
    "not run",
)
VERDICT_MEANS: dict[Verdict, str] = {
    "reproduced": "our own run agrees, within the tolerance",
    "holds": "arithmetic on the printed numbers, or a public source, agrees",
    "not reproduced": "our own run disagrees, beyond the tolerance",
    "contradicts itself": "two printed statements cannot both be true",
    "impossible": "no measurement can give this number",
    "understated": "the true number is larger, by something that was left out",
    "confounded": "two things change at once, so neither can be credited",
    "underspecified": "what it takes to repeat it is not stated",
    "suspicious": "possible, but a likelier reading is an error",
    "not supported": "nothing that is shown bears on it, or a source says otherwise",
    "underpowered": "too few images to tell the effect from none",
    "not comparable": "our hardware or weights are others, and the number does not transfer",
    "not run": "the records that would decide it are missing",
}

Section = Literal["Abstract", "I", "II", "III", "IV", "V", "VI", "Table 1", "Others"]
Kind = Literal["cell", "number", "conclusion", "method", "others"]


class Cell(Frozen):
    """One cell of the paper's table, by its headings in `paper/table1.csv`."""

    row: int = Field(ge=0, le=4)
    column: str = Field(min_length=1)


class Tolerance(Frozen):
    """How far our value may lie off."""

    within: str = Field(min_length=1, description="such as '10 %', '0.5 points', 'sign only'")
    reason: str = Field(min_length=1)


class Cost(Frozen):
    """What it takes to test a claim."""

    minutes: float = Field(ge=0, description="wall minutes of the whole command on that hardware, data and weights at hand")
    hardware: str = Field(min_length=1, description="the least that will do")
    basis: Literal["measured", "estimated"] = Field(description="measured: the sum over a committed reference run")


class Claim(Frozen):
    """One checkable statement."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="stable; links point at it")
    quote: str = Field(min_length=1, description="verbatim; of a cell: what is printed in it")
    place: str = Field(min_length=1, description="such as 'IV-B, Latency trade-offs' or 'Table 1, row 0'")
    section: Section
    kind: Kind
    says: str = Field(min_length=1, description="what is tested, in plain words")
    cell: Cell | None = Field(default=None, description="of kind cell only")
    tests: tuple[Check, ...] = Field(min_length=1)
    tolerance: Tolerance
    command: str = Field(min_length=1, description="that makes the evidence; PROFILE stands for the profile's name")
    cost: Cost
    transfer: str = Field(min_length=1, description="to which cards, weights and images the verdict carries over")
    figure: str | None = Field(default=None, description="of the report, where the answer is seen")
    source: str | None = Field(default=None, description="public address of somebody else's number")


class Stated(Frozen):
    """Where the paper states a value that a repetition needs."""

    quote: str = Field(min_length=1, description="verbatim")
    place: str = Field(min_length=1)


class Ledger(Frozen):
    """`paper/claims.yaml`: what the paper states of what a repetition needs (null: nowhere), and its claims."""

    stated: dict[str, Stated | None]
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ids_are_unique_and_needs_known(self) -> Self:
        ids = [claim.id for claim in self.claims]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"claim id {twice[0]!r} is given twice")
        for claim in self.claims:
            if claim.cell is None and any(check.check == "cell" for check in claim.tests):
                raise ValueError(f"claim {claim.id!r} has a check of kind cell but no cell")
            for check in claim.tests:
                unknown = [need for need in check.needs if need not in self.stated] if isinstance(check, StatedCheck) else []
                if unknown:
                    raise ValueError(f"claim {claim.id!r} needs {unknown[0]!r}, which is no key of stated")
        return self


class Measured(Frozen):
    """Our value beside the claim's."""

    text: str = Field(min_length=1, description="as people read it, with its unit: '20.4 ms', '+0.05 points'")
    value: float | None = Field(default=None, description="in `unit`; null where the answer is no single number")
    unit: str | None = None
    interval: Interval | None = Field(default=None, description="95 %, in `unit`")


class Evidence(Frozen):
    """One thing that a verdict rests on: a record, a sum, or a public source."""

    says: str = Field(min_length=1, description="one sentence, with the numbers or the arithmetic")
    records: tuple[str, ...] = Field(default=(), description="trial ids; empty: arithmetic or a source, no run")
    verdict: Verdict = Field(description="what this alone would say")


class Judged(Frozen):
    """A claim with the verdict that a profile's records and the paper's own numbers give it."""

    claim: Claim
    verdict: Verdict
    because: str | None = Field(description="of not comparable: 'hardware', 'weights' or both; of not run: what is missing; else null")
    words: str = Field(min_length=1, description="the reason in one sentence")
    ours: Measured | None = Field(description="null: nothing of ours bears on it")
    evidence: tuple[Evidence, ...] = Field(description="all that was looked at, the decisive one first")
    profile: str
    device: str = Field(description="the card or CPU of the records; 'no records' without any")

    @property
    def verdict_words(self) -> str:
        """The verdict with its reason: `not comparable (hardware)`, `not run (lowbit-vit mixed paper)`."""
        return self.verdict if self.because is None else f"{self.verdict} ({self.because})"

    @property
    def record_ids(self) -> tuple[str, ...]:
        """Every trial that the verdict rests on, each once."""
        return tuple(dict.fromkeys(record for item in self.evidence for record in item.records))
