"""A plan gives every encoder linear exactly one format, and says so when a pattern matches nothing."""

import pytest
from pydantic import ValidationError

import synthetic
from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.plan import (
    NF4,
    HighPrecision,
    Int8,
    Plan,
    Rule,
    SensitivityScores,
    all_but,
    linear_names,
    only,
    spared_blocks,
    uniform,
)

NF4_PLAIN = NF4(format="nf4", double_quantization=False)
INT8 = Int8(format="int8", threshold=6.0)
NAMES = ("attention.q", "attention.k", "attention.v", "attention.out", "mlp.fc1", "mlp.fc2")
LINEARS = [f"blocks.{block}.{name}" for block in range(24) for name in NAMES]


def quantized(plan: Plan) -> set[int]:
    return {int(name.split(".")[1]) for name, weights in plan.resolve(LINEARS).items() if weights.format != "high"}


def test_vit_l_16_has_144_linears_and_a_uniform_plan_takes_them_all() -> None:
    formats = uniform(NF4_PLAIN, "fp16").resolve(LINEARS)
    assert len(formats) == 144
    assert set(formats.values()) == {NF4_PLAIN}


def test_spared_blocks_are_found_in_the_plan() -> None:
    assert spared_blocks(all_but([1, 6], NF4_PLAIN, "fp32"), 8) == (1, 6)
    assert spared_blocks(only([1, 10], NF4_PLAIN, "fp32"), 12) == (0, 2, 3, 4, 5, 6, 7, 8, 9, 11)
    assert spared_blocks(uniform(NF4_PLAIN, "fp32"), 8) == ()
    assert spared_blocks(Plan(compute_dtype="fp32"), 2) == (0, 1)


def test_high_precision_needs_no_rule() -> None:
    assert uniform(HighPrecision(), "fp32").rules == ()


@pytest.mark.parametrize("blocks", [(0,), (1,), (2, 11), (0, 23), (20, 21, 22, 23)])
def test_only_and_all_but_are_complements(blocks: tuple[int, ...]) -> None:
    # Block 1 must not match blocks 10 to 19.
    assert quantized(only(blocks, INT8, "fp16")) == set(blocks)
    assert quantized(all_but(blocks, INT8, "fp16")) == set(range(24)) - set(blocks)


def test_the_last_rule_that_matches_wins() -> None:
    plan = Plan(compute_dtype="fp16", rules=(Rule(pattern="blocks.*", weights=NF4_PLAIN), Rule(pattern="*.mlp.fc2", weights=INT8)))
    formats = plan.resolve(LINEARS)
    assert formats["blocks.3.mlp.fc2"] == INT8
    assert formats["blocks.3.mlp.fc1"] == NF4_PLAIN


@pytest.mark.parametrize("pattern", ["blocks.24.*", "block.*", "head"])
def test_a_pattern_that_matches_nothing_is_named(pattern: str) -> None:
    plan = Plan(compute_dtype="fp16", rules=(Rule(pattern=pattern, weights=INT8),))
    with pytest.raises(ConfigError, match="matches none of 144 layers"):
        plan.resolve(LINEARS)


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (Plan(compute_dtype="bf16"), "bf16"),
        (uniform(NF4_PLAIN, "fp16"), "nf4/fp16"),
        (uniform(NF4(format="nf4", double_quantization=True), "fp16"), "nf4-dq/fp16"),
        (uniform(INT8, "fp16"), "int8-6/fp16"),
        (all_but((0, 23), NF4_PLAIN, "fp16"), "mixed/fp16"),
    ],
)
def test_names_are_short_and_distinct(plan: Plan, name: str) -> None:
    assert plan.name == name


def scores(direction: str, means: list[float]) -> SensitivityScores:
    blocks = tuple(synthetic.block_score(block, (mean, mean)) for block, mean in enumerate(means))
    return SensitivityScores.model_validate(
        {"profile": "demo", "backbone_sha256": "0" * 64, "weights": NF4_PLAIN, "direction": direction, "images": 10, "blocks": blocks}
    )


def test_the_most_sensitive_blocks_cost_most_alone_and_save_most_when_spared() -> None:
    assert scores("only", [0.1, 0.4, 0.2, 0.3]).most_sensitive(2) == (1, 3)
    assert scores("all_but", [0.1, 0.4, 0.2, 0.3]).most_sensitive(2) == (0, 2)
    assert scores("only", [0.1, 0.1, 0.1]).most_sensitive(2) == (0, 1)  # a tie goes to the smaller number
    with pytest.raises(ConfigError, match=r"outside 1\.\.3"):
        scores("only", [0.1, 0.1, 0.1]).most_sensitive(4)


def test_a_score_that_is_not_finite_is_refused() -> None:
    text = scores("only", [0.1, 0.2]).model_dump_json().replace("0.2,0.2", "NaN,0.2")
    with pytest.raises(ValidationError, match="finite"):
        SensitivityScores.model_validate_json(text)


def test_one_linear_is_quantized_alone_or_spared_alone() -> None:
    names = linear_names(2)
    alone = only(["blocks.1.mlp.fc1"], INT8, "fp32").resolve(names)
    spared = all_but(["blocks.1.mlp.fc1"], INT8, "fp32").resolve(names)
    assert {name for name in names if alone[name] == INT8} == {"blocks.1.mlp.fc1"}
    assert {name for name in names if spared[name] != INT8} == {"blocks.1.mlp.fc1"}
    assert linear_names(1, fused=True) == ["blocks.0.attention.qkv", "blocks.0.attention.out", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"]
