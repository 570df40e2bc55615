"""A plan's file: what it means for the model, and what is wrong with a bad one, in one line."""

from pathlib import Path

import pytest

from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.allocation import PlanFile, load_plan_file
from lowbit_vit.schema.plan import NF4, all_but, linear_names

GOOD = """
name: by-hand
compute_dtype: fp16
entries:
  - {unit: blocks.0, weights: {format: high}}
  - {unit: blocks.1, weights: {format: nf4, double_quantization: false}}
  - {unit: blocks.2.mlp.fc1, weights: {format: nf4, double_quantization: false}}
"""


def load(text: str, folder: Path) -> PlanFile:
    path = folder / "plan.yaml"
    path.write_text(text)
    return load_plan_file(path)


def test_a_plan_gives_each_named_unit_its_format_and_leaves_the_rest(tmp_path: Path) -> None:
    plan = load(GOOD, tmp_path)
    formats = {name: weights.name for name, weights in plan.plan(3).resolve(linear_names(3)).items()}
    low = {name for name, weights in formats.items() if weights == "nf4"}
    assert low == {name for name in linear_names(3) if name.startswith("blocks.1.")} | {"blocks.2.mlp.fc1"}
    assert load(plan.model_dump_json(), tmp_path) == plan


def test_a_plan_of_whole_blocks_is_the_heuristics_own(tmp_path: Path) -> None:
    text = GOOD.replace("blocks.2.mlp.fc1", "blocks.2")
    assert load(text, tmp_path).plan(3) == all_but([0], NF4(format="nf4", double_quantization=False), "fp16")


def test_a_skip_list_names_what_stays_in_high_precision(tmp_path: Path) -> None:
    given = load(GOOD, tmp_path).skip_list(3)
    skipped = given["llm_int8_skip_modules"]
    assert isinstance(skipped, list)
    assert len(skipped) == 6 + 5 + 1
    assert "vit.encoder.layer.0.attention.attention.query" in skipped
    assert "vit.encoder.layer.2.intermediate.dense" not in skipped
    assert skipped[-1] == "classifier"
    assert given["load_in_4bit"] is True


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("blocks.1,", "blocks.7,", r"blocks\.7 is not there; the model has blocks\.0 to blocks\.2"),
        ("blocks.1,", "blocks.0,", r"blocks\.0 is given twice"),
        ("blocks.2.mlp.fc1", "blocks.1.mlp.fc1", r"blocks\.1\.mlp\.fc1 is given twice: by itself and with blocks\.1"),
        ("blocks.2.mlp.fc1", "blocks.2.mlp.fc3", r"entries\.2\.unit: .*pattern"),
        ("{format: high}", "{format: fp4}", r"entries\.0\.weights: .*'fp4'"),
        ("name: by-hand", "name: by-hand\nname: other", r"line \d+: not valid YAML: key name is given twice$"),
        ("compute_dtype: fp16", "compute_dtpye: fp16", r"compute_dtype|unknown key"),
    ],
)
def test_what_is_wrong_with_a_plan_is_one_line_that_names_it(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=message) as caught:
        load(GOOD.replace(old, new), tmp_path).plan(3)
    assert "\n" not in str(caught.value)


def test_two_low_bit_formats_give_no_skip_list(tmp_path: Path) -> None:
    text = GOOD.replace("{unit: blocks.0, weights: {format: high}}", "{unit: blocks.0, weights: {format: int8, threshold: 0.0}}")
    with pytest.raises(ConfigError, match="uses int8-0, nf4; BitsAndBytesConfig takes exactly one"):
        load(text, tmp_path).skip_list(3)


def test_a_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: no such plan"):
        load_plan_file(tmp_path / "none.json")
