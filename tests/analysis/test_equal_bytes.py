"""At equal bytes: ranks among random plans, paired tests against the heuristic, all from the report half alone."""

import dataclasses

import numpy as np
import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.mixed import equal_bytes
from lowbit_vit.analysis.results import Result, load_results
from lowbit_vit.schema.cell_role import Reference


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    _, workspace = synthetic.fill(tmp_path_factory.mktemp("contests") / "root", studies=("sensitivity", "mixed"))
    return load_results(workspace, "mixed")


def test_each_choice_is_ranked_among_the_random_plans_of_its_k(mixed: list[Result]) -> None:
    frame = equal_bytes(gather_cells(mixed), depth=8)
    assert frame.select("k", "strategy").rows() == [
        (k, strategy) for k in (2, 4) for strategy in ("first+last", "gradient", "last", "milp", "most sensitive")
    ]
    assert dict(frame.select("k", "random_plans").unique().rows()) == {2: 28, 4: 39}
    assert set(frame.get_column("images")) == {300}
    for row in frame.to_dicts():
        # Sparing the last blocks is the best there is among the synthetic models.
        if row["strategy"] == "most sensitive":
            assert row["rank_p_kl"] <= 2 / (1 + row["random_plans"])
            assert row["kl"] < row["random_median_kl"]
        assert 1 / (1 + row["random_plans"]) <= row["rank_p_kl"] <= 1


def test_where_every_plan_was_run_the_p_value_is_the_share_that_is_as_good(mixed: list[Result]) -> None:
    frame = equal_bytes(gather_cells(mixed), depth=8).filter(pl.col("strategy") == "most sensitive")
    deeper = equal_bytes(gather_cells(mixed), depth=9).filter(pl.col("strategy") == "most sensitive")
    both = frame.join(deeper, on="k", suffix="_of_more").sort("k")
    assert both.get_column("rank_p_kl").to_list()[0] == pytest.approx(1 / 28)
    assert both.get_column("rank_p_kl_of_more").to_list()[0] == pytest.approx(2 / 29)
    assert both.get_column("rank_p_kl").to_list()[1] == both.get_column("rank_p_kl_of_more").to_list()[1]


def test_the_heuristic_is_fought_image_by_image(mixed: list[Result]) -> None:
    for row in equal_bytes(gather_cells(mixed), depth=8).to_dicts():
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
    assert equal_bytes(gather_cells(changed), depth=8).equals(equal_bytes(gather_cells(mixed), depth=8))


def test_without_the_reference_there_is_no_contest(mixed: list[Result]) -> None:
    others = [result for result in mixed if Reference() not in result.record.trial.roles]
    assert equal_bytes(gather_cells(others), depth=8).is_empty()
    assert equal_bytes(gather_cells([]), depth=8).is_empty()
