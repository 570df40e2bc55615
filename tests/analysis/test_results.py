"""Records come with the predictions that they name, or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import synthetic
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.results import Result, load_all_results, load_results, require_one_origin
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import Study
from lowbit_vit.schema.record import Record, read_record, write_record
from lowbit_vit.schema.workspace import Workspace


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
