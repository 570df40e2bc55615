"""The data of a claim: verdicts, what a claim is about, what was found. `analysis/claims/` has the claims. No torch, no polars."""

from typing import Annotated, Literal

from pydantic import Field

from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.plan import Frozen

Verdict = Literal[
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
]
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
# From the best news for a claim to the least; the page and ARTIFACT.md count in this order.
VERDICTS = tuple(VERDICT_MEANS)

Words = Annotated[str, Field(min_length=1)]
Kind = Literal["cell", "number", "conclusion", "method", "others"]


class Cell(Frozen):
    """One cell of the paper's table."""

    row: int = Field(ge=0, description="from 0")
    column: Words = Field(description="its heading in table.csv")


class Tolerance(Frozen):
    """How far our value may lie off."""

    within: Words = Field(description="such as '10 %', '0.5 points', 'sign only'")
    reason: Words


class Cost(Frozen):
    """What it takes to test a claim."""

    minutes: float = Field(ge=0, description="wall minutes of the whole command on that hardware, data and weights at hand")
    hardware: Words = Field(description="the least that will do")
    basis: Literal["measured", "estimated"] = Field(description="measured: the sum over a committed reference run")


class Stated(Frozen):
    """Where the paper states a value that a repetition needs."""

    quote: Words = Field(description="verbatim")
    place: Words


class Condition(Frozen):
    """One thing that the paper's numbers depend on."""

    value: Words = Field(description="as a profile or a record has it; of a GPU: a part of its name")
    name: Words = Field(description="in words, behind 'not'")


class Setup(Frozen):
    """What the paper's numbers are of."""

    words: Words = Field(description="all of it in a few words")
    architecture: Condition = Field(description="a profile's backbone.architecture")
    images: Condition = Field(description="a profile's data.source")
    weights: Condition = Field(description="a profile's backbone.weights")
    gpu: Condition
    batch_size: int = Field(ge=1, description="at which our latencies and peaks are held against the table")


class Measured(Frozen):
    """Our value beside the claim's."""

    text: Words = Field(description="as printed, with its unit: '20.4 ms', '+0.05 points'")
    value: float | None = Field(default=None, description="in `unit`; null where the answer is no single number")
    unit: str | None = None
    interval: Interval | None = Field(default=None, description="95 %, in `unit`")


class Evidence(Frozen):
    """One thing that a verdict rests on: a record, a sum, or a public source."""

    says: Words = Field(description="one sentence, with the numbers or the arithmetic")
    records: tuple[str, ...] = Field(default=(), description="trial ids; empty: arithmetic or a source, no run")
    verdict: Verdict = Field(description="what this alone would say")
