"""How a claim is tested: one model for each kind of check, with its parameters. Pure data; `analysis/evidence` carries them out.

A check names no verdict. What it takes from our runs it takes from arms picked by what they are (`Arms`), so that the same
claim can be judged on any profile and card.
"""

from typing import Annotated, Literal

from pydantic import Field

from lowbit_vit.schema.config import AdaptationMethod, AttentionName, Device, Execution
from lowbit_vit.schema.plan import ComputeDtype, Frozen

Quantity = Literal[
    "p50_ms",
    "kernel_us",
    "attention_us",
    "quantize_us",
    "gemm_us",
    "idle_share",
    "launches",
    "host_syncs",
    "peak_mib",
    "training_peak_mib",
    "file_mib",
    "weight_mib",
]
Metric = Literal["top1", "top5", "macro_f1"]
SparingStrategy = Literal["first+last", "last", "most sensitive"]


class Arms(Frozen):
    """Arms of the variants study by what they are; a key that is left out may be anything."""

    paper_row: int | None = Field(default=None, ge=0, le=4)
    weights: tuple[str, ...] | None = Field(default=None, description="none, nf4, nf4-dq, int8-6, int8-0")
    compute_dtype: tuple[ComputeDtype, ...] | None = None
    attention: tuple[AttentionName, ...] | None = None
    adaptation: tuple[AdaptationMethod, ...] | None = None
    execution: tuple[Execution, ...] | None = None


class AuditCheck(Frozen):
    """What the audit of the printed table finds by these of its checks: in the claim's own cell, else in rows and columns."""

    check: Literal["audit"]
    rules: tuple[str, ...] = Field(min_length=1, description="names of the audit's checks")
    rows: tuple[int, ...] | None = None
    columns: tuple[str, ...] | None = None


class CellCheck(Frozen):
    """The claim's cell against the same arm at the same batch, where card and weights are the paper's or do not matter."""

    check: Literal["cell"]
    within: float = Field(gt=0, description="relative, or absolute for a rate")


class TableCheck(Frozen):
    """A sentence against the table that it sums up: one cell over another of the same column."""

    check: Literal["table"]
    column: str
    of_row: int = Field(ge=0, le=4)
    to_row: int = Field(ge=0, le=4)
    at_least: float | None = None
    at_most: float | None = None


class RatioCheck(Frozen):
    """A quantity of one arm over that of its twin: alike in all that neither selector names; with paper rows, in the seed."""

    check: Literal["ratio"]
    quantity: Quantity
    of: Arms
    to: Arms
    batch: int | None = Field(default=None, description="of latency, kernels and peak memory")
    at_least: float | None = None
    at_most: float | None = None


class ShareCheck(Frozen):
    """Of what an arm's forward takes longer than its twin's, the share spent in kernels of `classes`."""

    check: Literal["share"]
    of: Arms
    to: Arms
    classes: tuple[str, ...] = Field(min_length=1)
    batch: int
    at_least: float


class PairedCheck(Frozen):
    """Accuracy of an arm less that of its twin, image by image."""

    check: Literal["paired"]
    of: Arms
    to: Arms
    metric: Metric = "top1"
    expects: Literal["not worse", "worse", "same"]
    margin: float = Field(gt=0, description="not worse, same: may lie off by this much; worse: loses at most this much")


class FlipsCheck(Frozen):
    """The share of images whose class an arm and its twin tell differently."""

    check: Literal["flips"]
    of: Arms
    to: Arms
    at_most: float = Field(gt=0, lt=1)


class BlocksCheck(Frozen):
    """Which blocks suffer most: `at_least` of the top len(blocks) are these, in every draw, in a model of `depth` blocks."""

    check: Literal["blocks"]
    weights: str
    direction: Literal["only", "all_but"]
    blocks: tuple[int, ...] = Field(min_length=1)
    depth: int
    at_least: int = Field(ge=1)


class StabilityCheck(Frozen):
    """Whether the ranking of blocks is the same over draws of images: mean Kendall's tau."""

    check: Literal["stability"]
    weights: str
    direction: Literal["only", "all_but"]
    depth: int
    at_least: float = Field(gt=0, le=1)


class SparedCheck(Frozen):
    """What sparing k blocks gives over the fully quantized model (or over another choice), on the report half."""

    check: Literal["spared"]
    strategy: SparingStrategy
    over: SparingStrategy | Literal["fully quantized"]
    k: int
    depth: int
    expects: Literal["less", "more"]
    gain: float = Field(ge=0, description="of Top-1, as a rate: the gain is expected to be less, or more, than this")


class RandomCheck(Frozen):
    """The share of random choices of k blocks that a strategy beats, by KL on the report half (a tie counts half)."""

    check: Literal["random"]
    strategy: SparingStrategy
    k: int
    depth: int
    at_least: float | None = None
    at_most: float | None = None


class FrontierCheck(Frozen):
    """Whether some arm of `of` is undominated among all successful arms in accuracy (more) and `costs` (less)."""

    check: Literal["frontier"]
    of: Arms
    costs: tuple[Quantity, ...] = Field(min_length=1)
    batch: int | None = None


class AccuracyCheck(Frozen):
    """Somebody's Top-1 against ours on the same images, model and weights."""

    check: Literal["accuracy"]
    images: Literal["flowers102", "imagenet"]
    architecture: str
    weights: str = Field(description="scratch, torchvision, or a name that no profile has yet")
    top1: float = Field(gt=0, le=1)
    within: float = Field(gt=0)


class SumCheck(Frozen):
    """Numbers that are to follow from each other: a formula over `numbers` gives `printed` within half of its last digit."""

    check: Literal["sum"]
    formula: Literal["quotient", "difference", "percent less", "mib of 4-byte words"]
    numbers: tuple[float, ...] = Field(min_length=1)
    printed: float
    digits: int = Field(ge=0, description="decimals of `printed`")


class RunsCheck(Frozen):
    """Whether such an arm runs at all on a device: the paper prints N/A, as if it did not."""

    check: Literal["runs"]
    of: Arms
    device: Device
    expects: Literal["runs", "does not run"]


class StatedCheck(Frozen):
    """Whether the paper states what a repetition needs, or shows what a conclusion rests on: key `stated` of `paper/claims.yaml`."""

    check: Literal["stated"]
    what: Literal["method", "result"] = Field(description="unstated, a method is underspecified and a conclusion not supported")
    needs: tuple[str, ...] = Field(min_length=1)


class Statement(Frozen):
    """A value that somebody's words give to one thing."""

    quote: str = Field(min_length=1)
    place: str = Field(min_length=1)
    value: str = Field(min_length=1)
    source: str | None = Field(default=None, description="public address; null: the paper itself")


class AgreeCheck(Frozen):
    """Whether statements about one thing give it one value."""

    check: Literal["agree"]
    about: str
    statements: tuple[Statement, ...] = Field(min_length=2)


Check = Annotated[
    AuditCheck
    | CellCheck
    | TableCheck
    | RatioCheck
    | ShareCheck
    | PairedCheck
    | FlipsCheck
    | BlocksCheck
    | StabilityCheck
    | SparedCheck
    | RandomCheck
    | FrontierCheck
    | AccuracyCheck
    | SumCheck
    | RunsCheck
    | StatedCheck
    | AgreeCheck,
    Field(discriminator="check"),
]
