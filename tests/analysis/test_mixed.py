"""Sensitivity and mixed frames: report half only, every part of a cell counted, random plans as a range."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis import mixed
from lowbit_vit.analysis.block_cells import BlockCells, gather_cells
from lowbit_vit.analysis.results import Result, load_results
from lowbit_vit.analysis.sensitivity import draw_agreement, scores, sensitivity
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import SensitivityScores


@dataclass(frozen=True)
class Studies:
    profile: Profile
    sensitivity: BlockCells
    mixed: list[Result]
    scores: list[SensitivityScores]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    profile, workspace = synthetic.fill(tmp_path_factory.mktemp("blocks") / "root", studies=("sensitivity", "mixed"))
    alone = gather_cells(load_results(workspace, "sensitivity"))
    return Studies(profile, alone, load_results(workspace, "mixed"), scores(alone, profile))


def test_every_cell_of_the_sensitivity_study_is_a_row(studies: Studies) -> None:
    frame = sensitivity(studies.sensitivity, studies.scores)
    assert frame.height == 1 + 2 * (1 + 2 * 8)
    assert frame.get_column("direction").unique(maintain_order=True).to_list() == ["reference", "all", "only", "all_but"]
    assert frame.get_column("weights").unique(maintain_order=True).to_list() == [None, "nf4", "int8-0"]
    scored = frame.filter(pl.col("direction").is_in(["only", "all_but"]))
    assert scored.get_column("kl_mean").null_count() == 0
    assert scored.select(((pl.col("kl_low") <= pl.col("kl_mean")) & (pl.col("kl_mean") <= pl.col("kl_high"))).all()).item()


def test_without_scores_the_cells_are_shown_without_draws(studies: Studies) -> None:
    frame = sensitivity(studies.sensitivity, [])
    assert frame.get_column("kl_mean").null_count() == frame.height
    assert frame.get_column("top1").null_count() == 0


def test_accuracy_is_of_the_report_half(studies: Studies) -> None:
    frame = mixed.mixed(gather_cells(studies.mixed), depth=8)
    reports = {result.record.trial_id: result.report.top1 for result in studies.mixed if result.report is not None}
    assert frame.get_column("images").unique().to_list() == [300]
    assert all(row["top1"] == pytest.approx(reports[row["trial_id"]]) for row in frame.to_dicts())


def test_a_cell_that_plays_several_parts_is_a_row_of_each(studies: Studies) -> None:
    frame = mixed.mixed(gather_cells(studies.mixed), depth=8)
    assert frame.height == 2 + 2 * 5 + 28 + 39
    assert len(studies.mixed) < frame.height
    assert frame.get_column("trial_id").n_unique() == len(studies.mixed)
    chosen = {(row["k"], row["strategy"]): row["blocks"] for row in frame.filter(pl.col("strategy") != "random").to_dicts()}
    assert chosen == {
        (None, "fully quantized"): "none",
        (None, "high precision"): "all",
        (2, "first+last"): "0 7",
        (2, "last"): "6 7",
        (2, "most sensitive"): "6 7",
        (4, "first+last"): "0 1 6 7",
        (4, "last"): "4 5 6 7",
        (4, "most sensitive"): "4 5 6 7",
        # Within the same bytes; int8 takes more of them than NF4, so the plan that uses it spares fewer blocks.
        (2, "gradient"): "0 1",
        (2, "milp"): "7",
        (4, "gradient"): "0 1 2 3",
        (4, "milp"): "5 6 7",
    }


def test_differences_are_paired_with_the_fully_quantized_model(studies: Studies) -> None:
    frame = mixed.mixed(gather_cells(studies.mixed), depth=8)
    full = frame.row(by_predicate=pl.col("strategy") == "fully quantized", named=True)
    assert full["difference"] is None
    for row in frame.filter(pl.col("strategy") != "fully quantized").to_dicts():
        assert row["difference"] == pytest.approx(row["top1"] - full["top1"])
        assert row["gained"] - row["lost"] == round(row["difference"] * 300)


def test_the_band_spans_all_random_plans_of_each_k(studies: Studies) -> None:
    frame = mixed.mixed(gather_cells(studies.mixed), depth=8)
    bands = mixed.random_bands(frame)
    assert bands.select("k", "metric", "plans").rows() == [
        (k, metric, plans) for k, plans in ((2, 28), (4, 39)) for metric in mixed.METRICS
    ]
    tops = frame.filter((pl.col("strategy") == "random") & (pl.col("k") == 2)).get_column("top1").to_numpy() * 100
    least, quarter, median, three_quarters, greatest = bands.row(0)[3:]
    assert (least, median, greatest) == pytest.approx((tops.min(), float(np.median(tops)), tops.max()))
    assert least <= quarter <= median <= three_quarters <= greatest


def test_a_tie_with_a_random_plan_counts_half() -> None:
    row = {"k": 2, "status": "success", "kl": 0.1}
    rows = [{**row, "strategy": "last", "top1": 0.9}, *({**row, "strategy": "random", "top1": top1} for top1 in (0.8, 0.9, 0.95))]
    result = mixed.beats_random(pl.DataFrame(rows)).row(0, named=True)
    assert (result["random_plans"], result["beaten_top1"], result["beaten_kl"]) == (3, 1.5, 1.5)


def test_a_failed_cell_keeps_its_row(studies: Studies) -> None:
    trial = studies.mixed[0].record.trial
    broken = [Result(synthetic.unfinished(trial, "oom", "synthetic reason"), None), *studies.mixed[1:]]
    frame = mixed.mixed(gather_cells(broken), depth=8)
    row = frame.filter(pl.col("status") == "oom").row(0, named=True)
    assert (row["reason"], row["top1"]) == ("synthetic reason", None)
    assert frame.height == 2 + 2 * 5 + 28 + 39


def test_agreement_of_draws_is_1_for_equal_draws(studies: Studies) -> None:
    score = studies.scores[0]
    equal = score.model_copy(update={"blocks": tuple(b.model_copy(update={"kl": (0.1 * b.block,) * 5}) for b in score.blocks)})
    frame = draw_agreement([equal, *studies.scores[1:]])
    assert frame.height == 4
    assert frame.item(0, "kendall_tau") == pytest.approx(1.0)


def test_empty_studies_make_empty_frames() -> None:
    nothing = gather_cells([])
    assert sensitivity(nothing, []).is_empty()
    frame = mixed.mixed(nothing, depth=8)
    assert frame.is_empty()
    assert mixed.random_bands(frame).is_empty()
    assert mixed.beats_random(frame).is_empty()
