"""The frames that tables are made of: types without rows, counts between two trials by hand, averages with their spread."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.frames import Frames, average_over_seeds
from lowbit_vit.analysis.results import Result, load_results
from lowbit_vit.analysis.statistics import COMPARISON
from lowbit_vit.schema.predictions import Predictions


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    _, workspace = synthetic.fill(tmp_path_factory.mktemp("frames") / "root", studies=("variants",))
    return load_results(workspace, "variants")


@pytest.mark.parametrize("name", ["trials", "timings", "kernels", "predictions", "class_names", "baselines"])
def test_a_frame_without_rows_has_the_types_of_one_with_rows(results: list[Result], name: str) -> None:
    empty, full = (getattr(Frames(found, arms=["Baseline ViT"]), name) for found in ([], results))
    assert empty.is_empty()
    assert not full.is_empty()
    assert empty.schema == full.schema


def test_each_frame_has_a_row_for_each_of_what_the_records_hold(results: list[Result]) -> None:
    frames = Frames(results)
    measured = [result.record.measurement for result in results if result.record.measurement is not None]
    assert frames.trials["trial_id"].to_list() == [result.record.trial_id for result in results]
    assert frames.timings.height == sum(len(found.latency) for found in measured)
    assert frames.kernels.height == sum(len(kernels.by_class_us) for found in measured for kernels in found.kernels)
    assert frames.predictions.height == synthetic.IMAGES * len(measured)


def answered(result: Result, best: list[int]) -> Result:
    """The result, with these answers to five images of classes 0, 0, 1, 1, 2."""
    label, answers = np.array([0, 0, 1, 1, 2], np.uint16), np.array(best, np.uint16)
    flat = np.zeros(5, np.float32)
    return Result(result.record, Predictions(label=label, best=answers, among5=flat == 0, margin=flat, selection=flat > 0, kl=None))


def test_changes_are_those_counted_by_hand(results: list[Result]) -> None:
    one = next(result for result in results if result.record.status == "success")
    frames = Frames([answered(one, [0, 0, 1, 0, 1]), answered(one, [0, 1, 1, 1, 0]), Result(one.record, None)])
    pairs = pl.DataFrame({"trial": [1, 2], "reference": [0, 0]})
    # The second trial loses the second image and gains the fourth; of the last one both are wrong, in two ways.
    assert frames.changes(pairs).to_dicts() == [{"trial": 1, "reference": 0, "images": 5, "lost": 1, "gained": 1, "flips": 3}]
    (row,) = frames.comparisons(pairs, margin=0.5).to_dicts()
    assert (row["lost"], row["gained"], row["difference"], row["p_value"]) == (1, 1, 0, 1)
    assert frames.comparisons(pairs.clear(), margin=None).columns == ["trial", "reference", *COMPARISON]


def test_seeds_are_averaged_with_their_range_and_a_single_one_has_none() -> None:
    frame = pl.DataFrame({"arm": ["a", "a", "b"], "ms": [1.0, 4.0, 2.0], "trial_id": ["x", "y", "z"]})
    rows = average_over_seeds(frame, ("arm",), ("ms",), spread=("ms",)).rows()
    assert rows == [("a", 2.5, 3.0, "x y"), ("b", 2.0, None, "z")]


def test_places_of_arms_are_the_profiles_and_others_come_last(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    labels = [arm.label for arm in profile.variants.arms]
    trials = Frames(load_results(workspace, "variants"), arms=labels[:-1]).trials
    assert dict(trials.select("arm", "order").rows()) == {label: place for place, label in enumerate(labels)}
