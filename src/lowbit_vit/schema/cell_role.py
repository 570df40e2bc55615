"""The roles of a cell in the sensitivity and mixed studies: data of its trial, outside the trial's identity.

A mixed cell may have several roles (a random plan that equals a heuristic's) and is run once. Labels are for display and are never
parsed. `schema.plan.spared_blocks` finds which blocks a plan spares.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from lowbit_vit.schema.plan import Frozen, HighPrecision, Label, Plan, linear_names, spared_blocks


class Reference(Frozen):
    """Nothing is quantized; in both studies."""

    kind: Literal["reference"] = "reference"


class AllBlocks(Frozen):
    """Sensitivity: every block is quantized."""

    kind: Literal["all"] = "all"
    weights: Label = Field(description="the format's name, as in all roles")


class OneUnit(Frozen):
    """Sensitivity: one block, or one linear of it, is alone quantized or alone spared."""

    kind: Literal["only", "all_but"]
    weights: Label
    block: int = Field(ge=0, lt=1000)
    module: Label | None = Field(default=None, description="such as attention.q; null: the whole block")


class NoneSpared(Frozen):
    """Mixed: every block is quantized."""

    kind: Literal["none"] = "none"
    weights: Label


class Chosen(Frozen):
    """Mixed: k blocks are spared, by a heuristic or from data; of milp and gradient, the bytes are those of k spared blocks."""

    kind: Literal["first+last", "last", "most sensitive", "gradient", "milp"]
    k: int = Field(ge=1, lt=1000)


class Random(Frozen):
    """Mixed: k random blocks are spared, the control."""

    kind: Literal["random"] = "random"
    k: int = Field(ge=1, lt=1000)
    index: int = Field(ge=0, lt=1_000_000)


class GivenPlan(Frozen):
    """Mixed: the plan of a file."""

    kind: Literal["plan"] = "plan"
    name: Label


class BlockPair(Frozen):
    """Mixed: two blocks alone are quantized, to measure how they interact."""

    kind: Literal["pair"] = "pair"
    weights: Label
    blocks: tuple[int, int] = Field(description="ascending")


CellRole = Annotated[Reference | AllBlocks | OneUnit | NoneSpared | Chosen | Random | GivenPlan | BlockPair, Field(discriminator="kind")]


def unit_role(kind: Literal["only", "all_but"], weights: str, name: str) -> OneUnit:
    """The role of a unit by its name in the model, such as blocks.3 or blocks.3.attention.q."""
    _, block, *module = name.split(".", 2)
    return OneUnit(kind=kind, weights=weights, block=int(block), module=module[0] if module else None)


def label_of(role: CellRole) -> str:  # noqa: PLR0911  (one for each kind)
    """The role in words, for display; a cell's label joins those of its roles with " = "."""
    match role:
        case Reference():
            return "high precision"
        case AllBlocks():
            return f"{role.weights}, all blocks"
        case OneUnit():
            unit = f"block {role.block}" + ("" if role.module is None else f" {role.module}")
            return f"{role.weights}, {'only' if role.kind == 'only' else 'all but'} {unit}"
        case NoneSpared():
            return f"{role.weights}, none spared"
        case Chosen():
            return f"{role.kind}, k={role.k}"
        case Random():
            return f"random {role.index}, k={role.k}"
        case GivenPlan():
            return f"plan {role.name}"
        case BlockPair():
            return f"{role.weights}, only blocks {role.blocks[0]} {role.blocks[1]}"


def fits(role: CellRole, plan: Plan, *, depth: int) -> bool:  # noqa: PLR0911  (one for each kind)
    """Whether a plan for a model of `depth` blocks does what the role says."""
    formats = plan.resolve(linear_names(depth))
    low_bit = {name for name, weights in formats.items() if not isinstance(weights, HighPrecision)}
    names = {formats[name].name for name in low_bit}
    match role:
        case Reference():
            return not low_bit
        case AllBlocks() | NoneSpared():
            return low_bit == set(formats) and names == {role.weights}
        case OneUnit():
            unit = _linears(formats, role.block, role.module)
            return low_bit == (unit if role.kind == "only" else set(formats) - unit) and names <= {role.weights}
        case BlockPair():
            return low_bit == {name for block in role.blocks for name in _linears(formats, block, None)} and names == {role.weights}
        case Chosen() if role.kind in ("milp", "gradient"):
            return True
        case Chosen() | Random():
            return len(spared_blocks(plan, depth)) == role.k
        case GivenPlan():
            return True


def _linears(formats: Iterable[str], block: int, module: str | None) -> set[str]:
    own = f"blocks.{block}."
    return {name for name in formats if name.startswith(own) and module in (None, name.removeprefix(own))}
