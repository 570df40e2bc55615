"""A run against its reference: equal runs pass, and each planted fault is the one miss, named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import synthetic
from lowbit_vit.analysis.check import (
    Line,
    check_frame,
    check_run,
    compare_exactly,
    compare_latencies,
    compare_rates,
    compare_status,
    misses,
)
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.runs import Run, load_run
from lowbit_vit.schema.config import STUDIES
from lowbit_vit.schema.metrics import Interval, LatencySummary, summarize_latency
from lowbit_vit.schema.record import Memory, Record

REFERENCES = sorted(folder.parent for folder in (synthetic.PROJECT / "reports" / "reference").glob("*/records"))


def reference_run(name: str) -> Run:
    return load_run(name, root=synthetic.PROJECT)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("check") / "root"
    synthetic.fill(root)
    shutil.copy(synthetic.PROJECT / "profiles" / "demo.yaml", root / "profiles")
    return load_run("demo", root=root)


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_a_reference_run_repeats_itself(folder: Any) -> None:
    side = reference_run(str(folder))
    lines = check_run(side, side)
    assert {line.outcome.verdict for line in lines} == {"within"}
    assert {(line.study, line.arm) for line in lines} == {
        (study, result.record.trial.label) for study in STUDIES for result in side.results[study]
    }


def test_a_run_without_an_arm_of_the_reference_misses_it(made_up: Run) -> None:
    gone = next(result for result in made_up.results["variants"] if result.record.status == "success")
    others = [result for result in made_up.results["variants"] if result is not gone]
    (miss,) = misses(check_run(replace(made_up, results={**made_up.results, "variants": others}), made_up))
    assert miss.name == f"variants, {gone.record.trial.label}, seed 0: status"
    assert (miss.outcome.expected, miss.outcome.found) == ("success", "not in the run")


def test_an_arm_that_the_reference_has_not_is_not_asked_for(made_up: Run) -> None:
    lines = check_run(made_up, replace(made_up, results={**made_up.results, "variants": made_up.results["variants"][1:]}))
    assert not misses(lines)
    assert [line.outcome.verdict for line in lines if line.outcome.expected == "not in the reference"] == ["not compared"]


Fault = Callable[[Record], Record]


def _model(key: str, value: Any) -> Fault:
    def plant(record: Record) -> Record:
        assert record.model is not None
        return record.model_copy(update={"model": record.model.model_copy(update={key: value})})

    return plant


def _status(record: Record) -> Record:
    return record.model_copy(update={"status": "oom", "reason": "out of memory"})


def _slower(record: Record) -> Record:
    assert record.measurement is not None
    one, *rest = record.measurement.latency
    slow = one.model_copy(update={"samples_ms": tuple(2.5 * value for value in one.samples_ms)})
    return record.model_copy(update={"measurement": record.measurement.model_copy(update={"latency": (slow, *rest)})})


def _batch_gone(record: Record) -> Record:
    assert record.measurement is not None
    latency = record.measurement.latency[1:]
    return record.model_copy(update={"measurement": record.measurement.model_copy(update={"latency": latency})})


@pytest.mark.parametrize(
    ("plant", "metric"),
    [
        (_status, "status"),
        (_model("weight_bytes", 1), "weights, bytes"),
        (_model("file_bytes", 1), "file, bytes"),
        (_model("parameters", 1), "parameters"),
        (_model("trainable_parameters", 1), "trainable parameters"),
        (_slower, "P50 latency, batch 1"),
        (_batch_gone, "P50 latency, batch 1"),
    ],
    ids=["status", "weight bytes", "file bytes", "parameters", "trainable", "latency", "batch size"],
)
@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_one_planted_fault_is_one_miss_that_names_it(folder: Any, plant: Fault, metric: str) -> None:
    side = reference_run(str(folder))
    arm = next(result for result in side.results["variants"] if result.record.measurement is not None)
    variants = [Result(plant(result.record), result.predictions) if result is arm else result for result in side.results["variants"]]
    (miss,) = misses(check_run(replace(side, results={**side.results, "variants": variants}), side))
    assert (miss.study, miss.arm, miss.outcome.metric) == ("variants", arm.record.trial.label, metric)
    # All else of the run is within tolerance.
    assert miss.outcome.because or miss.outcome.tolerance.startswith("exact")


def _worse(result: Result, share: float) -> Result:
    """The result with its first right answers made wrong, until `share` of all images is lost."""
    assert result.predictions is not None
    label, best = result.predictions.label, result.predictions.best.copy()
    right = np.flatnonzero(result.predictions.right)[: round(share * len(best))]
    best[right] = (label[right] + 1) % (1 + label.max())
    return Result(result.record, replace(result.predictions, best=best))


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
@pytest.mark.parametrize(("share", "missed"), [(0.05, ["Top-1", "macro-F1"]), (0.009, [])])
def test_a_loss_of_accuracy_beyond_the_margin_is_a_miss_and_one_within_it_is_none(folder: Any, share: float, missed: list[str]) -> None:
    side = reference_run(str(folder))
    arm = next(result for result in side.results["variants"] if result.predictions is not None)
    variants = [_worse(result, share) if result is arm else result for result in side.results["variants"]]
    lines = misses(check_run(replace(side, results={**side.results, "variants": variants}), side))
    assert [line.outcome.metric for line in lines] == missed
    assert all(line.arm == arm.record.trial.label for line in lines)


def test_a_beyond_margin_difference_that_chance_explains_is_within_and_says_so() -> None:
    outcome = compare_rates("Top-1", 0.95, 0.93, interval=Interval(low=-0.05, high=0.01), margin=0.01, images="paired, same images")
    assert outcome.verdict == "within"
    assert outcome.because == "no more than chance: -2.00 points, 95 % interval -5.00 to +1.00"
    assert compare_rates("Top-1", 0.95, 0.93, interval=Interval(low=-0.04, high=-0.001), margin=0.01, images="").verdict == "miss"
    assert compare_rates("Top-1", 0.95, 0.94, interval=Interval(low=-0.02, high=-0.001), margin=0.01, images="").verdict == "within"


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.001, 0.2))
def test_a_check_of_rates_does_not_depend_on_which_side_is_the_reference(one: float, two: float, margin: float) -> None:
    around = Interval(low=two - one - 0.01, high=two - one + 0.01)
    mirrored = Interval(low=-around.high, high=-around.low)
    there = compare_rates("Top-1", one, two, interval=around, margin=margin, images="")
    assert there.verdict == compare_rates("Top-1", two, one, interval=mirrored, margin=margin, images="").verdict


def of_one(samples: list[float]) -> LatencySummary:
    return summarize_latency(samples, batch_size=1)


def test_latencies_of_another_processor_are_listed_and_never_a_miss() -> None:
    outcome = compare_latencies("P50", of_one([1.0] * 20), of_one([9.0] * 20), factor=1.25, obstacle="different processor: a / b")
    assert (outcome.verdict, outcome.because) == ("not compared", "different processor: a / b")
    assert (outcome.expected, outcome.found) == ("1 ms", "9 ms")


@pytest.mark.parametrize(("times", "verdict"), [(1.2, "within"), (1.3, "miss"), (0.7, "miss"), (0.85, "within")])
def test_a_run_may_be_neither_much_slower_nor_much_faster(times: float, verdict: str) -> None:
    samples = [1.0] * 50
    found = of_one([times * value for value in samples])
    assert compare_latencies("P50", of_one(samples), found, factor=1.25, obstacle=None).verdict == verdict


def test_what_is_counted_must_be_equal() -> None:
    assert compare_exactly("bytes", 10, 10).verdict == "within"
    miss = compare_exactly("linears", {"nf4": 48}, {"nf4": 47, "high": 1})
    assert (miss.verdict, miss.expected, miss.found) == ("miss", "48 nf4", "47 nf4, 1 high")


def test_what_both_skipped_is_within_and_what_the_reference_skipped_is_not_asked_for(made_up: Run) -> None:
    skipped = next(result.record for result in made_up.results["variants"] if result.record.status == "skipped")
    done = next(result.record for result in made_up.results["variants"] if result.record.status == "success")
    assert compare_status(skipped, skipped).verdict == "within"
    assert compare_status(skipped, done).verdict == "not compared"
    assert compare_status(done, skipped).verdict == "miss"
    assert compare_status(done, None).verdict == "miss"


def test_peak_memory_may_move_a_little_on_the_same_processor() -> None:
    side = reference_run("reports/reference/h200")
    arm = side.results["variants"][0]
    measurement = arm.record.measurement
    assert measurement is not None

    def grown(factor: float) -> list[Line]:
        memory: tuple[Memory, ...] = tuple(
            item.model_copy(update={"peak_allocated_bytes": round((item.peak_allocated_bytes or 0) * factor)})
            for item in measurement.memory
        )
        record = arm.record.model_copy(update={"measurement": measurement.model_copy(update={"memory": memory})})
        variants = [Result(record, arm.predictions), *side.results["variants"][1:]]
        return misses(check_run(replace(side, results={**side.results, "variants": variants}), side))

    assert not grown(1.04)
    assert [line.outcome.metric for line in grown(1.06)] == ["peak allocated bytes, batch 1", "peak allocated bytes, batch 32"]


def test_the_lines_are_a_table(made_up: Run) -> None:
    lines = check_run(made_up, made_up)
    frame = check_frame(lines)
    assert frame.columns == ["study", "arm", "seed", "metric", "expected", "found", "tolerance", "verdict", "because"]
    assert frame.height == len(lines)
    assert check_frame([]).is_empty()
