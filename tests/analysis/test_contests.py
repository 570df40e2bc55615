"""At equal bytes: ranks among random plans, paired tests against the heuristic, all from the report half alone."""

import dataclasses

import numpy as np
import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.contests import contests
from lowbit_vit.analysis.results import Result, load_results


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    _, workspace = synthetic.fill(tmp_path_factory.mktemp("contests") / "root", studies=("sensitivity", "mixed"))
    return load_results(workspace, "mixed")


def test_each_choice_is_ranked_among_the_random_plans_of_its_k(mixed: list[Result]) -> None:
    frame = contests(mixed)
    assert frame.select("k", "strategy").rows() == [
        (k, strategy) for k in (2, 4) for strategy in ("first+last", "gradient", "last", "milp", "most sensitive")
    ]
    assert set(frame.get_column("random_plans")) == {20}
    assert set(frame.get_column("images")) == {300}
    assert frame.get_column("rank_p_kl").is_between(1 / 21, 1).all()
    # Sparing the last blocks is the best there is among the synthetic models: no random plan has less KL, equal ones count.
    for row in frame.filter(pl.col("strategy") == "most sensitive").to_dicts():
        assert row["rank_p_kl"] <= 2 / 21
        assert row["kl"] < row["random_median_kl"]


def test_the_heuristic_is_fought_image_by_image(mixed: list[Result]) -> None:
    for row in contests(mixed).to_dicts():
        if row["strategy"] == "first+last":
            assert row["p_flips"] is None
            assert row["kl_difference"] is None
            continue
        assert row["flips_ratio"] == pytest.approx(row["flips"] / row["heuristic_flips"])
        assert row["p_flips_holm"] >= row["p_flips"]
        assert row["kl_difference"] == pytest.approx(row["kl"] - row["heuristic_kl"])
        assert row["kl_difference_low"] <= row["kl_difference"] <= row["kl_difference_high"]
        if row["strategy"] == "milp":
            assert row["kl_difference_high"] < 0


def test_the_selection_half_decides_nothing(mixed: list[Result]) -> None:
    changed = []
    for result in mixed:
        predictions = result.predictions
        assert predictions is not None
        assert predictions.kl is not None
        kl = np.where(predictions.selection, 99.0, predictions.kl).astype(np.float32)
        best = np.where(predictions.selection, 7, predictions.best).astype(np.uint16)
        changed.append(dataclasses.replace(result, predictions=dataclasses.replace(predictions, kl=kl, best=best)))
    assert contests(changed).equals(contests(mixed))


def test_without_the_reference_there_is_no_contest(mixed: list[Result]) -> None:
    others = [result for result in mixed if "high precision" not in result.record.trial.label]
    assert contests(others).is_empty()
    assert contests([]).is_empty()
