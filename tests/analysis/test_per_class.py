"""Counts by class: what an arm has right, what it loses against the baseline, and what it takes it for."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.results import Result, load_results
from lowbit_vit.analysis.variants import most_lost, per_class, variants
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.predictions import Predictions

NAMES = ("ash, white", "冬青", "<i>elm")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, list[Result]]:
    profile, workspace = synthetic.fill(tmp_path_factory.mktemp("root"), studies=("variants",))
    return profile, load_results(workspace, "variants")


def labels(profile: Profile) -> list[str]:
    return [arm.label for arm in profile.variants.arms]


def test_classes_add_up_to_the_arm(project: tuple[Profile, list[Result]]) -> None:
    profile, results = project
    frame = per_class(Frames(results, arms=labels(profile)))
    whole = variants(Frames(results, arms=labels(profile)), margin=profile.statistics.margin).unique("arm", keep="first")
    for row in whole.filter(pl.col("status") == "success").to_dicts():
        own = frame.filter(pl.col("arm") == row["arm"])
        assert own.height == synthetic.CLASSES
        assert own["images"].sum() == row["images"]
        assert own["correct"].sum() == round(row["top1"] * row["images"])
        if row["lost"] is not None:
            assert (own["lost"].sum(), own["gained"].sum()) == (row["lost"], row["gained"])
    assert frame.filter(pl.col("arm") == "Baseline ViT")["lost"].null_count() == synthetic.CLASSES
    assert frame["order"].is_sorted()


def result(project: tuple[Profile, list[Result]], predicted: list[int], *, seed: int = 0, baseline: bool = False) -> Result:
    """A trial that took images of classes 0, 0, 0, 1, 1, 2 for `predicted`."""
    record = next(item.record for item in project[1] if item.record.evaluation is not None)
    assert record.evaluation is not None
    trial = record.trial.model_copy(update={"label": "base" if baseline else "arm", "paper_row": 0 if baseline else None, "seed": seed})
    evaluation = record.evaluation.model_copy(update={"class_names": NAMES})
    label = np.array([0, 0, 0, 1, 1, 2], dtype=np.uint16)
    best = np.array(predicted, dtype=np.uint16)
    flat = np.zeros(6, dtype=np.float32)
    predictions = Predictions(label=label, best=best, among5=best == label, margin=flat, selection=flat > 0, kl=None)
    return Result(record.model_copy(update={"trial": trial, "evaluation": evaluation}), predictions)


def test_counts_are_those_made_by_hand(project: tuple[Profile, list[Result]]) -> None:
    results = [result(project, [0, 0, 1, 1, 1, 0], baseline=True), result(project, [2, 2, 0, 1, 0, 0])]
    frame = per_class(Frames(results, arms=["base", "arm"])).filter(pl.col("arm") == "arm")
    columns = ("class", "images", "correct", "lost", "gained", "taken_for", "taken_for_images")
    assert frame.select(columns).rows() == [
        ("ash, white", 3, 1, 2, 1, "<i>elm", 2),
        ("冬青", 2, 1, 1, 0, "ash, white", 1),
        ("<i>elm", 1, 0, 0, 0, "ash, white", 1),
    ]
    assert most_lost(frame, most=1).select("class", "lost").rows() == [("ash, white", 2)]
    # A class without a loss is not among those that lose most.
    assert most_lost(frame)["class"].to_list() == ["ash, white", "冬青"]


def test_seeds_are_added_and_each_is_compared_with_its_own_baseline(project: tuple[Profile, list[Result]]) -> None:
    perfect, worst = [0, 0, 0, 1, 1, 2], [1, 1, 1, 0, 0, 0]
    results = [result(project, perfect, seed=seed, baseline=True) for seed in (0, 1)]
    results += [result(project, perfect, seed=0), result(project, worst, seed=1)]
    frame = per_class(Frames(results, arms=["base", "arm"])).filter(pl.col("arm") == "arm")
    assert frame.select("seeds", "images", "correct", "lost").rows() == [(2, 6, 3, 3), (2, 4, 2, 2), (2, 2, 1, 1)]
    without = per_class(Frames(results[1:], arms=["base", "arm"])).filter(pl.col("arm") == "arm")
    assert without["lost"].null_count() == 3


def test_classes_have_the_names_that_the_records_give(project: tuple[Profile, list[Result]]) -> None:
    assert set(per_class(Frames(project[1]))["class"]) == {f"class {number}" for number in range(synthetic.CLASSES)}


def test_nothing_run_is_an_empty_table(tmp_path: Path) -> None:
    _, workspace = synthetic.fill(tmp_path, studies=())
    assert per_class(Frames(load_results(workspace, "variants"))).is_empty()
    assert most_lost(per_class(Frames([]))).is_empty()
