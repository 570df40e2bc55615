"""Synthetic, schema-valid records for tests of the analysis and the report: made-up numbers, never shipped.

Logits of a fixed "high-precision model" plus noise that grows with how many blocks a plan quantizes and how deep they lie;
all else (latency, sizes, kernels) follows simple formulas.
"""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowbit_vit.analysis.allocation import study_plans
from lowbit_vit.analysis.block_cells import gather_cells
from lowbit_vit.analysis.claims.ledger import Paper, load_paper
from lowbit_vit.analysis.results import load_results
from lowbit_vit.analysis.sensitivity import scores, write_scores
from lowbit_vit.analysis.tables import Findings, find
from lowbit_vit.schema.allocation import plan_files_json
from lowbit_vit.schema.config import STUDIES, Profile, Study, Trial, load_profile
from lowbit_vit.schema.plan import BlockScore, SensitivityScores, linear_names
from lowbit_vit.schema.predictions import Predictions
from lowbit_vit.schema.record import (
    Ceilings,
    EvaluationResult,
    Invariance,
    KernelTime,
    Latency,
    LayerAudit,
    MeasurementResult,
    Memory,
    ModelFacts,
    Provenance,
    Record,
    Status,
    TrainingResult,
    Work,
    read_record,
    sha256,
    write_atomic,
    write_record,
)
from lowbit_vit.schema.stage_documents import Estimates, LinearEstimate
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import cells

PROJECT = Path(__file__).parents[1]
PAPER = PROJECT / "papers" / "vit-quantization-2025"

IMAGES, CLASSES, DEPTH = 600, 10, 8
CODE, DATA, BACKBONE = "12" * 32, "34" * 32, "ab" * 32
Logits = npt.NDArray[np.float64]


def provenance() -> Provenance:
    """Of no real machine."""
    return Provenance(
        started_utc="2026-01-01T00:00:00+00:00",
        host_os="Synthetic OS",
        python="3.11.0",
        packages={"torch": "0.0.0", "bitsandbytes": "0.0.0"},
        cpu="Synthetic CPU",
        cpu_cores=2,
        threads=2,
        memory_gib=8.0,
        gpu=None,
        gpu_uuid=None,
        gpu_memory_gib=None,
        driver=None,
        cuda=None,
        git_revision="0" * 40,
        git_dirty=False,
        image_digest=None,
        command="synthetic",
    )


def high_precision_logits() -> tuple[Logits, npt.NDArray[np.uint16]]:
    """Logits [IMAGES, CLASSES] of the unquantized model, about 95 % right, and the labels [IMAGES]."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, IMAGES).astype(np.uint16)
    logits = random.normal(0, 1, (IMAGES, CLASSES))
    logits[np.arange(IMAGES), labels] += 4.0
    return logits, labels


def formats(trial: Trial) -> list[str]:
    """The format of each block, `high` included."""
    resolved = trial.plan.resolve([f"blocks.{block}.mlp.fc1" for block in range(DEPTH)])
    return [weights.name for weights in resolved.values()]


def predictions(trial: Trial, *, with_kl: bool) -> Predictions:
    """Predictions that depend on the plan and the seed alone."""
    reference, labels = high_precision_logits()
    damage = sum(
        (0.3 if name.startswith("nf4") else 0.05) * (1 + block) / DEPTH for block, name in enumerate(formats(trial)) if name != "high"
    )
    seed = int(sha256(trial.plan.model_dump_json().encode())[:8], 16)
    logits = reference + damage * np.random.default_rng([seed, trial.seed]).normal(0, 1, reference.shape)
    first, second = _log_softmax(reference), _log_softmax(logits)
    rows, five = np.arange(IMAGES), np.argsort(-logits, axis=1, kind="stable")[:, :5]
    others = logits.copy()
    others[rows, labels] = -np.inf
    return Predictions(
        label=labels,
        best=five[:, 0].astype(np.uint16),
        among5=(five == labels[:, None]).any(axis=1),
        margin=(logits[rows, labels] - others.max(axis=1)).astype(np.float32),
        selection=np.random.default_rng(1).permutation(IMAGES) < IMAGES // 2,
        kl=np.maximum((np.exp(first) * (first - second)).sum(axis=1), 0).astype(np.float32) if with_kl else None,
    )


def _log_softmax(logits: Logits) -> Logits:
    shifted: Logits = logits - logits.max(axis=1, keepdims=True)
    result: Logits = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def succeeded(trial: Trial) -> tuple[Record, bytes]:
    """A successful record of a trial and the bytes of its predictions; of a repeat they are of its first process."""
    arrays = predictions(trial, with_kl=trial.study != "variants")
    used = formats(trial)
    per_block = {"high": 200_000, "nf4": 28_000, "nf4-dq": 26_000}
    weight_bytes = sum(per_block.get(name, 51_000) for name in used)
    record = Record(
        trial_id=trial.trial_id,
        status="success",
        reason=None,
        trial=trial,
        provenance=provenance(),
        code_sha256=CODE,
        data_sha256=DATA,
        model=ModelFacts(
            backbone_sha256=sha256(f"adapted with seed {trial.seed}".encode()) if trial.adaptation == "ptq" else BACKBONE,
            base_sha256=BACKBONE,
            parameters=400_000,
            trainable_parameters=9_000 if trial.adaptation == "qlora" else 0,
            layers=LayerAudit(by_format={name: 6 * used.count(name) for name in used}),
            weight_bytes=weight_bytes,
            file_bytes=weight_bytes + 3_000,
        ),
        evaluation=None
        if trial.process
        else EvaluationResult(
            split="test",
            seconds=1.0,
            predictions_sha256=arrays.sha256(),
            class_names=tuple(f"class {number}" for number in range(CLASSES)),
        ),
        training=_training(trial),
        measurement=_measurement(trial) if trial.measurement else None,
    )
    return record, arrays.to_bytes()


def _training(trial: Trial) -> TrainingResult | None:
    if trial.adaptation != "qlora" or trial.lora is None or trial.process:
        return None
    epochs = trial.lora.training.epochs
    return TrainingResult(steps=10 * epochs, seconds=1.0, loss=tuple(1 / (1 + epoch) for epoch in range(epochs)), peak_allocated_bytes=None)


def _measurement(trial: Trial) -> MeasurementResult:
    assert trial.measurement is not None
    slow = {"high": 1.0, "nf4": 1.7, "nf4-dq": 1.9}.get(formats(trial)[0], 2.6) * (1.3 if trial.attention == "math" else 1.0)
    latency, memory, kernels, on_gpu = [], [], [], trial.device == "cuda"
    for batch in trial.measurement.batch_sizes:
        mean = slow * (1.1 + 0.12 * batch) * (1 + 0.05 * trial.seed) * (1 + 0.01 * trial.process)
        samples = tuple(round(mean * (0.95 + 0.1 * i / 199), 4) for i in range(min(200, trial.measurement.samples)))
        latency.append(
            Latency(
                batch_size=batch,
                samples_ms=samples,
                first_call_ms=mean * 9,
                clocks_before=None,
                clocks_after=None,
            )
        )
        memory.append(
            Memory(
                batch_size=batch,
                peak_allocated_bytes=600_000_000 + 100_000 * batch if on_gpu else None,
                peak_reserved_bytes=700_000_000 + 100_000 * batch if on_gpu else None,
                process_bytes=None,
                peak_resident_bytes=None if on_gpu else 600_000_000 + 100_000 * batch,
                before_bytes=500_000 if on_gpu else None,
                workspace_bytes=32 * 2**20 if on_gpu else None,
            )
        )
        shares = {"gemm": 0.5, "quantize": 0.1, "attention": 0.15, "norm_elementwise": 0.15, "copy": 0.05, "other": 0.05}
        kernels.append(
            KernelTime(
                batch_size=batch,
                wall_us=None if on_gpu else 1000 * mean,
                by_class_us={name: 1000 * mean * share for name, share in shares.items()},
                launches=300 if on_gpu else None,
                host_syncs=0 if on_gpu else None,
                attention_kernels=("aten::_scaled_dot_product_flash_attention_for_cpu",),
                low_bit_kernels=(),
            )
        )
    if trial.process:
        return MeasurementResult(exclusive=None, latency=tuple(latency), memory=(), kernels=(), work=(), ceilings=None)
    smallest, largest = min(trial.measurement.batch_sizes), max(trial.measurement.batch_sizes)
    return MeasurementResult(
        exclusive=None,
        latency=tuple(latency),
        memory=tuple(memory),
        kernels=tuple(kernels),
        work=tuple(Work(batch_size=batch, flop=1e7 * batch, least_bytes=400_000) for batch in trial.measurement.batch_sizes),
        ceilings=Ceilings(matmul_flops_per_s=5e10, matmul_side=1024, copy_bytes_per_s=1e9, copy_bytes=2**27),
        invariance=None
        if (asked := trial.measurement.invariance_images) is None
        else Invariance(
            images=min(64, asked),
            batch_sizes=(smallest, largest),
            flips=1,
            max_abs_logit_difference=2e-6 * (1 + trial.seed),
            bit_equal=False,
        ),
    )


def unfinished(trial: Trial, status: Status, reason: str) -> Record:
    """A record of a trial that gave no result."""
    return Record(trial_id=trial.trial_id, status=status, reason=reason, trial=trial, provenance=None, code_sha256=CODE)


def fill_profile() -> Profile:
    """The demo's, with each timing in one process."""
    return in_processes(load_profile(PROJECT / "profiles" / "demo.yaml"), 1)


def in_processes(profile: Profile, processes: int) -> Profile:
    """The profile with each timing in so many processes."""
    measurement = profile.measurement.model_copy(update={"processes": processes})
    return profile.model_copy(update={"measurement": measurement})


def with_invariance(trial: Trial) -> Trial:
    """The trial, asked for predictions at two batch sizes; the demo's are not."""
    assert trial.measurement is not None
    return trial.model_copy(update={"measurement": trial.measurement.model_copy(update={"invariance_images": 64})})


def write_trials(trials: list[Trial], workspace: Workspace) -> None:
    """Write a record for every trial: those for CUDA are skipped, the others succeed."""
    for trial in trials:
        folder = workspace.records(trial.study)
        if trial.device == "cuda":
            write_record(unfinished(trial, "skipped", "needs CUDA"), folder)
        else:
            record, content = succeeded(trial)
            write_record(record, folder, None if trial.process else content)


def fill(root: Path, *, profile: Profile | None = None, studies: Sequence[Study] = STUDIES) -> tuple[Profile, Workspace]:
    """A workspace below `root` with the demo profile (or another), the paper's table and a record for every cell.

    Equal workspaces are made once in a process, and copied.
    """
    profile = profile or fill_profile()
    shutil.copytree(_filled(profile, tuple(studies)), root, dirs_exist_ok=True)
    return profile, Workspace(root=root, profile=profile.name)


@cache
def _filled(profile: Profile, studies: tuple[Study, ...]) -> Path:
    """A folder filled for `fill`; removed when the process ends."""
    root = Path(tempfile.mkdtemp(prefix="lowbit-vit-synthetic-")) / "root"
    atexit.register(shutil.rmtree, root.parent)
    (root / "profiles").mkdir(parents=True)
    shutil.copytree(PAPER, root / "papers" / PAPER.name)
    workspace = Workspace(root=root, profile=profile.name)
    if "variants" in studies:
        write_trials(cells(profile, "variants"), workspace)
    if "sensitivity" in studies:
        write_trials(cells(profile, "sensitivity"), workspace)
        write_scores(profile, workspace)
    if "mixed" in studies:
        alone = gather_cells(load_results(workspace, "sensitivity"))
        found = scores(alone, profile)
        estimates = estimates_of(profile, found)
        plans = study_plans(profile, found, alone, estimates)
        write_atomic(workspace.estimates, estimates.model_dump_json().encode())
        write_atomic(workspace.plans, plan_files_json(plans))
        write_trials(cells(profile, "mixed", scores=found, plans=plans), workspace)
    return root


@cache
def paper() -> Paper:
    """The paper of the project's profiles."""
    return load_paper(PROJECT, PAPER.name)


@cache
def findings(*studies: Study) -> Findings:
    """What is found in the demo's synthetic records of these studies; read, not changed, so that many tests share it."""
    with tempfile.TemporaryDirectory() as folder:
        return find(*fill(Path(folder), studies=studies))


def block_score(block: int, kl: tuple[float, ...], *, flips: int = 0, module: str | None = None) -> BlockScore:
    """A score of these KL a draw; all else is made up."""
    rest = {"flips": (flips,) * len(kl), "margin": (0.0,) * len(kl), "top1": (1.0,) * len(kl)}
    return BlockScore.model_validate(
        {"block": block, "module": module, "kl": kl, **rest, "kl_interval": (min(kl), max(kl)), "excess_interval": (0.0, 0.0)}
    )


def estimates_of(profile: Profile, found: Sequence[SensitivityScores]) -> Estimates:
    """By gradients, the first block is the one to spare: the opposite of what is measured."""
    linears = tuple(
        LinearEstimate(weights=weights.name, name=name, weight_error=1, activation_error=block, gradient=1 / (1 + block), fisher=1 + block)
        for weights in profile.sensitivity.formats
        for name in linear_names(profile.backbone.depth)
        for block in [int(name.split(".")[1])]
    )
    return Estimates(profile=profile.name, backbone_sha256=found[0].backbone_sha256, images=1, seconds=1, linears=linears)


def fill_many(root: Path, *, arms: int, seeds: int) -> tuple[Profile, Workspace]:
    """The demo's sensitivity and mixed studies, and `arms` x `seeds` records of variants: its CPU arms over and over.

    No two arms share a seed, which would make them one trial.
    """
    profile, workspace = fill(root, studies=("sensitivity", "mixed"))
    declared = [arm for arm in profile.variants.arms if arm.device != "cuda"]
    many = tuple(declared[index % len(declared)].model_copy(update={"label": f"arm {index}", "paper_row": None}) for index in range(arms))
    trials = {trial.label: trial for trial in cells(profile, "variants") if trial.device != "cuda"}
    folder = workspace.records("variants")
    folder.mkdir(parents=True)
    for index, arm in enumerate(many):
        of = trials[declared[index % len(declared)].label]
        for seed in range(index * seeds, (index + 1) * seeds):
            record, content = succeeded(of.model_copy(update={"label": arm.label, "seed": seed, "paper_row": None}))
            # Not write_record: thousands of files flushed to disk one by one take minutes.
            (folder / f"{record.trial_id}.npz").write_bytes(content)
            (folder / f"{record.trial_id}.json").write_text(record.model_dump_json(indent=1) + "\n")
    return profile.model_copy(update={"variants": profile.variants.model_copy(update={"arms": many})}), workspace


def relabel(profile: Profile, old: str, new: str) -> Profile:
    """The profile with one arm's label changed."""
    arms = tuple(arm.model_copy(update={"label": new}) if arm.label == old else arm for arm in profile.variants.arms)
    return profile.model_copy(update={"variants": profile.variants.model_copy(update={"arms": arms})})


__all__ = [
    "PROJECT",
    "block_score",
    "estimates_of",
    "fill",
    "fill_many",
    "findings",
    "load_profile",
    "predictions",
    "read_record",
    "relabel",
    "succeeded",
    "unfinished",
    "write_record",
]
