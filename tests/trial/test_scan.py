from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowbit_vit.data.arrays import load_dataset
from lowbit_vit.data.prepare import prepare_dataset
from lowbit_vit.errors import ConfigError
from lowbit_vit.model.precision import convert_block
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.recipe.backbone import make_backbone
from lowbit_vit.schema.cell_role import GivenPlan, label_of
from lowbit_vit.schema.config import Evaluation, Profile, SmallVit, Trial
from lowbit_vit.schema.plan import NF4, HighPrecision, Int8, Plan, WeightFormat, all_but, only, uniform
from lowbit_vit.schema.record import read_record
from lowbit_vit.schema.workspace import NOW, Workspace
from lowbit_vit.trial.run import run_trial
from lowbit_vit.trial.scan import run_scan
from lowbit_vit.trial.scan_model import ScanModel

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
        timeless = {"seconds", "block_evaluations"}
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


@pytest.fixture(scope="module")
def deep(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, Workspace]:
    """The profile with five blocks and a test set that the batches do not divide; data and backbone of it."""
    architecture = SmallVit(patch_size=4, depth=5, heads=2, width=64, mlp_width=64)
    deeper = profile.model_copy(
        update={
            "backbone": profile.backbone.model_copy(update={"architecture": architecture}),
            "evaluation": Evaluation(batch_size=128),
            "lora": None,
        }
    )
    prepared = Workspace(root=tmp_path_factory.mktemp("deep"), profile=profile.name)
    prepare_dataset(profile.data, folder=prepared.data, root=prepared.root, workers=1)
    make_backbone(deeper, prepared)
    return deeper, prepared


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Trial, Workspace], bytes]:
    """The predictions of a cell in a trial of its own, run once: they hang on its plan, not on what memory a scan may take."""
    made: dict[Plan, bytes] = {}

    def run(trial: Trial, workspace: Workspace) -> bytes:
        if trial.plan not in made:
            folder = tmp_path_factory.mktemp("single")
            run_trial(trial, workspace, folder)
            made[trial.plan] = (folder / f"{trial.trial_id}.npz").read_bytes()
        return made[trial.plan]

    return run


def block_plans(weights: WeightFormat) -> list[Plan]:
    """Both directions of the sensitivity study, and what the mixed study does: several blocks spared."""
    single = [make([block], weights, "fp32") for make in (only, all_but) for block in range(5)]
    return [uniform(weights, "fp32"), *single, all_but([0, 4], weights, "fp32"), all_but([2, 4], weights, "fp32")]


@pytest.mark.parametrize("weights", [NF4_PLAIN, Int8(format="int8", threshold=0.0), INT8], ids=lambda weights: weights.name)
@pytest.mark.parametrize("memory_gib", [0.005, 3.0], ids=["room for one", "room for all"])
def test_activations_used_again_change_no_bit(
    *,
    weights: WeightFormat,
    memory_gib: float,
    cell: Trial,
    deep: tuple[Profile, Workspace],
    alone: Callable[[Trial, Workspace], bytes],
    tmp_path: Path,
) -> None:
    profile, workspace = deep
    values = {
        "study": "sensitivity",
        "backbone": profile.backbone,
        "evaluation": profile.evaluation,
        "limits": profile.limits.model_copy(update={"memory_gib": memory_gib}),
        "lora": None,
    }
    trials = [
        Trial.model_validate(cell.model_copy(update={**values, "plan": plan, "roles": (role,), "label": label_of(role)}).model_dump())
        for index, plan in enumerate(block_plans(weights))
        for role in [GivenPlan(name=f"cell {index}")]  # a study's cells each have a role of their own, and share a model all the same
    ]
    assert len(load_dataset(workspace.data, cell.data.views).eval_views["test"].labels) % 128
    records = run_scan(trials, workspace, tmp_path / "scan")
    assert {record.status for record in records} == {"success"}
    # In every kind of place: first, middle and last block, both directions, several blocks.
    for trial in [trials[index] for index in (0, 1, 3, 5, 6, 8, 10, 12)]:
        assert (tmp_path / "scan" / f"{trial.trial_id}.npz").read_bytes() == alone(trial, workspace)
    evaluations = sum(record.evaluation.block_evaluations or 0 for record in records if record.evaluation is not None)
    one_by_one = 5 * (len(trials) + 1)  # every cell and the reference
    assert evaluations < one_by_one
    if memory_gib == 3.0:
        # The high-precision path and its forks, the low-bit path and its forks: each pair of boundary and block once.
        paths = {tuple(format_names(plan)) for plan in [*block_plans(weights), Plan(compute_dtype="fp32")]}
        assert evaluations == len({path[:stop] for path in paths for stop in range(1, 6)})


def format_names(plan: Plan) -> list[str]:
    return [plan.resolve([f"blocks.{block}.q" for block in range(5)])[f"blocks.{block}.q"].name for block in range(5)]


def test_what_breaks_in_a_shared_block_is_the_failure_of_each_that_has_it_and_of_no_other(
    cell: Trial, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [uniform(INT8, "fp32"), all_but([1], INT8, "fp32"), only([1], INT8, "fp32"), only([1], NF4_PLAIN, "fp32")]
    trials = [cell.model_copy(update={"study": "sensitivity", "plan": plan, "label": str(index)}) for index, plan in enumerate(plans)]

    def refuse(block: nn.Module, formats: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
        if block is broken[0] and formats["mlp.fc1"] == INT8:
            raise RuntimeError("the first block takes no int8")
        return convert_block(block, formats, dtype)

    broken: list[nn.Module] = []
    real = ScanModel.__init__

    def remember(self: ScanModel, model: VisionTransformer, plan: Plan) -> None:
        broken.append(model.blocks[0])
        real(self, model, plan)

    monkeypatch.setattr(ScanModel, "__init__", remember)
    monkeypatch.setattr("lowbit_vit.trial.scan_model.convert_block", refuse)
    records = run_scan(trials, workspace, tmp_path)
    assert [record.status for record in records] == ["failed", "failed", "success", "success"]
    assert {record.reason for record in records} == {None, "RuntimeError: the first block takes no int8"}
    assert not (tmp_path / NOW).exists()


@pytest.mark.parametrize("change", ["qlora", "measurement"])
def test_cells_that_train_or_measure_are_refused(change: str, cell: Trial, profile: Profile, workspace: Workspace, tmp_path: Path) -> None:
    values: dict[str, Any] = {"adaptation": "qlora"} if change == "qlora" else {"measurement": profile.measurement}
    with pytest.raises(ConfigError, match="use lowbit-vit trial"):
        run_scan([cell.model_copy(update=values)], workspace, tmp_path)
