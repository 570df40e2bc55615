"""Two runs compared: paired where the images are the same, unpaired and said so otherwise, timings on one processor alone."""

import shutil
from pathlib import Path

import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.compare import COLUMNS, PAIRED, UNPAIRED, compare_runs
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.runs import Run, load_run
from lowbit_vit.analysis.statistics import compare_unpaired, holm
from lowbit_vit.schema.config import STUDIES


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("compare") / "root"
    synthetic.fill(root)
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", root / "profiles")
    return load_run("demo", root=root)


def changed(side: Run, *, data: str | None = None, cpu: str | None = None, times: float = 1.0) -> Run:
    """The side with all its variants changed likewise."""
    results = []
    for result in side.results["variants"]:
        record = result.record
        if record.evaluation is not None and record.provenance is not None and record.measurement is not None:
            latency = tuple(
                item.model_copy(update={"samples_ms": tuple(times * value for value in item.samples_ms)})
                for item in record.measurement.latency
            )
            record = record.model_copy(
                update={
                    "data_sha256": data or record.data_sha256,
                    "provenance": record.provenance.model_copy(update={} if cpu is None else {"cpu": cpu}),
                    "measurement": record.measurement.model_copy(update={"latency": latency}),
                }
            )
        results.append(Result(record, result.predictions))
    return Run(name="changed", profile=side.profile, results={**side.results, "variants": results})


def test_a_run_does_not_differ_from_itself(side: Run) -> None:
    frame = compare_runs(side, side, studies=STUDIES, margin=0.01)
    assert tuple(frame.columns) == COLUMNS
    assert set(frame["study"]) == set(STUDIES)
    good = frame.filter(pl.col("status") == "success")
    assert (good["accuracy_test"] == PAIRED).all()
    assert (good["difference"] == 0).all()
    assert (good["p_holm"] == 1).all()
    assert (good["p_inferior"] < 0.05).all()
    variants = good.filter(pl.col("study") == "variants")
    assert (variants["ratio"] == 1).all()
    assert ((variants["ratio_low"] < 1) & (variants["ratio_high"] > 1)).all()
    assert (variants["f1_difference"] == 0).all()
    assert frame["settings_differ"].null_count() == frame.height


def test_swapping_the_sides_turns_every_difference(side: Run) -> None:
    """The second side is the first with the arms' predictions handed round, so that every arm differs."""
    results = [result for result in side.results["variants"] if result.predictions is not None]
    moved = []
    for result, other in zip(results, [*results[1:], results[0]], strict=True):
        moved.append(Result(result.record, other.predictions))
    second = Run(name="moved", profile=side.profile, results={**side.results, "variants": moved})
    first = Run(name="first", profile=side.profile, results={**side.results, "variants": results})
    there = compare_runs(first, second, studies=("variants",), margin=0.01)
    back = compare_runs(second, first, studies=("variants",), margin=0.01)
    assert (there["difference"] != 0).any()
    assert there["difference"].to_list() == [-value for value in back["difference"]]
    assert there["f1_low"].to_list() == pytest.approx([-value for value in back["f1_high"]])
    assert there["p_holm"].to_list() == back["p_holm"].to_list()
    arms = there.unique("trial_id", maintain_order=True)
    assert arms["p_holm"].to_list() == pytest.approx(holm(arms["p_value"].to_list()))


def test_other_images_are_compared_unpaired_and_said_so(side: Run) -> None:
    frame = compare_runs(side, changed(side, data="ef" * 32), studies=("variants",), margin=0.01)
    good = frame.filter(pl.col("status") == "success")
    assert (good["accuracy_test"] == UNPAIRED).all()
    assert good["lost"].null_count() == good["p_inferior"].null_count() == good["f1_difference"].null_count() == good.height
    for row in good.to_dicts():
        hits = (round(row["top1"] * row["images"]), row["images"])
        assert (row["difference_low"], row["difference_high"]) == pytest.approx(tuple(vars(compare_unpaired(hits, hits).interval).values()))


def test_times_of_another_processor_are_shown_and_not_compared(side: Run) -> None:
    frame = compare_runs(side, changed(side, cpu="Other CPU"), studies=("variants",), margin=0.01).filter(pl.col("status") == "success")
    assert frame["ratio"].null_count() == frame["ratio_low"].null_count() == frame.height
    assert frame["p50_ms_b"].null_count() == 0
    assert frame["timing"].str.starts_with("different processor: ").all()
    # Accuracy is what it was: it does not hang on the processor.
    assert (frame["accuracy_test"] == PAIRED).all()


def test_a_slower_run_on_the_same_processor_has_its_ratio(side: Run) -> None:
    frame = compare_runs(side, changed(side, times=1.5), studies=("variants",), margin=0.01).filter(pl.col("status") == "success")
    assert frame["ratio"].to_list() == pytest.approx([1.5] * frame.height)
    assert (frame["ratio_low"] > 1).all()
    assert (frame["timing"] == "same processor").all()


def test_an_arm_of_one_side_is_listed_without_a_comparison(side: Run) -> None:
    fewer = Run(name="fewer", profile=side.profile, results={study: [] for study in STUDIES})
    frame = compare_runs(side, fewer, studies=("variants",), margin=0.01)
    assert (frame["status_b"] == "not in this run").all()
    assert frame["difference"].null_count() == frame["ratio"].null_count() == frame.height


def test_committed_reference_runs_do_not_differ_from_themselves() -> None:
    for folder in sorted((synthetic.PROJECT / "reports" / "reference").glob("*/records")):
        reference = load_run(str(folder.parent), root=Path(synthetic.PROJECT))
        frame = compare_runs(reference, reference, studies=STUDIES, margin=0.01)
        assert set(frame["difference"].drop_nulls()) == {0.0}
        assert set(frame["ratio"].drop_nulls()) == {1.0}
