import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowbit_vit.data.arrays import load_dataset, read_manifest
from lowbit_vit.errors import Busy, ConfigError, DataError, LowbitVitError, Unavailable
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.schema.code_hash import code_sha256
from lowbit_vit.schema.config import Profile, Trial
from lowbit_vit.schema.plan import NF4, HighPrecision, Int8, Plan, Rule, only, uniform
from lowbit_vit.schema.predictions import load_predictions, read_predictions
from lowbit_vit.schema.record import MeasurementResult, read_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial import measure as trial_measure
from lowbit_vit.trial import run as trial_run
from lowbit_vit.trial.run import outcome, record_trial, run_trial

NF4_PLAIN = NF4(format="nf4", double_quantization=False)
FORMATS = (HighPrecision(), NF4_PLAIN, Int8(format="int8", threshold=6.0))


@pytest.fixture
def measured_cell(cell: Trial, profile: Profile) -> Trial:
    return changed(cell, measurement=profile.measurement)


def changed(trial: Trial, **values: Any) -> Trial:
    return Trial.model_validate(trial.model_copy(update=values).model_dump())


@pytest.mark.parametrize("adaptation", ["qlora", "ptq"])
@pytest.mark.parametrize("weights", FORMATS, ids=lambda weights: weights.name)
def test_a_trial_ends_in_a_complete_record(
    weights: HighPrecision | NF4 | Int8, adaptation: str, measured_cell: Trial, workspace: Workspace, tmp_path: Path
) -> None:
    trial = changed(measured_cell, plan=uniform(weights, "fp32"), adaptation=adaptation)
    record = run_trial(trial, workspace, tmp_path)
    assert read_record(tmp_path / f"{trial.trial_id}.json") == record
    assert (record.status, record.reason, record.trial) == ("success", None, trial)
    assert record.model is not None
    assert record.model.layers.linears == 12
    assert record.model.layers.by_format == {weights.name: 12}
    assert record.model.weight_bytes < record.model.file_bytes < record.model.weight_bytes + 40_000
    assert (record.training is not None) == (adaptation == "qlora")
    assert (record.model.trainable_parameters > 0) == (adaptation == "qlora")
    backbone = workspace.backbone if adaptation == "qlora" else workspace.adapted(0)
    assert record.model.backbone_sha256 == hashlib.sha256(backbone.read_bytes()).hexdigest()
    assert record.model.base_sha256 == hashlib.sha256(workspace.backbone.read_bytes()).hexdigest()
    assert record.data_sha256 == read_manifest(workspace.data).content_sha256
    assert record.code_sha256 == code_sha256()
    assert record.evaluation is not None
    predictions = read_predictions(tmp_path / f"{trial.trial_id}.npz", record)
    assert (len(predictions.right), predictions.selection.sum()) == (599, 299)
    assert record.measurement is not None
    assert [latency.batch_size for latency in record.measurement.latency] == [1, 2]
    assert set(record.durations_s) >= {"load", "quantize", "count", "evaluate", "measure"}


def test_a_repeat_loads_what_the_first_process_trained_and_takes_the_latency_alone(
    measured_cell: Trial, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measured_cell.measurement is not None
    several = measured_cell.measurement.model_copy(update={"processes": 2})
    first = changed(measured_cell, plan=uniform(NF4_PLAIN, "fp32"), adaptation="qlora", measurement=several)
    repeat = changed(first, process=1)
    made = run_trial(first, workspace, tmp_path)
    timed: dict[str, dict[str, torch.Tensor]] = {}

    def looked_at(name: str) -> Any:
        def measure(*arguments: Any, model: VisionTransformer, **options: Any) -> MeasurementResult:
            timed[name] = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            return trial_measure.measure(*arguments, model=model, **options)

        return measure

    monkeypatch.setattr(trial_run, "measure", looked_at("restored"))
    with monkeypatch.context() as untrained:
        untrained.setattr(trial_run, "train", None)  # it would be an error to call it
        record = run_trial(repeat, workspace, tmp_path)
    assert read_record(tmp_path / f"{repeat.trial_id}.json") == record
    assert not (tmp_path / f"{repeat.trial_id}.npz").exists()
    assert (record.evaluation, record.training) == (None, None)
    assert record.model == made.model
    assert record.measurement is not None
    assert [len(latency.samples_ms) for latency in record.measurement.latency] == [10, 10]
    assert (record.measurement.memory, record.measurement.kernels, record.measurement.ceilings) == ((), (), None)

    monkeypatch.setattr(trial_run, "measure", looked_at("trained again"))
    run_trial(repeat, workspace, tmp_path / "elsewhere")
    assert timed["restored"].keys() == timed["trained again"].keys()
    for name, tensor in timed["restored"].items():
        assert torch.equal(tensor, timed["trained again"][name]), name


def test_the_predictions_file_is_the_one_the_record_names(cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    record = run_trial(cell, workspace, tmp_path)
    path = tmp_path / f"{cell.trial_id}.npz"
    assert record.evaluation is not None
    predictions = read_predictions(path, record)
    assert predictions.sha256() == record.evaluation.predictions_sha256
    labels = load_dataset(workspace.data, cell.data.views).eval_views["test"].labels
    np.testing.assert_array_equal(predictions.label, labels)
    assert (predictions.best == labels).mean() > 0.5  # chance is 0.1
    assert predictions.kl is None


@pytest.mark.parametrize("adaptation", ["qlora", "ptq"])
def test_a_trial_repeats_bit_for_bit(adaptation: str, cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    trial = changed(cell, plan=uniform(NF4_PLAIN, "fp32"), adaptation=adaptation)
    records = [run_trial(trial, workspace, tmp_path / name) for name in ("first", "second")]
    assert records[0].evaluation is not None
    assert records[1].evaluation is not None
    assert records[0].evaluation.predictions_sha256 == records[1].evaluation.predictions_sha256


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compute_dtypes_run(dtype: str, cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    plan = Plan.model_validate({"compute_dtype": dtype})
    record = run_trial(changed(cell, plan=plan), workspace, tmp_path)
    assert record.model is not None
    assert record.model.weight_bytes == record.model.parameters * (4 if dtype == "fp32" else 2)


def test_fused_qkv_gives_the_same_int8_predictions_with_fewer_layers(cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    plan = uniform(Int8(format="int8", threshold=0.0), "fp32")
    trials = [changed(cell, plan=plan, qkv=qkv) for qkv in ("separate", "fused")]
    separate, fused = (run_trial(trial, workspace, tmp_path) for trial in trials)
    assert separate.model is not None
    assert fused.model is not None
    assert (separate.model.layers.linears, fused.model.layers.linears) == (12, 8)
    one, other = (load_predictions(tmp_path / f"{trial.trial_id}.npz") for trial in trials)
    np.testing.assert_allclose(one.margin, other.margin, rtol=1e-3, atol=1e-3)


def test_kl_is_measured_from_high_precision_where_the_study_asks(cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    means = []
    for plan in (Plan(compute_dtype="fp32"), only([1], NF4_PLAIN, "fp32"), uniform(NF4_PLAIN, "fp32")):
        trial = changed(cell, study="sensitivity", plan=plan)
        run_trial(trial, workspace, tmp_path)
        kl = load_predictions(tmp_path / f"{trial.trial_id}.npz").kl
        assert kl is not None
        means.append(float(kl.mean()))
    assert means[0] == 0.0
    assert 0 < means[1] < means[2]


def test_a_plan_that_matches_nothing_is_a_failed_record(cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    plan = Plan(compute_dtype="fp32", rules=(Rule(pattern="blocks.9.*", weights=NF4_PLAIN),))
    trial = changed(cell, plan=plan)
    with pytest.raises(ConfigError, match=r"blocks\.9"):
        run_trial(trial, workspace, tmp_path)
    record = record_trial(trial, workspace, tmp_path)
    assert record.status == "failed"
    assert record.reason is not None
    assert "blocks.9" in record.reason
    assert read_record(tmp_path / f"{trial.trial_id}.json") == record
    assert record.provenance is not None


@pytest.mark.parametrize(
    "values",
    [
        {"attention": "fa2", "plan": Plan(compute_dtype="fp16")},
        {"execution": "cuda_graph"},
        {"execution": "compile"},
        pytest.param({"device": "cuda", "attention": "math"}, marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    ],
    ids=["fa2", "cuda_graph", "compile", "cuda"],
)
def test_what_cannot_run_here_is_skipped_with_the_reason(values: dict[str, Any], cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    record = record_trial(changed(cell, **values), workspace, tmp_path)
    assert record.status == "skipped"
    assert record.reason is not None
    assert "needs CUDA" in record.reason
    assert (record.model, record.evaluation) == (None, None)


def test_adapters_on_a_fused_layout_are_refused(cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fused"):
        run_trial(changed(cell, adaptation="qlora", qkv="fused"), workspace, tmp_path)


def test_missing_weights_name_the_file_and_the_command(cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"adapted-seed5\.safetensors: .*run lowbit-vit backbone demo"):
        run_trial(changed(cell, adaptation="ptq", seed=5), workspace, tmp_path)


def test_weights_of_other_images_are_refused(cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    root = tmp_path / "other"
    shutil.copytree(workspace.root, root)
    other = Workspace(root=root, profile=workspace.profile)
    card = other.backbone.with_suffix(".json")
    card.write_text(card.read_text().replace('"content_sha256": "', '"content_sha256": "0'))
    with pytest.raises(DataError, match="made with other images"):
        run_trial(cell, other, tmp_path)


def test_missing_data_names_the_command(cell: Trial, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run lowbit-vit data demo"):
        run_trial(cell, Workspace(root=tmp_path, profile="demo"), tmp_path)


def test_a_real_allocation_that_fails_is_oom() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    status, reason = outcome(caught.value)
    assert status == "oom"
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (MemoryError(), "oom", "out of memory: MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "oom", "out of memory: CUDA out of memory. Tried"),
        (RuntimeError("CUDA error: out of memory\nCompile with"), "oom", "out of memory: CUDA error: out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), "oom", "out of memory: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"),
        (Busy("the GPU is used by other processes (pid 8)"), "failed", "the GPU is used by other processes (pid 8)"),
        (Unavailable("needs CUDA"), "skipped", "needs CUDA"),
        (LowbitVitError("loss is nan"), "failed", "loss is nan"),
        (ValueError("first line\nsecond"), "failed", "ValueError: first line"),
        (ValueError(), "failed", "ValueError"),
    ],
)
def test_each_error_becomes_its_status_and_one_line(error: Exception, status: str, reason: str) -> None:
    assert outcome(error) == (status, reason)


def test_ctrl_c_writes_nothing(cell: Trial, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lowbit_vit.trial.run.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record_trial(cell, workspace, tmp_path)
    assert list(tmp_path.iterdir()) == []
