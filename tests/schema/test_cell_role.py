"""A cell's parts are data of its trial: they survive its JSON, hold what their kind has and nothing else, and are told in words."""

import pytest
from pydantic import TypeAdapter, ValidationError

from lowbit_vit.schema.cell_role import (
    AllBlocks,
    BlockPair,
    CellRole,
    Chosen,
    GivenPlan,
    NoneSpared,
    OneUnit,
    Random,
    Reference,
    label_of,
    unit_role,
)

ROLES: dict[str, CellRole] = {
    "high precision": Reference(),
    "nf4, all blocks": AllBlocks(weights="nf4"),
    "nf4-dq, only block 0": OneUnit(kind="only", weights="nf4-dq", block=0),
    "int8-0, all but block 23": OneUnit(kind="all_but", weights="int8-0", block=23),
    "nf4, all but block 3 mlp.fc1": OneUnit(kind="all_but", weights="nf4", block=3, module="mlp.fc1"),
    "nf4, none spared": NoneSpared(weights="nf4"),
    "first+last, k=2": Chosen(kind="first+last", k=2),
    "most sensitive, k=4": Chosen(kind="most sensitive", k=4),
    "random 19, k=4": Random(k=4, index=19),
    "plan by-hand": GivenPlan(name="by-hand"),
    "nf4-dq, only blocks 0 11": BlockPair(weights="nf4-dq", blocks=(0, 11)),
}
ANY: TypeAdapter[CellRole] = TypeAdapter(CellRole)


@pytest.mark.parametrize(("label", "role"), ROLES.items(), ids=ROLES)
def test_a_role_survives_its_json_and_has_a_label(label: str, role: CellRole) -> None:
    assert ANY.validate_json(role.model_dump_json()) == role
    assert label_of(role) == label


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "first"},
        {"kind": "reference", "weights": "nf4"},
        {"kind": "only", "weights": "nf4"},
        {"kind": "only", "weights": "nf4", "block": -1},
        {"kind": "random", "k": 2},
        {"kind": "last", "k": 2, "index": 3},
        {"kind": "pair", "weights": "nf4", "blocks": (1, 2, 3)},
    ],
)
def test_a_role_with_a_key_too_few_or_too_many_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ANY.validate_python(values)


def test_a_unit_is_named_as_in_the_model() -> None:
    assert unit_role("only", "nf4", "blocks.11") == OneUnit(kind="only", weights="nf4", block=11)
    assert unit_role("all_but", "nf4", "blocks.3.attention.q") == OneUnit(kind="all_but", weights="nf4", block=3, module="attention.q")
