"""The sentence of a recommendation: formats by block, size, changed predictions and speed, with what is sure of them."""

import dataclasses

import pytest

import synthetic
from lowbit_vit.analysis.latencies import Ratio
from lowbit_vit.analysis.programme import Budget
from lowbit_vit.analysis.recommendation import Recommendation, choose, measured_models
from lowbit_vit.report.recommendation import evidence, plan_words, sentence
from lowbit_vit.schema.config import load_profile
from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.plan import NF4, HighPrecision, Int8, Plan, Rule, all_but, only, uniform

PROFILE = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
N, I = NF4(format="nf4", double_quantization=False), Int8(format="int8", threshold=0.0)  # noqa: E741


@pytest.fixture(scope="module")
def model() -> Recommendation:
    return choose(measured_models(PROFILE, synthetic.findings("variants").results), Budget("flips", 10))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (uniform(N, "fp32"), "NF4 in all blocks"),
        (uniform(HighPrecision(), "bf16"), "bf16 in all blocks, nothing quantized"),
        (uniform(NF4(format="nf4", double_quantization=True), "fp16"), "NF4 (double quantization) in all blocks"),
        (all_but([0, 7], N, "fp16"), "fp16 in blocks 0, 7, NF4 elsewhere"),
        (only([3], N, "bf16"), "NF4 in block 3, bf16 elsewhere"),
        (all_but(["blocks.2.attention.q"], N, "fp16"), "fp16 in 2.attention.q, NF4 elsewhere"),
        (
            Plan(
                compute_dtype="fp16", rules=(*uniform(N, "fp16").rules, *(Rule(pattern=f"blocks.{b}.*", weights=I) for b in (0, 1, 2, 5)))
            ),
            "int8 (threshold 0) in blocks 0-2, 5, NF4 elsewhere",
        ),
        (all_but([f"blocks.{block}.mlp.fc1" for block in range(7)], N, "fp16"), "fp16 in 7 linears, NF4 elsewhere"),
    ],
)
def test_a_plan_is_told_by_its_blocks_the_most_common_format_last(plan: Plan, words: str) -> None:
    assert plan_words(plan, 10) == words


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (Ratio(1.2, Interval(low=1.1, high=1.3)), "1.20x faster (1.10 to 1.30)"),
        (Ratio(0.5, Interval(low=0.4, high=0.625)), "2.00x slower (1.60 to 2.50)"),
        (Ratio(1.02, Interval(low=0.97, high=1.04)), "as fast (0.97x to 1.04x)"),
        (Ratio(1.2, None), "1.20x faster (too few samples for an interval)"),
    ],
)
def test_a_speed_whose_interval_holds_one_is_neither_faster_nor_slower(model: Recommendation, ratio: Ratio, words: str) -> None:
    assert model.speed is not None
    told = sentence(dataclasses.replace(model, speed=dataclasses.replace(model.speed, faster=ratio)))
    assert told.endswith(f", {words}")


def test_what_was_not_run_says_that_it_is_predicted(model: Recommendation) -> None:
    assert model.speed is not None
    speed = dataclasses.replace(model.speed, predicted=True, faster=Ratio(1.2, None))
    told = sentence(dataclasses.replace(model, result=None, speed=speed))
    assert "% of predictions change (predicted; " in told
    assert told.endswith("1.20x faster (predicted)")


def test_its_evidence_names_both_halves_the_reference_and_the_command(model: Recommendation) -> None:
    chosen, reported, export = evidence(PROFILE, model, Budget("flips", 10))
    assert "at most 1 % of predictions, on the selection half of the test images (300): 1.0 % there." in chosen.text
    assert reported.text.startswith("on the other half 4 of 300 predictions are not those of fp32, math attention")
    assert "McNemar's p 1.000" in reported.text
    assert model.result is not None
    assert export.text == f"lowbit-vit export demo {model.result.record.trial_id} exported"
