"""What the sum over blocks predicts of a plan: exact bytes, and a fit that is 1 where losses really add up."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.plan_predictions import additivity, additivity_fits
from lowbit_vit.analysis.results import load_results
from lowbit_vit.analysis.sensitivity import scores


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    profile, workspace = synthetic.fill(tmp_path_factory.mktemp("additivity") / "root", studies=("sensitivity", "mixed"))
    sensitivity, mixed = (gather_cells(load_results(workspace, study)) for study in ("sensitivity", "mixed"))
    return additivity(mixed, sensitivity, scores(sensitivity, profile), profile)


def test_every_plan_that_quantizes_is_there_and_its_bytes_are_predicted_exactly(frame: pl.DataFrame) -> None:
    assert "high precision" not in frame.get_column("plan")
    assert frame.height > 20
    assert frame.filter(pl.col("predicted_weight_bytes") != pl.col("weight_bytes")).is_empty()


def test_more_is_predicted_for_plans_that_spare_less(frame: pl.DataFrame) -> None:
    none = frame.filter(pl.col("strategy") == "none").get_column("predicted_kl").item()
    assert frame.filter(pl.col("strategy") != "none").get_column("predicted_kl").max() < none


def test_the_fit_is_perfect_where_losses_add_up_and_says_by_how_much_where_they_do_not() -> None:
    predicted = np.linspace(1, 2, 20)
    made = {"predicted_kl": predicted, "kl": 2 * predicted, "predicted_flips_per_1000": predicted, "flips_per_1000": predicted}
    made |= {"predicted_weight_bytes": np.full(20, 7), "weight_bytes": np.full(20, 7), "expected_flips_per_1000": predicted + 3}
    made |= {"predicted_ms": predicted, "p50_ms": predicted}
    fits = {row["quantity"]: row for row in additivity_fits(pl.DataFrame(made)).to_dicts()}
    assert fits["flips_per_1000"] == pytest.approx(
        {"quantity": "flips_per_1000", "plans": 20, "r2_line": 1, "r2_identity": 1, "slope": 1, "median_ratio": 1, "mean_error": 0}
    )
    assert (fits["flips_per_1000 from KL"]["r2_line"], fits["flips_per_1000 from KL"]["mean_error"]) == pytest.approx((1, 3))
    assert fits["kl"]["r2_line"] == pytest.approx(1)
    assert fits["kl"]["slope"] == pytest.approx(2)
    assert fits["kl"]["r2_identity"] < 0
    assert (fits["weight_bytes"]["r2_line"], fits["weight_bytes"]["median_ratio"]) == (None, 1)


def test_a_study_that_was_not_run_gives_no_row(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=("sensitivity",))
    sensitivity = gather_cells(load_results(workspace, "sensitivity"))
    frame = additivity(gather_cells([]), sensitivity, scores(sensitivity, profile), profile)
    assert frame.is_empty()
    assert additivity_fits(frame).is_empty()
