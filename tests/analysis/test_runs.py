"""Two runs are read from a profile or a folder, and their arms are matched by what they are."""

import shutil
from pathlib import Path

import pytest

import synthetic
from lowbit_vit.analysis.results import Result, arm_key
from lowbit_vit.analysis.runs import Run, load_run, match, other_settings, processor, timing_obstacle
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.schema.config import STUDIES


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sides") / "root"
    synthetic.fill(folder)
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", folder / "profiles")
    shutil.copytree(folder / "reports" / "demo", folder / "elsewhere")
    return folder


def with_variants(side: Run, results: list[Result]) -> Run:
    return Run(name="changed", profile=side.profile, results={**side.results, "variants": results})


def test_a_profile_and_its_records_in_a_folder_are_the_same_run(root: Path) -> None:
    by_name, by_folder = load_run("demo", root=root), load_run("elsewhere", root=root)
    assert by_name.profile == by_folder.profile
    for study in STUDIES:
        assert [result.record for result in by_name.results[study]] == [result.record for result in by_folder.results[study]]


def test_what_is_neither_profile_nor_folder_is_named(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"^nowhere: neither a profile \(there are: demo\) nor a folder with records/$"):
        load_run("nowhere", root=root)


def test_a_profile_that_was_not_run_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", tmp_path / "profiles")
    with pytest.raises(DataError, match="no records; run dvc repro report@demo first"):
        load_run("demo", root=tmp_path)


def test_every_arm_is_matched_once_in_the_profiles_order(root: Path) -> None:
    side = load_run("demo", root=root)
    pairs = match(side, side)
    assert len(pairs) == sum(len(results) for results in side.results.values())
    assert all(pair.first is pair.second for pair in pairs)
    labels = [pair.trial.label for pair in pairs if pair.trial.study == "variants"]
    assert labels == [arm.label for arm in side.profile.variants.arms]


def test_a_label_decides_nothing(root: Path) -> None:
    side = load_run("demo", root=root)
    renamed = []
    for result in side.results["variants"]:
        trial = result.record.trial.model_copy(update={"label": f"my {result.record.trial.label}"})
        renamed.append(Result(result.record.model_copy(update={"trial": trial}), result.predictions))
    pairs = [pair for pair in match(side, with_variants(side, renamed)) if pair.trial.study == "variants"]
    assert len(pairs) == len(renamed)
    assert all(pair.first is not None and pair.second is not None for pair in pairs)


def test_an_arm_of_one_side_stands_alone(root: Path) -> None:
    side = load_run("demo", root=root)
    results = side.results["variants"]
    pairs = match(side, with_variants(side, results[1:]))
    assert [pair.first for pair in pairs if pair.second is None] == [results[0]]
    pairs = match(with_variants(side, results[1:]), side)
    assert [pair.second for pair in pairs if pair.first is None] == [results[0]]


def test_an_arm_on_two_devices_is_matched_device_by_device(root: Path) -> None:
    side = load_run("demo", root=root)
    first = next(result for result in side.results["variants"] if result.record.trial.attention == "math")
    trial = first.record.trial.model_copy(update={"device": "cuda"})
    other = Result(first.record.model_copy(update={"trial": trial}), first.predictions)
    both = with_variants(side, [first, other])
    pairs = [pair for pair in match(both, with_variants(side, [other])) if pair.trial.study == "variants"]
    assert {(pair.trial.device, pair.second is other) for pair in pairs} == {("cpu", False), ("cuda", True)}
    # One each, on unlike devices: still the same arm.
    (pair,) = [pair for pair in match(with_variants(side, [first]), with_variants(side, [other])) if pair.trial.study == "variants"]
    assert (pair.first, pair.second) == (first, other)
    assert arm_key(first.record.trial) == arm_key(trial)
    assert other_settings(first.record.trial, trial) == ["device"]


def test_timings_are_compared_on_one_kind_of_processor_alone(root: Path) -> None:
    record = load_run("demo", root=root).results["variants"][0].record
    assert record.provenance is not None
    assert processor(record) == "Synthetic CPU, 2 cores, 2 threads"
    for threads, said in ((1, "1 thread"), (None, "unknown threads")):
        provenance = record.provenance.model_copy(update={"threads": threads})
        assert processor(record.model_copy(update={"provenance": provenance})) == f"Synthetic CPU, 2 cores, {said}"
    assert timing_obstacle(record, record) is None
    faster = record.model_copy(update={"provenance": record.provenance.model_copy(update={"cpu": "Other CPU"})})
    obstacle = timing_obstacle(record, faster)
    assert obstacle == "different processor: Synthetic CPU, 2 cores, 2 threads / Other CPU, 2 cores, 2 threads"
    unknown = record.model_copy(update={"provenance": None})
    assert timing_obstacle(record, unknown) == "processor not recorded"
