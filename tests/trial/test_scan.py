from pathlib import Path
from typing import Any

import pytest
import torch

from lowbit_vit.data.arrays import load_dataset
from lowbit_vit.errors import ConfigError
from lowbit_vit.schema.config import Profile, Trial
from lowbit_vit.schema.plan import NF4, HighPrecision, Int8, Plan, all_but, only, uniform
from lowbit_vit.schema.record import read_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.trial.run import load_backbone, run_trial
from lowbit_vit.trial.scan import Resident, run_scan

NF4_PLAIN = NF4(format="nf4", double_quantization=False)
INT8 = Int8(format="int8", threshold=6.0)


def cells_of(cell: Trial, **values: Any) -> list[Trial]:
    plans = [
        uniform(HighPrecision(), "fp32"),
        uniform(NF4_PLAIN, "fp32"),
        only([0], NF4_PLAIN, "fp32"),
        all_but([0], INT8, "fp32"),
        only([1], INT8, "fp32"),
    ]
    return [
        Trial.model_validate(cell.model_copy(update={"study": "sensitivity", "plan": plan, "label": plan.name, **values}).model_dump())
        for plan in plans
    ]


def test_a_scan_gives_the_records_of_single_trials_bit_for_bit(cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    trials = cells_of(cell, adaptation="ptq")
    scanned = run_scan(trials, workspace, tmp_path / "scan")
    for trial, record in zip(trials, scanned, strict=True):
        single = run_trial(trial, workspace, tmp_path / "single")
        assert read_record(tmp_path / "scan" / f"{trial.trial_id}.json") == record
        assert record.model == single.model
        assert (record.code_sha256, record.data_sha256) == (single.code_sha256, single.data_sha256)
        assert record.evaluation is not None
        assert single.evaluation is not None
        timeless = {"seconds", "images_per_s"}
        assert record.evaluation.model_dump(exclude=timeless) == single.evaluation.model_dump(exclude=timeless)
        name = f"{trial.trial_id}.npz"
        assert (tmp_path / "scan" / name).read_bytes() == (tmp_path / "single" / name).read_bytes()


def test_cells_of_different_weights_kernels_and_dtypes_may_be_mixed(cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    trials = [
        *cells_of(cell, adaptation="none", attention="math")[:2],
        *cells_of(cell, adaptation="ptq")[:2],
        *cells_of(cell, adaptation="ptq", plan=Plan(compute_dtype="bf16"))[:1],
    ]
    records = run_scan(trials[::-1], workspace, tmp_path)
    assert [record.trial for record in records] == trials[::-1]
    assert {record.status for record in records} == {"success"}


def test_a_cell_that_fails_leaves_the_others_alone(cell: Trial, workspace: Workspace, tmp_path: Path) -> None:
    good, wrong, *_ = cells_of(cell)
    wrong = wrong.model_copy(update={"plan": only([7], INT8, "fp32")})
    unavailable = good.model_copy(update={"device": "cuda", "attention": "math"}) if not torch.cuda.is_available() else None
    trials = [wrong, good, *([unavailable] if unavailable else [])]
    records = run_scan(trials, workspace, tmp_path)
    assert [record.status for record in records] == ["failed", "success", "skipped"][: len(trials)]
    assert records[0].reason is not None
    assert "blocks.7" in records[0].reason
    assert len(list(tmp_path.glob("*.json"))) == len(trials)


@pytest.mark.parametrize("change", ["qlora", "measurement"])
def test_cells_that_train_or_measure_are_refused(change: str, cell: Trial, profile: Profile, workspace: Workspace, tmp_path: Path) -> None:
    values: dict[str, Any] = {"adaptation": "qlora"} if change == "qlora" else {"measurement": profile.measurement}
    with pytest.raises(ConfigError, match="use lowbit-vit trial"):
        run_scan([cell.model_copy(update=values)], workspace, tmp_path)


def test_a_resident_model_converts_each_block_once_and_never_touches_its_source(cell: Trial, workspace: Workspace) -> None:
    source, origin = load_backbone(cell, workspace, load_dataset(workspace.data, cell.data.views))
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    resident = Resident(source, origin, cell)
    images = torch.zeros(2, 3, 8, 8)
    with torch.inference_mode():
        first = resident.with_plan(only([0], NF4_PLAIN, "fp32"))
        block = first.blocks[0]
        logits = first(images)
        resident.with_plan(uniform(INT8, "fp32"))(images)
        again = resident.with_plan(only([0], NF4_PLAIN, "fp32"))
        assert again.blocks[0] is block
        assert torch.equal(again(images), logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())
