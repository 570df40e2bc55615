"""A label says which part its cell plays, and reads back as the same part."""

import pytest

from lowbit_vit.errors import DataError
from lowbit_vit.schema.plan import NF4, Plan, all_but, only, uniform
from lowbit_vit.schema.roles import JOINT, MixedRole, SensitivityRole, read_mixed_roles, read_role, spared_blocks

SENSITIVITY = [
    SensitivityRole("reference"),
    SensitivityRole("all", "nf4"),
    SensitivityRole("only", "nf4-dq", 0),
    SensitivityRole("all_but", "int8-0", 23),
    SensitivityRole("only", "int8-0.5", 3),
    SensitivityRole("all_but", "nf4", 3, "mlp.fc1"),
]
MIXED = [
    MixedRole("reference"),
    MixedRole("none", weights="nf4"),
    MixedRole("first+last", 2),
    MixedRole("last", 4),
    MixedRole("most sensitive", 2),
    MixedRole("random", 4, 19),
    MixedRole("milp", 2),
    MixedRole("gradient", 4),
    MixedRole("plan", name="by-hand"),
    MixedRole("pair", weights="nf4-dq", blocks=(0, 11)),
]
FORMAT = NF4(format="nf4", double_quantization=False)


@pytest.mark.parametrize("role", SENSITIVITY, ids=lambda role: role.label)
def test_sensitivity_labels_read_back(role: SensitivityRole) -> None:
    assert read_role(role.label) == role


@pytest.mark.parametrize("role", MIXED, ids=lambda role: role.label)
def test_mixed_labels_read_back(role: MixedRole) -> None:
    assert read_mixed_roles(role.label) == (role,)


def test_a_cell_of_several_parts_reads_back_as_all_of_them() -> None:
    assert read_mixed_roles(JOINT.join(role.label for role in MIXED)) == tuple(MIXED)


@pytest.mark.parametrize("label", ["", "nf4", "nf4, only block x", "Baseline ViT"])
def test_a_foreign_label_is_an_error_in_sensitivity(label: str) -> None:
    with pytest.raises(DataError, match="not one of the sensitivity study"):
        read_role(label)


@pytest.mark.parametrize("label", ["", "random, k=2", "last 3, k=2", "last, k=2 = what", "nf4, all blocks"])
def test_a_foreign_label_is_an_error_in_mixed(label: str) -> None:
    with pytest.raises(DataError, match="not one of the mixed study"):
        read_mixed_roles(label)


def test_spared_blocks_are_read_from_the_plan() -> None:
    assert spared_blocks(all_but([1, 6], FORMAT, "fp32"), 8) == (1, 6)
    assert spared_blocks(only([1, 10], FORMAT, "fp32"), 12) == (0, 2, 3, 4, 5, 6, 7, 8, 9, 11)
    assert spared_blocks(uniform(FORMAT, "fp32"), 8) == ()
    assert spared_blocks(Plan(compute_dtype="fp32"), 2) == (0, 1)
