"""The variants study as frames: nothing is lost, seeds are averaged with their spread, comparisons are paired."""

from pathlib import Path

import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.results import Result, load_results
from lowbit_vit.analysis.statistics import margin_test
from lowbit_vit.analysis.variants import kernel_classes, paper_table, variants
from lowbit_vit.schema.config import Profile, load_profile
from lowbit_vit.schema.record import Record, Status

DEMO = load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    _, workspace = synthetic.fill(tmp_path_factory.mktemp("arms") / "root", studies=("variants",))
    return load_results(workspace, "variants")


def labels(profile: Profile = DEMO) -> list[str]:
    return [arm.label for arm in profile.variants.arms]


def two_seeds() -> Profile:
    """The demo profile with two seeds for the second arm."""
    arms = list(DEMO.variants.arms)
    arms[1] = arms[1].model_copy(update={"seeds": (0, 1)})
    return DEMO.model_copy(update={"variants": DEMO.variants.model_copy(update={"arms": tuple(arms)})})


def test_one_row_for_each_trial_and_batch_size_in_the_profiles_order(results: list[Result]) -> None:
    frame = variants(Frames(results, arms=labels()))
    assert frame.get_column("arm").unique(maintain_order=True).to_list() == labels()
    assert frame.height == 10 * 2 + 3


def test_every_number_is_the_records(results: list[Result]) -> None:
    frame = variants(Frames(results, arms=labels()))
    for result in results:
        record = result.record
        if record.model is None or result.whole is None:
            continue
        for latency in result.latency.values():
            row = frame.row(by_predicate=(pl.col("trial_id") == record.trial_id) & (pl.col("batch_size") == latency.batch_size), named=True)
            assert row["mean_ms"] == latency.mean_ms
            assert row["p99_ms"] is None
            assert row["file_mib"] * 2**20 == record.model.file_bytes
            assert row["top1"] == result.whole.top1
            assert row["top1_low"] < row["top1"] < row["top1_high"]
            assert row["memory_is"] == "resident set"


def test_top1_is_compared_image_by_image_with_the_papers_baseline_of_the_same_seed(results: list[Result]) -> None:
    frame = variants(Frames(results, arms=labels()))
    baseline = frame.filter(pl.col("paper_row") == 0)
    assert baseline.get_column("difference").null_count() == baseline.height
    for row in frame.filter((pl.col("status") == "success") & (pl.col("paper_row") != 0)).to_dicts():
        assert row["difference"] == pytest.approx(row["top1"] - baseline.item(0, "top1"))
        assert row["gained"] - row["lost"] == round(row["difference"] * row["images"])


def test_skipped_arms_stay_in_the_table_with_their_reason(results: list[Result]) -> None:
    table = paper_table(variants(Frames(results, arms=labels())))
    skipped = table.filter(pl.col("status") == "skipped")
    assert skipped.get_column("arm").to_list() == ["4-bit + FlashAttn2", "8-bit + FlashAttn2", "NF4, CUDA graph"]
    assert skipped.get_column("reason").unique().to_list() == ["skipped: needs CUDA"]
    assert skipped.get_column("top1").null_count() == 3


def test_seeds_are_averaged_and_their_range_is_shown(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", profile=synthetic.in_processes(two_seeds(), 1), studies=("variants",))
    frame = variants(Frames(load_results(workspace, "variants"), arms=labels(profile)))
    seeds = frame.filter((pl.col("paper_row") == 1) & (pl.col("batch_size") == 1))
    row = paper_table(frame).row(by_predicate=(pl.col("paper_row") == 1) & (pl.col("batch_size") == 1), named=True)
    values = seeds.get_column("mean_ms").to_list()
    assert row["seeds"] == "0 1"
    assert row["mean_ms"] == pytest.approx(sum(values) / 2)
    assert row["mean_ms_spread"] == pytest.approx(max(values) - min(values))
    # One p value for two seeds would pool them.
    assert row["p_value"] is None


def test_a_seed_measured_in_one_process_does_not_weigh_as_much_as_one_in_six(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", profile=synthetic.in_processes(two_seeds(), 6), studies=("variants",))
    results = load_results(workspace, "variants")
    row = paper_table(variants(Frames(results, arms=labels(profile)))).filter(pl.col("paper_row") == 1).row(0, named=True)
    (first,) = (result for result in results if (result.record.trial.paper_row, result.record.trial.seed) == (1, 0))
    latency = first.latency[row["batch_size"]]
    assert latency.p50_ci_ms is not None
    assert (row["seeds"], row["processes"], row["p50_ms"]) == ("0 1", 6, latency.p50_ms)
    assert (row["p50_low_ms"], row["p50_high_ms"]) == (latency.p50_ci_ms.low, latency.p50_ci_ms.high)
    assert row["top1_spread"] is not None


@pytest.mark.parametrize("status", ["failed", "oom", "timeout", "skipped"])
def test_an_arm_with_one_bad_seed_shows_the_good_one_and_names_the_bad(tmp_path: Path, status: Status) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", profile=two_seeds(), studies=("variants",))
    results = load_results(workspace, "variants")
    broken = [_break(result, status) if result.record.trial.seed == 1 else result for result in results]
    table = paper_table(variants(Frames(broken, arms=labels(profile)))).filter(pl.col("paper_row") == 1)
    assert table.height == 2
    assert table.get_column("status").to_list() == ["success", "success"]
    assert table.get_column("reason").to_list() == [f"{status}: synthetic reason"] * 2
    assert table.get_column("failed_seeds").to_list() == ["1", "1"]


def _break(result: Result, status: Status) -> Result:
    record: Record = synthetic.unfinished(result.record.trial, status, "synthetic reason")
    return Result(record, None)


def test_no_records_make_an_empty_table() -> None:
    assert paper_table(variants(Frames([]))).is_empty()
    assert kernel_classes(Frames([])).is_empty()


def test_kernel_classes_add_up_to_the_traced_time(results: list[Result]) -> None:
    frame = kernel_classes(Frames(results, arms=labels()))
    table = variants(Frames(results, arms=labels())).filter(pl.col("status") == "success")
    total = frame.group_by("arm", "batch_size").agg(pl.col("us").sum())
    joined = total.join(table.select("arm", "batch_size", "kernel_us"), on=["arm", "batch_size"])
    assert joined.height == table.height
    assert (joined["us"] - joined["kernel_us"]).abs().max() == pytest.approx(0, abs=1e-6)


def test_every_comparison_with_the_baseline_is_tested_against_the_margin_and_adjusted_for_their_number(results: list[Result]) -> None:
    frame = variants(Frames(results, arms=labels()), margin=DEMO.statistics.margin)
    compared = frame.filter(pl.col("p_value").is_not_null()).unique("trial_id")
    assert compared.height == 9
    assert (compared["p_holm"] >= compared["p_value"]).all()
    p_values = compared["p_value"].to_list()
    assert min(compared["p_holm"].to_list()) == pytest.approx(min(1.0, min(p_values) * 9))
    assert (compared["p_mid"] <= compared["p_value"]).all()
    for row in compared.to_dicts():
        test = margin_test(row["lost"], row["gained"], images=row["images"], margin=DEMO.statistics.margin)
        assert (row["p_inferior"], row["p_equivalent"]) == (test.p_inferior, test.p_equivalent)


def test_without_a_margin_nothing_is_called_equivalent(results: list[Result]) -> None:
    frame = variants(Frames(results, arms=labels()))
    assert frame["p_inferior"].null_count() == frame["p_equivalent"].null_count() == frame.height
