"""Records come with the predictions that they name, or not at all."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

import synthetic
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.results import Result, load_all_results, load_results, require_one_origin
from lowbit_vit.analysis.runs import pack_records
from lowbit_vit.analysis.tables import find
from lowbit_vit.analysis.variants import paper_table, variants
from lowbit_vit.errors import DataError
from lowbit_vit.report.columns import Table, to_markdown
from lowbit_vit.report.tables import latency_column, result_table_of
from lowbit_vit.schema.config import Study
from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.record import Record, read_record, write_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells


def macro_f1(label: npt.NDArray[np.uint16], best: npt.NDArray[np.uint16]) -> float:
    """Class by class, as a textbook has it; scikit-learn, which a trial's test compares with, is not where reports are made."""
    scores = []
    for each in {*label.tolist(), *best.tolist()}:
        true, false = ((best == each) & (label == each)).sum(), ((best == each) != (label == each)).sum()
        scores.append(2 * true / (2 * true + false))
    return float(np.mean(scores))


def test_every_successful_record_has_its_predictions(tmp_path: Path) -> None:
    _, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    results = load_results(workspace, "variants")
    assert len(results) == 13
    assert all((result.predictions is not None) == (result.record.status == "success") for result in results)


def test_every_number_of_a_result_is_computed_from_its_raw_values(tmp_path: Path) -> None:
    _, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    result = next(result for result in load_results(workspace, "variants") if result.record.measurement is not None)
    predictions, measured = result.predictions, result.record.measurement
    assert predictions is not None
    assert measured is not None
    for found, images in (
        (result.whole, predictions.selection | True),
        (result.selection, predictions.selection),
        (result.report, ~predictions.selection),
    ):
        assert found is not None
        assert found.images == images.sum()
        assert found.top1 == (predictions.best == predictions.label)[images].mean()
        assert found.top5 == predictions.among5[images].mean()
        assert found.macro_f1 == pytest.approx(macro_f1(predictions.label[images], predictions.best[images]))
    for item in measured.latency:
        summary = result.latency[item.batch_size]
        assert summary.p50_ms == sorted(item.samples_ms)[len(item.samples_ms) // 2 - 1]
        assert summary.images_per_s == pytest.approx(1000 * item.batch_size / np.mean(item.samples_ms))
        assert summary.p99_ms is None
    (kernels, *_) = measured.kernels
    assert (result.wall_us(kernels), result.idle_us(kernels)) == (kernels.wall_us, None)
    on_gpu = kernels.model_copy(update={"wall_us": None, "by_class_us": {"gemm": 1.0, "copy": 2.0}})
    assert result.wall_us(on_gpu) == 1000 * result.latency[kernels.batch_size].p50_ms
    assert result.idle_us(on_gpu) == result.wall_us(on_gpu) - 3.0
    assert result.idle_us(on_gpu.model_copy(update={"by_class_us": {"gemm": 1e9}})) == 0.0


def test_a_study_that_was_not_run_is_empty(tmp_path: Path) -> None:
    assert load_all_results(Workspace(root=tmp_path, profile="demo")) == {"variants": [], "sensitivity": [], "mixed": []}


def test_a_cell_is_found_under_each_part_that_it_plays(filled: Workspace) -> None:
    results = load_results(filled, "mixed")
    found = dict(gather_cells(results).parts)
    assert list(found) == [role for result in results for role in result.record.trial.roles]
    assert len(found) > len(results)
    assert all(role in result.record.trial.roles for role, result in found.items())
    failed = gather_cells([Result(results[0].record, None), *results[1:]])
    assert [role for role, _ in failed.parts] == list(found)
    assert list(failed.place) == list(found)[len(results[0].record.trial.roles) :]


@pytest.mark.parametrize("of_another", [False, True], ids=["none", "another's"])
def test_a_cell_must_say_which_part_it_alone_plays(tmp_path: Path, *, of_another: bool) -> None:
    _, workspace = synthetic.fill(tmp_path / "root")
    first, *_, last = load_results(workspace, "mixed")
    played = {"roles": first.record.trial.roles, "label": first.record.trial.label} if of_another else {"roles": ()}
    trial = last.record.trial.model_copy(update=played)
    write_record(last.record.model_copy(update={"trial": trial}), workspace.records("mixed"))
    said = "is not what the plan does" if of_another else "key trial.roles: must be given"
    with pytest.raises(DataError, match=f"mixed/{trial.trial_id}.*{said}"):
        load_results(workspace, "mixed")


# ------------------------------------------------------------------------------------------- never mixed without a word

OTHER = "f" * 64


def of_model(record: Record, **values: object) -> Record:
    assert record.model is not None
    return record.model_copy(update={"model": record.model.model_copy(update=values)})


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return synthetic.fill(tmp_path_factory.mktemp("filled") / "root")[1]


@pytest.fixture
def records(filled: Workspace) -> list[Record]:
    """One finished record of each kind: a qlora arm, a ptq arm, a cell."""
    found = [read_record(path) for study in ("variants", "sensitivity") for path in sorted(filled.records(study).glob("*.json"))]
    done = [record for record in found if record.status == "success"]
    return [next(record for record in done if record.trial.adaptation == "qlora"), *(r for r in done if r.trial.adaptation == "ptq")]


def test_seeds_and_ways_to_adapt_may_be_mixed(records: list[Record]) -> None:
    seed = records[1].trial.model_copy(update={"seed": 7})
    other_seed = of_model(records[1], backbone_sha256=OTHER).model_copy(update={"trial": seed, "trial_id": seed.trial_id})
    require_one_origin([*records, other_seed], Path("records"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda record: record.model_copy(update={"code_sha256": OTHER}), "code"),
        (lambda record: record.model_copy(update={"data_sha256": OTHER}), "images"),
        (lambda record: of_model(record, backbone_sha256=OTHER), "adapted weights of seed 0"),
        (lambda record: of_model(record, base_sha256=OTHER), "backbones"),
    ],
)
def test_two_origins_are_refused_in_one_line_that_names_two_records(
    change: Callable[[Record], Record], what: str, records: list[Record]
) -> None:
    last = change(records[-1])
    with pytest.raises(DataError) as caught:
        require_one_origin([*records[:-1], last], Path("records"))
    message = str(caught.value)
    first = records[0] if what in ("code", "images", "backbones") else records[1]
    assert message.startswith(f"records: {first.trial.study}/{first.trial_id} and {last.trial.study}/{last.trial_id}")
    assert f"are of different {what} (sha256 " in message
    assert message.endswith("run dvc repro report@demo, which runs again what is out of date")
    assert "\n" not in message


def test_timings_of_two_cards_are_refused_and_accuracies_are_not(records: list[Record]) -> None:
    def on(record: Record, gpu: str) -> Record:
        assert record.provenance is not None
        trial = record.trial.model_copy(update={"device": "cuda"})
        return record.model_copy(update={"trial": trial, "provenance": record.provenance.model_copy(update={"gpu": gpu})})

    timed, untimed = (next(r for r in records if (r.measurement is None) == without) for without in (False, True))
    require_one_origin([on(timed, "A100"), on(untimed, "H100"), on(timed, "A100")], Path("records"))
    with pytest.raises(DataError, match=r"were timed on different GPUs \(A100 and H100\), .* --gpu KIND runs the others again$"):
        require_one_origin([on(timed, "A100"), on(timed, "H100")], Path("records"))


@pytest.mark.parametrize("study", ["variants", "mixed"])
def test_a_stale_record_cannot_enter_a_table(study: Study, filled: Workspace, tmp_path: Path) -> None:
    shutil.copytree(filled.root, tmp_path / "root")
    workspace = Workspace(root=tmp_path / "root", profile=filled.profile)
    path = max(workspace.records(study).glob("*.json"))
    write_record(read_record(path).model_copy(update={"code_sha256": OTHER}), path.parent)
    with pytest.raises(DataError, match=f"{study}/{path.stem} are of different code"):
        load_results(workspace, study)
    with pytest.raises(DataError, match="are of different code"):
        load_all_results(workspace)


def test_studies_of_different_code_cannot_enter_one_report(filled: Workspace, tmp_path: Path) -> None:
    shutil.copytree(filled.root, tmp_path / "root")
    workspace = Workspace(root=tmp_path / "root", profile=filled.profile)
    for path in workspace.records("mixed").glob("*.json"):
        write_record(read_record(path).model_copy(update={"code_sha256": OTHER}), path.parent)
    assert load_results(workspace, "mixed")
    with pytest.raises(DataError, match=r"variants/\S+ and mixed/\S+ are of different code \(sha256 121212121212\.\.\. and ffffffffffff"):
        load_all_results(workspace)


def test_repeats_belong_to_their_first_process_and_the_process_is_the_unit(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path, profile=synthetic.in_processes(synthetic.fill_profile(), 6), studies=("variants",))
    results = load_results(workspace, "variants")
    assert [result.record.trial.process for result in results] == [0] * len(profile.variants.arms)
    done = [result for result in results if result.record.status == "success"]
    assert {len(result.repeats) for result in done} == {5}
    for result in done:
        assert [record.trial.process for record in result.records] == list(range(6))
        for latency in result.latency.values():
            medians = [latency.medians_ms[process] for process in range(6)]
            assert latency.p50_ci_ms == Interval(low=min(medians), high=max(medians))
    tables = find(profile, workspace).tables
    last = tables.paper_table.filter(pl.col("times_first").is_not_null()).to_dicts()[-1]
    assert last["processes"] == 6
    assert last["times_first_low"] == pytest.approx(last["times_first_high"], rel=1e-3)  # every round has one and the same factor
    assert last["times_first_p"] == pytest.approx(2 / 64)
    shown = to_markdown(result_table_of(results))
    assert "Latencies are medians of 6 processes" in shown

    packed = pack_records(profile, workspace, tmp_path / "packed")
    again = load_results(replace(workspace, elsewhere=packed[0].parents[1]), "variants")
    assert {result.record.trial_id: result.latency for result in again} == {result.record.trial_id: result.latency for result in results}

    first = next(result for result in done)
    (workspace.records("variants") / f"{first.record.trial_id}.json").unlink()
    (workspace.records("variants") / f"{first.record.trial_id}.npz").unlink()
    with pytest.raises(DataError, match="repeats the timing of a trial that has no record"):
        load_results(workspace, "variants")


@pytest.mark.parametrize(
    ("idle", "factor", "bound"),
    [(0.6, 1.4, True), (0.6, 1.02, False), (0.05, 1.4, False), (None, 1.4, True), (None, 1.02, False)],
    ids=["both", "no spread", "a busy GPU", "no trace", "no trace, no spread"],
)
def test_a_variant_is_host_bound_where_the_gpu_waits_and_processes_differ(idle: float | None, factor: float, bound: bool) -> None:
    profile = synthetic.in_processes(synthetic.fill_profile(), 2)
    trials = [trial.model_copy(update={"device": "cuda"}) for trial in cells(profile, "variants") if trial.label == "bf16"]
    (first, _), (repeat, _) = (synthetic.succeeded(trial) for trial in trials)
    assert first.measurement is not None
    assert repeat.measurement is not None
    calls = first.measurement.latency[0].samples_ms
    slower = repeat.measurement.latency[0].model_copy(update={"samples_ms": tuple(factor * value for value in calls)})
    latency = (slower, *repeat.measurement.latency[1:])
    repeat = repeat.model_copy(update={"measurement": repeat.measurement.model_copy(update={"latency": latency})})
    busy_us = 1000 * Result(first, None, (repeat,)).latency[1].p50_ms * (1 - (idle or 0))
    traced = first.measurement.kernels[0].model_copy(update={"by_class_us": {"gemm": busy_us}})
    measured = first.measurement.model_copy(update={"kernels": () if idle is None else (traced, *first.measurement.kernels[1:])})
    result = Result(first.model_copy(update={"measurement": measured}), None, (repeat,))
    assert result.is_host_bound(1) == bound
    ((shown, *_),) = (line.cells for line in Table("", [latency_column("P50 ms", 1)], [row_of(result)]).lines("terminal"))
    assert ("host-bound" in shown.text) == bound


def row_of(result: Result) -> dict[str, Any]:
    frames = Frames([result], arms=["bf16"])
    return {"by_batch": {row["batch_size"]: row for row in paper_table(variants(frames)).to_dicts()}}
