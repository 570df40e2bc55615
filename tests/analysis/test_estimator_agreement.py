"""How well estimates rank what was measured: 1 where they agree, for blocks and linears, and never across weights."""

import pytest

import synthetic
from lowbit_vit.analysis.sensitivity import estimator_agreement
from lowbit_vit.errors import DataError
from lowbit_vit.schema.plan import NF4, SensitivityScores
from lowbit_vit.schema.stage_documents import Estimates, LinearEstimate

DEPTH = 6
NF4_PLAIN = NF4(format="nf4", double_quantization=False)
PLACES = ("attention.q", "mlp.fc1")


def estimates(*, backbone: str = "ab", weights: str = "nf4") -> Estimates:
    """Block b's two linears are estimated at b and 2 b by weights, the other way round by the gradient."""
    linears = tuple(
        LinearEstimate(
            weights=weights,
            name=f"blocks.{block}.{place}",
            weight_error=block * (1 + index),
            activation_error=1.0,
            gradient=(DEPTH - block) * (1 + index),
            fisher=block + index,
        )
        for block in range(DEPTH)
        for index, place in enumerate(PLACES)
    )
    return Estimates(profile="demo", backbone_sha256=backbone, images=8, seconds=1.0, linears=linears)


def scores(direction: str) -> SensitivityScores:
    """Block b costs b when quantized alone; sparing it saves b."""
    sign = 1 if direction == "only" else -1
    blocks = tuple(synthetic.block_score(block, (10.0 + sign * block,)) for block in range(DEPTH))
    modules = tuple(
        synthetic.block_score(block, (10.0 + sign * (block + 0.1 * index),), module=place)
        for block in range(DEPTH)
        for index, place in enumerate(PLACES)
    )
    return SensitivityScores.model_validate(
        {
            "profile": "demo",
            "backbone_sha256": "ab",
            "weights": NF4_PLAIN,
            "direction": direction,
            "images": 4,
            "blocks": blocks,
            "modules": modules,
        }
    )


@pytest.mark.parametrize("direction", ["only", "all_but"])
def test_tau_says_whether_an_estimator_ranks_as_the_measurement_does(direction: str) -> None:
    rows = estimator_agreement(estimates(), [scores(direction)]).to_dicts()
    tau = {(row["units"], row["estimator"]): row["kendall_tau"] for row in rows}
    assert tau["blocks", "weight error"] == pytest.approx(1)
    assert tau["blocks", "gradient"] == pytest.approx(-1)
    assert tau["blocks", "activation error"] is None
    assert 0 < tau["modules", "fisher"] < 1
    assert {row["number"] for row in rows} == {DEPTH, 2 * DEPTH}


def test_estimates_of_other_weights_or_without_a_format_are_refused() -> None:
    with pytest.raises(DataError, match=r"other weights .* run lowbit-vit estimate demo again"):
        estimator_agreement(estimates(backbone="cd"), [scores("only")])
    with pytest.raises(DataError, match=r"nothing on nf4, blocks\.0"):
        estimator_agreement(estimates(weights="int8-0"), [scores("only")])


def test_without_estimates_there_is_no_row() -> None:
    assert estimator_agreement(None, [scores("only")]).is_empty()
