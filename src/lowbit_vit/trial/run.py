"""One trial, from its configuration to its record, in the order in which a method section tells it.

`run_trial` reads straight down: data, weights, quantization, adapters, accuracy, latency and memory, record. It raises what
goes wrong; `record_trial` turns that into the record's status. A repeat (`Trial.process` from 1) loads what the first process
trained, and measures the latency alone.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from lowbit_vit.data.arrays import Dataset, load_dataset
from lowbit_vit.errors import DataError, Unavailable
from lowbit_vit.model.attention import require
from lowbit_vit.model.checkpoint import load_state, restore, save_state
from lowbit_vit.model.execution import prepare
from lowbit_vit.model.flops import needed_bytes
from lowbit_vit.model.lora import attach, import_peft, settle, trainable_parameters
from lowbit_vit.model.precision import apply_plan, audit, compute_dtype, import_formats, matmul_mode, take_over, weight_bytes
from lowbit_vit.model.serialization import model_bytes
from lowbit_vit.model.vit import Architecture, VisionTransformer, architecture
from lowbit_vit.schema.code_hash import code_sha256, formats_sha256
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.machine import command_line, provenance, why_unavailable
from lowbit_vit.schema.plan import Plan
from lowbit_vit.schema.record import EvaluationResult, MeasurementResult, ModelFacts, Record, Status, TrainingResult, shorten, write_record
from lowbit_vit.schema.workspace import TRAINED, Workspace
from lowbit_vit.trial.evaluate import Logits, evaluate, predict_test
from lowbit_vit.trial.gpu_state import exclusive, require_memory
from lowbit_vit.trial.measure import measure
from lowbit_vit.trial.train import seed_everything, train

log = logging.getLogger(__name__)

# Hashed at import: what is edited while a trial runs did not make its record.
CODE_SHA256 = code_sha256()
# In the messages of libraries; the last two are of libraries that allocate by themselves, and of cuBLAS and cuDNN.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "cannot allocate memory",
    "cuda out of memory",
    "cuda error: out of memory",
    "_status_alloc_failed",
)


@dataclass(frozen=True)
class Origin:
    """What a trial starts from, as sha256.

    Attributes:
        weights: of the high-precision file that it quantizes.
        base: of the backbone: that file, or the one that it was adapted from.
        data: of the prepared images, labels and names.
    """

    weights: str
    base: str
    data: str


def run_trial(trial: Trial, workspace: Workspace, out: Path) -> Record:
    """Run one trial in this process and write `<trial_id>.npz` and `.json` into `out`.

    What is trained on quantized weights is kept in `out`/trained, where a repeat looks for it; without it the repeat trains again.

    Raises:
        Unavailable: this machine cannot run it.
        DataError: data or weights are missing, damaged, or made for another profile; or the disk is full.
        ConfigError: the plan names layers that the model does not have, or adapters are asked of a fused layout.
        Busy: another process uses the GPU of a timing trial.
        LowbitVitError: the training loss or the logits are not finite, or the trace contradicts the attention label.
    """
    import_formats([trial.plan])
    if trial.adaptation == "qlora":
        import_peft()
    clock = Stopwatch()
    # Adapters over formats of this project's kernels are trained through others' layers of the same codes, with q, k and v apart.
    taken_over = trial.adaptation == "qlora" and trial.plan.trained != trial.plan
    trained = trial.model_copy(update={"plan": trial.plan.trained, "qkv": "separate"}) if taken_over else trial
    with clock.part("load"), matmul_mode(trial.plan):
        check_available(trial)
        dataset = load_data(trial, workspace)
        model, origin = load_backbone(trained, workspace, dataset)
        parameters = sum(parameter.numel() for parameter in model.parameters())
    # The high-precision model's logits, where the study asks how far quantization moves them.
    with clock.part("reference"), matmul_mode(trial.plan):
        asked = trial.study != "variants" and not trial.process
        reference_logits = high_precision_logits(trial, workspace, dataset) if asked else None

    # III-C: the encoder's linears become low-bit, everything else takes the compute dtype.
    with clock.part("quantize"):
        apply_plan(model, trained.plan)
        model.eval()  # bitsandbytes' new layers start in training mode, where int8 on the CPU is another computation

    # III-D: adapters on q and v, the base frozen in its quantized state. (`ptq` was adapted before, in high precision.)
    training, trainable = None, 0
    with clock.part("train"), matmul_mode(trial.plan):
        if trial.adaptation == "qlora" and trial.lora is not None:
            attach(model, trial.lora, seed=trial.seed)
            kept = out / TRAINED / f"{trial.first_process.trial_id}.safetensors"
            made_of = {"trial_id": kept.stem, "backbone_sha256": origin.weights, "code_sha256": CODE_SHA256}
            if not (trial.process and _restore_trained(model, kept, made_of)):
                sets = [dataset.train_views[split] for split in trial.lora.training.splits]
                title = f"adapt {trial.label}"
                training = train(
                    model, sets, trial.lora.training, views=trial.data.views, seed=trial.seed, device=trial.device, title=title
                )
                model.zero_grad(set_to_none=True)  # else the last gradients would count as the model's memory
                if trial.measurement is not None and trial.measurement.processes > 1:
                    save_state(trainable_parameters(model), kept, made_of)
            trainable = sum(parameter.numel() for parameter in trainable_parameters(model).values())
            settle(model)
            if taken_over:
                take_over(model, trial.plan)

    with clock.part("count"):
        facts = model_facts(model, trial, origin=origin, parameters=parameters, trainable=trainable)

    # III-E and IV: accuracy, then latency, memory and kernels of the very same model.
    ready = partial(prepare, model, trial.execution)
    evaluation, predictions = None, None
    if not trial.process:
        with clock.part("evaluate"), matmul_mode(trial.plan):
            evaluation, predictions = evaluate(ready, dataset, trial, reference_logits=reference_logits)
    measurement = None
    with clock.part("measure"), matmul_mode(trial.plan):
        if trial.measurement is not None:
            measurement = measure(
                ready,
                trial.measurement,
                dataset.eval_views["test"],
                trial.data.views,
                model=model,
                attention=trial.attention,
                device=trial.device,
                dtype=compute_dtype(trial.plan),
                repeat=trial.process > 0,
            )

    training = None if trial.process else training
    record = success(trial, origin=origin, facts=facts, evaluation=evaluation, clock=clock, training=training, measurement=measurement)
    write_record(record, out, predictions)
    return record


def _restore_trained(model: VisionTransformer, path: Path, made_of: dict[str, str]) -> bool:
    """Load what the first process trained; whether that is there, of this code and these weights."""
    if not path.is_file():
        log.info("%s: not there; trained again", path)
        return False
    state, card = load_state(path)
    parameters = trainable_parameters(model)
    if any(card.get(name) != value for name, value in made_of.items()) or state.keys() != parameters.keys():
        log.info("%s: of other code or weights; trained again", path)
        return False
    for name, parameter in parameters.items():
        parameter.data.copy_(state[name])
    return True


def record_trial(trial: Trial, workspace: Workspace, out: Path) -> Record:
    """As `run_trial`, but a failure becomes a record: skipped, oom or failed, with its reason in one line.

    Raises:
        DataError: the record itself could not be written.
        KeyboardInterrupt: passed on; nothing is written.
    """
    try:
        return run_trial(trial, workspace, out)
    except Exception as error:  # noqa: BLE001  (the point of this function: every failure becomes a record)
        return record_failure(error, trial, out)


def record_failure(error: Exception, trial: Trial, out: Path) -> Record:
    """Write the record of a trial that raised, and log the traceback of what the user cannot act on.

    Raises:
        DataError: the record could not be written.
    """
    status, reason = outcome(error)
    if status == "skipped":
        log.info("%s: skipped (%s)", trial.label, reason)
    else:
        log.error("%s: %s (%s)", trial.label, status, reason, exc_info=error)
    facts = provenance(command_line())
    record = Record(trial_id=trial.trial_id, status=status, reason=reason, trial=trial, provenance=facts, code_sha256=CODE_SHA256)
    write_record(record, out)
    return record


def outcome(error: Exception) -> tuple[Status, str]:
    """The status that an exception gives a trial, and the reason in one line."""
    lines = str(error).strip().splitlines()
    reason = shorten(lines[0][:300]) if lines else type(error).__name__
    if isinstance(error, Unavailable):
        return "skipped", reason
    # Python's and CUDA's own classes, and the bare RuntimeError that PyTorch raises for host memory.
    unnamed = isinstance(error, RuntimeError | OSError) and any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)
    if unnamed or isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "oom", f"out of memory: {reason}"
    named = reason if type(error).__module__.startswith("lowbit_vit") or not lines else f"{type(error).__name__}: {reason}"
    return "failed", named


# ------------------------------------------------------------------------------------- parts that `run_scan` uses as well


@dataclass
class Stopwatch:
    """Wall seconds of each part of a trial."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the block; one name used twice adds up."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 4)


def check_available(trial: Trial) -> None:
    """Refuse, before anything is loaded, what this machine cannot run.

    Raises:
        Unavailable: the reason.
        Busy: others hold the GPU's memory, or use the GPU of a timing.
    """
    reason = why_unavailable(device=trial.device, attention=trial.attention, execution=trial.execution, plan=trial.plan)
    if reason is not None:
        raise Unavailable(reason)
    arch = architecture(trial.backbone.architecture, trial.data.views.image_size)
    if trial.device == "cuda":
        _check_gpu(trial, arch)
    require(trial.attention, device=torch.device(trial.device), dtype=compute_dtype(trial.plan), head_width=arch.head_width)


def _check_gpu(trial: Trial, arch: Architecture) -> None:
    """Refuse before a minute is spent what would be refused or fail after it."""
    if not torch.cuda.is_available():
        raise Unavailable(f"needs CUDA: the driver shows a GPU, but torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it")
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    measured = () if trial.measurement is None else trial.measurement.batch_sizes
    trained = trial.lora.training.batch_size if trial.adaptation == "qlora" and trial.lora is not None else 0
    require_memory(needed_bytes(arch, evaluated=max(trial.evaluation.batch_size, *measured, 1), trained=trained), free=free, total=total)
    if trial.measurement is not None:
        exclusive(trial.device, trial.measurement.exclusive)


def load_data(trial: Trial, workspace: Workspace) -> Dataset:
    """The profile's prepared data.

    Raises:
        DataError: it is missing, damaged, or of another source or other views than the trial's.
    """
    dataset = load_dataset(workspace.data, trial.data.views)
    if dataset.name != trial.data.source:
        raise DataError(f"{workspace.data}: holds {dataset.name}, the trial wants {trial.data.source}; run lowbit-vit data {trial.profile}")
    return dataset


def load_backbone(trial: Trial, workspace: Workspace, dataset: Dataset) -> tuple[VisionTransformer, Origin]:
    """The fp32 model that the trial quantizes, on its device, and what it is made of: `ptq` starts from the adapted one.

    Raises:
        DataError: the file is missing or damaged, or was made for other data or another architecture.
    """
    path = workspace.adapted(trial.seed) if trial.adaptation == "ptq" else workspace.backbone
    if not path.is_file():
        raise DataError(f"{path}: no such weights; run lowbit-vit backbone {trial.profile}")
    state, card = load_state(path)
    if card.get("content_sha256") != dataset.content_sha256:
        raise DataError(f"{path}: was made with other images than {workspace.data} holds; run lowbit-vit backbone {trial.profile}")
    seed_everything(trial.seed)
    arch = architecture(trial.backbone.architecture, trial.data.views.image_size)
    model = VisionTransformer.empty(arch, num_classes=dataset.num_classes, attention=trial.attention, qkv=trial.qkv, device=trial.device)
    restore(model, state, source=str(path))
    weights = str(card["sha256"])
    base = str(card["origin_sha256"]) if trial.adaptation == "ptq" else weights
    return model.eval(), Origin(weights=weights, base=base, data=dataset.content_sha256)


def high_precision_logits(trial: Trial, workspace: Workspace, dataset: Dataset) -> Logits:
    """Test logits of the same weights, kernel and compute dtype with nothing quantized: what KL is measured from."""
    model, _ = load_backbone(trial, workspace, dataset)
    apply_plan(model, Plan(compute_dtype=trial.plan.compute_dtype))
    return predict_test(partial(prepare, model.eval(), "eager"), dataset, trial, title="evaluate high precision")


def model_facts(model: VisionTransformer, trial: Trial, *, origin: Origin, parameters: int, trainable: int = 0) -> ModelFacts:
    """Count layers and bytes on the model itself, and the bytes of its file."""
    return ModelFacts(
        backbone_sha256=origin.weights,
        base_sha256=origin.base,
        parameters=parameters,
        trainable_parameters=trainable,
        layers=audit(model),
        weight_bytes=weight_bytes(model),
        file_bytes=model_bytes(model, trial.plan, {"trial_id": trial.first_process.trial_id, "backbone_sha256": origin.weights}),
    )


def success(
    trial: Trial,
    *,
    origin: Origin,
    facts: ModelFacts,
    evaluation: EvaluationResult | None,
    clock: Stopwatch,
    training: TrainingResult | None = None,
    measurement: MeasurementResult | None = None,
) -> Record:
    """The record of a trial that went through; a scanned cell has neither training nor measurement, a repeat no evaluation."""
    return Record(
        trial_id=trial.trial_id,
        status="success",
        reason=None,
        trial=trial,
        provenance=provenance(command_line()),
        code_sha256=CODE_SHA256,
        formats_sha256=formats_sha256(trial.plan),
        data_sha256=origin.data,
        model=facts,
        training=training,
        evaluation=evaluation,
        measurement=measurement,
        durations_s=clock.seconds,
    )
