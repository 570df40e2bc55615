"""Plans on the clock: an arm predicts itself, a plan lies between the arms of its formats, and what is not known is null."""

from pathlib import Path

import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.plan_predictions import additivity, additivity_fits, predicted_ms, timed_plans
from lowbit_vit.analysis.results import Result, load_results
from lowbit_vit.analysis.sensitivity import scores
from lowbit_vit.report.allocation_tables import timed_table
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import NF4, all_but, uniform
from lowbit_vit.schema.workspace import Workspace

Runs = tuple[Profile, Workspace, list[Result], list[Result]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    profile, workspace = synthetic.fill(tmp_path_factory.mktemp("timed") / "root")
    return profile, workspace, load_results(workspace, "mixed"), load_results(workspace, "variants")


def test_timed_plans_stand_beside_the_uniform_arms_of_the_same_settings(runs: Runs) -> None:
    profile, _, mixed, variants = runs
    frame = timed_plans(mixed, variants, profile)
    cells = frame.filter(pl.col("study") == "mixed")
    assert cells.height == 2 * 3  # high precision and the optimum for two values of k, at two batch sizes
    arms = set(frame.filter(pl.col("study") == "variants").get_column("plan"))
    assert arms == {"NF4 after training", "NF4, double quantization", "int8, threshold 6", "int8, threshold 0"}
    assert frame.filter(pl.col("plan") == "NF4 after training").get_column("ratio").to_list() == pytest.approx([1, 1])
    assert frame.filter(pl.col("plan") == "high precision").get_column("ratio").to_list() == pytest.approx([1, 1])
    for row in cells.filter(pl.col("plan").str.contains("milp")).to_dicts():
        assert row["ratio"] == pytest.approx(row["p50_ms"] / row["predicted_ms"])
        assert row["peak_memory_mib"] > 0
    table = timed_table(frame)
    assert len(table.lines("html")) == frame.height
    assert all(len(row.cells) == len(table.shown("html")) for row in table.lines("html"))


def test_half_the_blocks_cost_half_the_difference(runs: Runs) -> None:
    profile, _, mixed, variants = runs
    nf4 = NF4(format="nf4", double_quantization=False)
    timed = [*variants, *mixed]
    plans = [uniform(nf4, "fp32"), all_but(range(4), nf4, "fp32"), all_but(range(7), nf4, "fp32")]
    whole, half, eighth = (predicted_ms(plan, profile, timed, batch_size=1) for plan in plans)
    assert whole is not None
    assert half is not None
    assert eighth is not None
    assert half - eighth == pytest.approx(3 * (whole - half) / 4)
    assert predicted_ms(plans[0], profile, variants, batch_size=1) is None  # no arm is in high precision with this attention
    assert predicted_ms(plans[0], profile, timed, batch_size=7) is None
    otherwise = profile.model_copy(update={"mixed": profile.mixed.model_copy(update={"attention": "math"})})
    assert predicted_ms(plans[0], otherwise, timed, batch_size=1) is None  # the arms' attention is another


def test_the_additivity_table_holds_the_latency_of_the_largest_batch(runs: Runs) -> None:
    profile, workspace, mixed, variants = runs
    sensitivity = gather_cells(load_results(workspace, "sensitivity"))
    frame = additivity(gather_cells(mixed), sensitivity, scores(sensitivity, profile), profile, variants=variants)
    timed = frame.drop_nulls("p50_ms")
    assert timed.height == 2
    assert set(timed.get_column("batch_size")) == {32}
    assert timed.get_column("predicted_ms").null_count() == 0
    fits = additivity_fits(pl.concat([frame, timed]))
    assert fits.filter(pl.col("quantity") == "p50_ms").get_column("plans").to_list() == [4]


def test_where_nothing_was_timed_the_table_is_empty(tmp_path: Path) -> None:
    demo = synthetic.load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    profile = demo.model_copy(update={"mixed": demo.mixed.model_copy(update={"timed": ()})})
    profile, workspace = synthetic.fill(tmp_path / "root", profile=profile)
    assert timed_plans(load_results(workspace, "mixed"), load_results(workspace, "variants"), profile).is_empty()
