"""Every arm of the paper profile runs on the GPU, with a small ViT on digits in place of ViT-L/16 on flowers.

The trace inside each trial confirms the attention label; what may not be captured is skipped with its reason, never replaced.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import lowbit_vit
from lowbit_vit.data.prepare import prepare_dataset
from lowbit_vit.export import export_model
from lowbit_vit.recipe.backbone import make_backbone
from lowbit_vit.schema.config import Arm, Profile, SmallVit, Trial, load_profile
from lowbit_vit.schema.plan import FusedNF4
from lowbit_vit.schema.predictions import load_predictions, read_predictions
from lowbit_vit.schema.record import Record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells
from lowbit_vit.trial.estimates import estimate
from lowbit_vit.trial.run import record_trial
from lowbit_vit.trial.scan import run_scan

pytestmark = pytest.mark.gpu

PROFILES = Path(__file__).parents[2] / "profiles"


ADAPTED = Arm(
    label="NF4, fused kernels, adapters",
    weights=FusedNF4(format="nf4_fused", double_quantization=False, products="16-bit"),
    compute_dtype="bf16",
    attention="flash",
    adaptation="qlora",
    qkv="fused",
    execution="compile_graph",
)


def small_cuda_profile() -> Profile:
    """The paper profile's arms and one of our own, and its settings, on the demo's data; heads of 64, as in ViT-L/16."""
    paper, demo = load_profile(PROFILES / "paper.yaml"), load_profile(PROFILES / "demo.yaml")
    small = SmallVit(patch_size=2, depth=4, heads=4, width=256, mlp_width=1024)
    assert demo.backbone.training is not None
    assert paper.lora is not None
    short = demo.backbone.training.model_copy(update={"epochs": 30, "warmup_epochs": 2.0, "autocast": "bf16"})
    backbone = demo.backbone.model_copy(update={"architecture": small, "training": short})
    lora = paper.lora.model_copy(update={"training": short.model_copy(update={"epochs": 2, "warmup_epochs": 0.5})})
    measurement = paper.measurement.model_copy(
        update={"samples": 20, "seconds": 5.0, "invariance_images": 32, "exclusive": "waived", "energy_seconds": None}
    )
    arms = tuple(arm.model_copy(update={"samples": None, "seeds": (0,)}) for arm in (*paper.variants.arms, ADAPTED))
    return paper.model_copy(
        update={
            "data": demo.data,
            "backbone": backbone,
            "lora": lora,
            "measurement": measurement,
            "variants": paper.variants.model_copy(update={"arms": arms}),
        }
    )


PROFILE = small_cuda_profile()
EVERY = cells(PROFILE, "variants")
TRIALS = [trial for trial in EVERY if not trial.process]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    prepared = Workspace(root=tmp_path_factory.mktemp("gpu"), profile=PROFILE.name)
    prepare_dataset(PROFILE.data, folder=prepared.data, root=prepared.root, workers=2)
    make_backbone(PROFILE, prepared)
    return prepared


@pytest.fixture(autouse=True)
def forget_compiled_code() -> Iterator[None]:
    """In the program every trial has a process of its own; here the shapes of many would pass the compiler's limit."""
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def recorded(workspace: Workspace) -> Callable[[str], Record]:
    """The record of an arm, by its label; run when it is first asked for, whichever tests this process has."""
    trials = {trial.label: trial for trial in TRIALS}
    return functools.cache(lambda label: record_trial(trials[label], workspace, workspace.records("variants")))


@pytest.mark.parametrize("trial", TRIALS, ids=[trial.label for trial in TRIALS])
def test_every_arm_runs_as_labelled_or_says_why_not(trial: Trial, recorded: Callable[[str], Record], workspace: Workspace) -> None:
    record = recorded(trial.label)
    if trial.execution == "cuda_graph" and trial.plan.name == "int8-6/fp16":
        assert record.status == "skipped"
        assert record.reason is not None
        assert "threshold" in record.reason
        return
    assert (record.status, record.reason) == ("success", None)
    assert record.measurement is not None
    assert [latency.batch_size for latency in record.measurement.latency] == list(PROFILE.measurement.batch_sizes)
    for kernels in record.measurement.kernels:
        assert kernels.wall_us is None
        assert kernels.attention_kernels
        assert kernels.launches
        assert kernels.by_class_us["gemm"] > 0
        assert bool(kernels.low_bit_kernels) == (trial.plan.rules != ())
    assert record.measurement.ceilings is not None
    assert [work.batch_size for work in record.measurement.work] == list(PROFILE.measurement.batch_sizes)
    assert record.measurement.invariance is not None
    assert (record.measurement.invariance.images, record.measurement.invariance.batch_sizes) == (32, (1, 32))
    assert record.model is not None
    for memory in record.measurement.memory:
        assert memory.peak_allocated_bytes is not None
        assert memory.before_bytes is not None
        assert memory.workspace_bytes is not None
        # Beside the weights: one batch of images, the formats' constants, and what other tests of this process hold.
        assert 0 <= memory.before_bytes - record.model.weight_bytes < 32 * 2**20
        assert memory.peak_allocated_bytes >= memory.before_bytes + memory.workspace_bytes
    assert record.evaluation is not None
    assert read_predictions(workspace.records("variants") / f"{trial.trial_id}.npz", record).accuracy().top1 > 0.5  # chance is 0.1


def test_int8_with_outliers_waits_for_the_host_in_every_linear_and_without_never(recorded: Callable[[str], Record]) -> None:
    linears = 4 * 6
    syncs = {}
    for label in ("int8, threshold 6", "int8, threshold 0"):
        measurement = recorded(label).measurement
        assert measurement is not None
        syncs[label] = measurement.kernels[0].host_syncs
    assert syncs["int8, threshold 0"] == 0
    assert (syncs["int8, threshold 6"] or 0) >= linears


def test_a_trial_repeated_predicts_the_same_images_the_same_way(
    workspace: Workspace, recorded: Callable[[str], Record], tmp_path: Path
) -> None:
    trial = next(trial for trial in TRIALS if trial.label == "NF4")
    first = workspace.records("variants") / f"{recorded('NF4').trial_id}.npz"
    record_trial(trial, workspace, tmp_path)
    assert (load_predictions(first).best == load_predictions(tmp_path / first.name).best).all()


def test_a_repeat_takes_the_latency_of_what_the_first_process_trained(
    workspace: Workspace, recorded: Callable[[str], Record], tmp_path: Path
) -> None:
    first = recorded("4-bit + SDPA")
    repeat = next(trial for trial in EVERY if trial.process and trial.first_process.trial_id == first.trial_id)
    record = record_trial(repeat, workspace, tmp_path)
    assert (record.status, record.reason, record.evaluation) == ("success", None, None)
    assert record.model == first.model
    assert record.measurement is not None
    assert [latency.batch_size for latency in record.measurement.latency] == list(PROFILE.measurement.batch_sizes)
    assert (record.measurement.memory, record.measurement.kernels) == ((), ())


@pytest.mark.parametrize("label", ["NF4", "fp16, flash"])
def test_an_export_runs_as_a_cuda_graph(label: str, recorded: Callable[[str], Record], workspace: Workspace, tmp_path: Path) -> None:
    recorded(label)
    export_model(PROFILE, workspace, label, tmp_path / "exported")
    pixels = torch.randn(40, 3, *2 * [PROFILE.data.views.image_size], generator=torch.Generator().manual_seed(0))
    eager, graph = (lowbit_vit.load(tmp_path / "exported", "cuda", execution=execution) for execution in ("eager", "cuda_graph"))
    expected = torch.from_numpy(eager.logits(pixels))
    for _ in range(2):
        assert (torch.from_numpy(graph.logits(pixels)) - expected).norm() < 0.01 * expected.norm()


def test_a_scan_on_the_gpu_gives_the_predictions_of_single_trials(workspace: Workspace, tmp_path: Path) -> None:
    trials = cells(PROFILE, "sensitivity")
    records = run_scan(trials, workspace, tmp_path / "scan")
    assert {record.status for record in records} == {"success"}
    for trial in trials[::3]:
        single = record_trial(trial, workspace, tmp_path / "single")
        (scanned,) = [record for record in records if record.trial_id == trial.trial_id]
        assert single.evaluation is not None
        assert scanned.evaluation is not None
        assert scanned.evaluation.predictions_sha256 == single.evaluation.predictions_sha256, trial.label
        assert scanned.model == single.model
    spent = sum(record.evaluation.block_evaluations or 0 for record in records if record.evaluation is not None)
    # With k = 4 blocks: high precision, and for each of two formats k + 2 passes at most.
    assert spent <= 4 * (1 + 2 * (4 + 2))


def test_estimates_are_made_on_the_gpu(workspace: Workspace) -> None:
    found = estimate(cells(PROFILE, "sensitivity")[0], PROFILE.sensitivity.formats, workspace)
    assert len(found.linears) == 2 * 4 * 6
    assert all(linear.gradient > 0 and linear.fisher > 0 for linear in found.linears)
