"""What part a cell plays in the sensitivity and mixed studies, written into its label and read back by the analysis.

The labels, word for word (`nf4` stands for any format's name, 2 and 3 for any number):

    sensitivity    high precision
                   nf4, all blocks
                   nf4, only block 3
                   nf4, all but block 3
                   nf4, only block 3 attention.q
                   nf4, all but block 3 mlp.fc1
    mixed          high precision
                   nf4, none spared
                   first+last, k=2
                   last, k=2
                   most sensitive, k=2
                   gradient, k=2
                   milp, k=2
                   random 3, k=2
                   plan NAME
                   nf4, only blocks 0 3

A mixed cell that plays several parts (a random plan that is also the heuristic's) is run once; its label joins them with
" = ". Which blocks are spared stands in the plan alone: `spared_blocks` reads it.
"""

import re
from dataclasses import dataclass
from typing import Literal

from lowbit_vit.errors import DataError
from lowbit_vit.schema.plan import HighPrecision, Plan, linear_names

JOINT = " = "


@dataclass(frozen=True)
class SensitivityRole:
    """A cell of the sensitivity study.

    Attributes:
        kind: reference: nothing quantized; all: every block; only, all_but: of `block`.
        weights: the format's name; None for the reference.
        block: of only and all_but.
        module: the one linear of it; None: the whole block.
    """

    kind: Literal["reference", "all", "only", "all_but"]
    weights: str | None = None
    block: int | None = None
    module: str | None = None

    @property
    def label(self) -> str:
        """As `read_role` reads it."""
        unit = f"block {self.block}" + ("" if self.module is None else f" {self.module}")
        match self.kind:
            case "reference":
                return "high precision"
            case "all":
                return f"{self.weights}, all blocks"
            case "only":
                return f"{self.weights}, only {unit}"
            case "all_but":
                return f"{self.weights}, all but {unit}"


@dataclass(frozen=True)
class MixedRole:
    """A part that a cell plays in the mixed study.

    Attributes:
        kind: reference: nothing quantized; none: nothing spared; pair: two blocks quantized alone together, which chooses nothing; the
            others: how the spared blocks were chosen.
        k: number of spared blocks; 0 for reference, none and pair.
        index: of a random plan, from 0.
        weights: the format's name, only of none and pair.
        name: of a plan's file, only of plan.
        blocks: the two of a pair, ascending.
    """

    kind: Literal["reference", "none", "first+last", "last", "most sensitive", "gradient", "milp", "random", "plan", "pair"]
    k: int = 0
    index: int | None = None
    weights: str | None = None
    name: str | None = None
    blocks: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """As `read_mixed_roles` reads it, one part."""
        match self.kind:
            case "pair":
                return f"{self.weights}, only blocks {' '.join(map(str, self.blocks))}"
            case "plan":
                return f"plan {self.name}"
            case "reference":
                return "high precision"
            case "none":
                return f"{self.weights}, none spared"
            case "random":
                return f"random {self.index}, k={self.k}"
            case _:
                return f"{self.kind}, k={self.k}"


_SENSITIVITY = re.compile(
    r"(?P<weights>\S+), (?:(?P<all>all blocks)|(?P<direction>only|all but) block (?P<block>\d+)(?: (?P<module>[a-z]\S*))?)"
)
_MIXED = re.compile(r"(?P<kind>first\+last|last|most sensitive|gradient|milp|random)(?: (?P<index>\d+))?, k=(?P<k>\d+)")
_CHOSEN: tuple[Literal["first+last", "last", "most sensitive", "gradient", "milp"], ...] = (
    "first+last",
    "last",
    "most sensitive",
    "gradient",
    "milp",
)
_NONE = re.compile(r"(?P<weights>\S+), none spared")
_PAIR = re.compile(r"(?P<weights>\S+), only blocks (?P<first>\d+) (?P<second>\d+)")
_PLAN = re.compile(r"plan (?P<name>[a-z0-9][a-z0-9.-]*)")


def read_role(label: str) -> SensitivityRole:
    """The part that a cell of the sensitivity study plays.

    Raises:
        DataError: the label does not follow the grammar above.
    """
    if label == "high precision":
        return SensitivityRole("reference")
    match = _SENSITIVITY.fullmatch(label)
    if match is None:
        raise DataError(f"label {label!r} is not one of the sensitivity study; delete its record and run the study again")
    if match["all"]:
        return SensitivityRole("all", match["weights"])
    direction: Literal["only", "all_but"] = "only" if match["direction"] == "only" else "all_but"
    return SensitivityRole(direction, match["weights"], int(match["block"]), match["module"])


def read_mixed_roles(label: str) -> tuple[MixedRole, ...]:
    """Every part that a cell of the mixed study plays.

    Raises:
        DataError: the label does not follow the grammar above.
    """
    return tuple(_read_mixed_role(part) for part in label.split(JOINT))


def _read_mixed_role(part: str) -> MixedRole:
    if part == "high precision":
        return MixedRole("reference")
    if none := _NONE.fullmatch(part):
        return MixedRole("none", weights=none["weights"])
    if pair := _PAIR.fullmatch(part):
        return MixedRole("pair", weights=pair["weights"], blocks=(int(pair["first"]), int(pair["second"])))
    if plan := _PLAN.fullmatch(part):
        return MixedRole("plan", name=plan["name"])
    match = _MIXED.fullmatch(part)
    if match is None or (match["kind"] == "random") != (match["index"] is not None):
        raise DataError(f"label {part!r} is not one of the mixed study; delete its record and run the study again")
    k = int(match["k"])
    if match["kind"] == "random":
        return MixedRole("random", k, int(match["index"]))
    return MixedRole(next(kind for kind in _CHOSEN if kind == match["kind"]), k)


def spared_blocks(plan: Plan, depth: int) -> tuple[int, ...]:
    """The blocks of a model of `depth` blocks that a plan leaves wholly in high precision, ascending."""
    formats = plan.resolve(linear_names(depth))
    low = {int(name.split(".")[1]) for name, weights in formats.items() if not isinstance(weights, HighPrecision)}
    return tuple(block for block in range(depth) if block not in low)
