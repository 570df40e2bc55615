"""The output of the study: one JSON record a trial, versioned, with units in the field names.

A record holds raw values alone: what was configured, counted, timed. `schema/metrics.py` computes everything else. A successful
record has its per-image predictions in `<trial_id>.npz` beside it. Files are written atomically. No torch.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from lowbit_vit.errors import CONTROL, DataError, first_line
from lowbit_vit.schema.cell_role import fits, label_of
from lowbit_vit.schema.config import Device, Measurement, Trial, one_line
from lowbit_vit.schema.plan import TEXT_LENGTH, Frozen, Text

RECORD_VERSION: Literal[3] = 3
FIRST_EDITION = "97d7bc9"  # the last commit that reads records of versions 1 and 2, and packed ones
LEAST_SAMPLES = 10  # of a latency: kept even if they take longer than Measurement.seconds
Status = Literal["success", "oom", "timeout", "failed", "skipped"]
KERNEL_CLASSES = ("gemm", "quantize", "attention", "norm_elementwise", "copy", "other")

# Bounds far beyond what can be measured, so that sums and ratios of what is within them stay finite.
Count = Annotated[int, Field(ge=0, le=2**53)]
Positive = Annotated[int, Field(ge=1, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
GiB = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Watts = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Loss = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=1e-6, le=1e9, allow_inf_nan=False)]
Microseconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1, le=1e21, allow_inf_nan=False)]
KernelClass = Annotated[str, Field(pattern=f"^({'|'.join(KERNEL_CLASSES)})$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TrialId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}$")]


def _is_time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


class Provenance(Frozen):
    """Where, when and with what a record was made. A fact that could not be read is null."""

    started_utc: Annotated[Text, AfterValidator(_is_time)] = Field(description="ISO 8601")
    host_os: Text
    python: Text
    packages: dict[Text, Text] = Field(description="name -> version, of those that can change a result")
    cpu: Text
    cpu_cores: Positive
    threads: Positive | None = Field(description="torch intra-op threads; null: no torch in the process that wrote the record")
    memory_gib: GiB
    gpu: Text | None
    gpu_uuid: Text | None
    gpu_memory_gib: GiB | None
    driver: Text | None
    cuda: Text | None
    git_revision: Text | None
    git_dirty: bool | None
    image_digest: Text | None = Field(description="of the container; null: not run in one")
    image_pinned: bool | None = Field(default=None, description="whether the profile names that image; null: not run in a container")
    container_runtime: Text | None = Field(default=None, description="docker or podman; null: not started in a container")
    command: Text


class Clocks(Frozen):
    """The GPU's state beside a timing, from NVML."""

    sm_mhz: Count
    memory_mhz: Count
    temperature_c: int = Field(ge=-100, le=1000)
    throttle_reasons: Text


class LayerAudit(Frozen):
    """Formats of the encoder's linears, counted on the model after conversion, not from the plan."""

    by_format: dict[Text, Positive] = Field(min_length=1, description="format name -> number of linears")

    @property
    def linears(self) -> int:
        """Encoder linears in all; 144 in ViT-L/16 with separate q, k, v."""
        return sum(self.by_format.values())


class ModelFacts(Frozen):
    """Sizes of the model that was measured."""

    backbone_sha256: Sha256 = Field(description="of the high-precision checkpoint file the trial started from")
    base_sha256: Sha256 = Field(description="of backbone.safetensors: that file, or what it was adapted from")
    parameters: Positive = Field(description="of the model before quantization and adapters")
    trainable_parameters: Count = Field(description="adapters and head; 0 where nothing was trained")
    layers: LayerAudit
    weight_bytes: Positive = Field(description="weights with scales, absmax and adapters, as held in memory")
    file_bytes: Positive = Field(description="of the saved safetensors + JSON, as it really is on disk")


class TrainingResult(Frozen):
    """One fine-tuning run."""

    steps: Positive
    seconds: Seconds
    loss: tuple[Loss, ...] = Field(min_length=1, description="mean training loss of each epoch")
    peak_allocated_bytes: Positive | None = Field(description="CUDA allocator peak; null on the CPU")


class EvaluationResult(Frozen):
    """The pass over the test images; the result of each image is in the predictions."""

    split: Literal["test"]
    seconds: Seconds = Field(gt=0, description="of a scan's cell: beyond what other cells had computed before it")
    predictions_sha256: Sha256 = Field(description="of the predictions' arrays (Predictions.sha256)")
    class_names: tuple[Text, ...] = Field(min_length=2, description="in the order of the labels")
    block_evaluations: Count | None = Field(None, description="blocks that a scan evaluated for this cell alone; null: no scan")


class Host(Frozen):
    """What the host was like during the calls of one batch size (trial/host_state.py). A fact that could not be read is null."""

    launch_us: Microseconds | None = Field(description="median time that Python takes to launch a small kernel; null: CPU")
    python_loop_ns: Microseconds = Field(description="one turn of an empty Python loop, taken between the calls; median")
    python_loop_most_ns: Microseconds = Field(description="the slowest of these")
    cpu_pressure: Share | None = Field(description="share of the time in which a task of this host waited for a CPU")
    steal: Share | None = Field(description="share of all cores' time that the hypervisor gave to others")
    load: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = Field(description="of the last minute")
    core_mhz: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(None, description="median clock of all cores")


class Latency(Frozen):
    """The calls of one batch size."""

    batch_size: Positive
    samples_ms: tuple[Milliseconds, ...] = Field(min_length=LEAST_SAMPLES, description="raw, in order, rounded to 0.1 us")
    first_call_ms: Milliseconds
    clocks_before: Clocks | None
    clocks_after: Clocks | None
    host: Host | None = Field(default=None, description="null: a record of before it was looked at")


class Memory(Frozen):
    """Memory of one batch size: CUDA allocator and NVML on a GPU, resident set on the CPU.

    On a GPU the peak is the sum of what was allocated before (weights, one batch of images), the libraries' workspaces, and the
    rest: activations and the kernels' scratch, dequantized weights among them.
    """

    batch_size: Positive
    peak_allocated_bytes: Positive | None
    peak_reserved_bytes: Positive | None
    process_bytes: Positive | None = Field(description="NVML's figure for this process")
    peak_resident_bytes: Positive | None = Field(description="host, CPU trials only")
    before_bytes: Count | None = Field(default=None, description="allocated before the first call; null: CPU")
    workspace_bytes: Count | None = Field(default=None, description="what cuBLAS keeps after it; null: CPU")

    @model_validator(mode="after")
    def _peaks_are_ordered(self) -> Self:
        sizes = [size for size in (self.before_bytes, self.peak_allocated_bytes, self.peak_reserved_bytes) if size is not None]
        if sizes != sorted(sizes):
            raise ValueError("before_bytes, peak_allocated_bytes and peak_reserved_bytes must not fall")
        return self


class KernelTime(Frozen):
    """Time of one forward by kernel class; on the CPU by operator class."""

    batch_size: Positive
    wall_us: Microseconds | None = Field(description="of the traced forward; null: a GPU, whose latency is measured without the profiler")
    by_class_us: dict[KernelClass, Microseconds] = Field(min_length=1, description="where kernels overlap, the time is the earlier one's")
    launches: Count | None = Field(description="null: CPU")
    host_syncs: Count | None = Field(description="null: CPU")
    attention_kernels: tuple[Text, ...] = Field(min_length=1, description="names that confirm the attention label")
    low_bit_kernels: tuple[Text, ...] = Field(description="names of those that read or make low-bit values: the way bitsandbytes took")


class Ceilings(Frozen):
    """The two lines of a roofline, measured beside the latencies."""

    matmul_flops_per_s: Rate = Field(description="one square matrix product in the trial's compute dtype")
    matmul_side: Positive = Field(description="rows and columns of its matrices")
    copy_bytes_per_s: Rate = Field(description="a copy on the device: bytes read plus bytes written")
    copy_bytes: Positive = Field(description="read plus written by one copy")


class Work(Frozen):
    """The least that one batch asks of any implementation."""

    batch_size: Positive
    flop: Rate = Field(description="a multiply-add counts two; counted from the architecture, adapters not counted")
    least_bytes: Positive = Field(description="weights as stored, images in, logits out: each moved once")


class Energy(Frozen):
    """Energy of one batch size, over calls back to back, between two updates of the device's counter (trial/energy.py).

    NVML's counter is of the whole GPU; RAPL's is of all processor packages, whatever else runs on them.
    """

    batch_size: Positive
    images: Positive
    seconds: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
    joules: Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
    source: Literal["nvml", "rapl"]
    update_ms: Milliseconds = Field(description="period of the counter, found by reading it until it moved")
    idle_watts_before: Watts
    idle_watts_after: Watts = Field(description="right after the calls: the device is still warm")
    sampled_watts: Watts | None = Field(description="mean of NVML's power during the calls, each of the last second; null: RAPL")
    clocks_before: Clocks | None
    clocks_during: Clocks | None = Field(description="at the end, the next calls under way")


class Invariance(Frozen):
    """Whether an image's prediction depends on the size of its batch: the same images, predicted at two batch sizes."""

    images: Positive
    batch_sizes: tuple[Positive, Positive]
    flips: Count = Field(description="images whose most likely class is another one")
    max_abs_logit_difference: float = Field(ge=0, le=1e38, allow_inf_nan=False)
    bit_equal: bool = Field(description="all logits, as fp32")

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if self.flips > self.images:
            raise ValueError(f"flips {self.flips} of {self.images} images")
        if self.bit_equal and (self.flips or self.max_abs_logit_difference):
            raise ValueError("bit_equal logits that differ")
        return self


class MeasurementResult(Frozen):
    """The measurements of a timing trial."""

    exclusive: bool | None = Field(description="no other process on the GPU; null: unknown, or a CPU trial; false: waived")
    latency: tuple[Latency, ...]
    memory: tuple[Memory, ...] = Field(description="of the first process, as kernels, work, ceilings and invariance")
    kernels: tuple[KernelTime, ...]
    work: tuple[Work, ...]
    ceilings: Ceilings | None = Field(description="null: a repeat in another process")
    invariance: Invariance | None = Field(default=None, description="null: the profile did not ask for it")
    energy: tuple[Energy, ...] = Field((), description="empty: not asked for, or no counter of the device can be read")


class Record(Frozen):
    """One trial's result."""

    record_version: Literal[3] = RECORD_VERSION
    trial_id: TrialId
    status: Status
    reason: Text | None = Field(description="null on success, else one line")
    trial: Trial
    provenance: Provenance | None = Field(description="null if the process died before it was known")
    code_sha256: Sha256 = Field(description="of the modules that every trial imports (schema/code_hash.py)")
    formats_sha256: Sha256 | None = Field(default=None, description="of the modules that its plan's formats add; null: none, or no result")
    data_sha256: Sha256 | None = Field(default=None, description="of the prepared images; null: no result")
    model: ModelFacts | None = None
    training: TrainingResult | None = None
    evaluation: EvaluationResult | None = None
    measurement: MeasurementResult | None = None
    durations_s: dict[Text, Seconds] = Field(default_factory=dict, description="wall seconds of each part of the trial")
    attempts: int = Field(default=1, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        trial = self.trial
        if self.trial_id != trial.trial_id:
            yield f"trial_id: {self.trial_id} is not that of its trial, {trial.trial_id}"
        succeeded = self.status == "success"
        if succeeded == (self.reason is not None):
            yield f"reason: must be {'null on success' if succeeded else f'given where status is {self.status}'}"
        asked = {
            "provenance": succeeded or self.provenance is not None,
            "data_sha256": succeeded,
            "model": succeeded,
            "training": succeeded and trial.adaptation == "qlora" and not trial.process,
            "evaluation": succeeded and not trial.process,
            "measurement": succeeded and trial.measurement is not None,
        }
        for name, wanted in asked.items():
            if wanted != (getattr(self, name) is not None):
                yield f"{name}: must be {'given' if wanted else 'null'} for this trial where status is {self.status}"
        if trial.roles and trial.label != " = ".join(map(label_of, trial.roles)):
            yield f"trial.label: {trial.label} is not that of trial.roles"
        for role in trial.roles:
            if not fits(role, trial.plan, depth=trial.backbone.depth):
                yield f"trial.roles: {label_of(role)} is not what the plan does"
        if self.model is not None:
            yield from self._model_problems(self.model)
        if self.training is not None and trial.lora is not None and len(self.training.loss) != trial.lora.training.epochs:
            yield f"training.loss: {len(self.training.loss)} values of {trial.lora.training.epochs} epochs"
        if self.measurement is not None and trial.measurement is not None:
            yield from _measurement_problems(self.measurement, trial.measurement, trial.device, repeat=trial.process > 0)

    def _model_problems(self, model: ModelFacts) -> Iterator[str]:
        known = {"high", *(rule.weights.name for rule in self.trial.plan.rules)}
        if not set(model.layers.by_format) <= known:
            yield f"model.layers.by_format: {', '.join(model.layers.by_format)}, but the plan has {', '.join(sorted(known))}"
        if self.trial.adaptation != "qlora" and model.trainable_parameters:
            yield f"model.trainable_parameters: {model.trainable_parameters} where nothing was trained"
        if self.trial.adaptation != "ptq" and model.base_sha256 != model.backbone_sha256:
            yield "model.base_sha256: not backbone_sha256, though the trial started from the backbone itself"


def _measurement_problems(measured: MeasurementResult, config: Measurement, device: Device, *, repeat: bool) -> Iterator[str]:
    asked = {"latency": True, "memory": not repeat, "work": not repeat, "kernels": config.trace and not repeat}
    for name, wanted in asked.items():
        found, sizes = [item.batch_size for item in getattr(measured, name)], list(config.batch_sizes) if wanted else []
        if found != sizes:
            yield f"measurement.{name}: batch sizes {found}, the trial asks for {sizes}"
    if repeat != (measured.ceilings is None):
        yield f"measurement.ceilings: must be {'null' if repeat else 'given'} for this trial"
    counted, asked = [item.batch_size for item in measured.energy], config.batch_sizes if config.energy_seconds and not repeat else ()
    if not set(counted) <= set(asked) or len(set(counted)) < len(counted):
        yield f"measurement.energy: batch sizes {counted}, the trial asks for {list(asked)}"
    most = max((len(latency.samples_ms) for latency in measured.latency), default=0)
    if most > config.samples:
        yield f"measurement.latency.samples_ms: {most} samples, the trial asks for {config.samples}"
    items: list[Memory | KernelTime] = [*measured.memory, *measured.kernels]
    for item in items:
        yield from _misplaced(item, device)
    invariance, images = measured.invariance, None if repeat else config.invariance_images
    if invariance is None or images is None:
        if invariance is not None or images is not None:
            yield f"measurement.invariance: must be {'null' if images is None else 'given'} for this trial"
    elif invariance.batch_sizes != (min(config.batch_sizes), max(config.batch_sizes)) or invariance.images > images:
        yield f"measurement.invariance: batch_sizes or images are not those that the trial asks for, {config.batch_sizes} and {images}"


_ON_GPU = {"peak_allocated_bytes", "peak_reserved_bytes", "before_bytes", "workspace_bytes", "launches", "host_syncs"}
_NEEDED: dict[Device, set[str]] = {"cuda": _ON_GPU, "cpu": {"wall_us"}}
_ALLOWED: dict[Device, set[str]] = {"cuda": _ON_GPU | {"process_bytes"}, "cpu": {"wall_us", "peak_resident_bytes"}}


def _misplaced(item: Memory | KernelTime, device: Device) -> Iterator[str]:
    part = "memory" if isinstance(item, Memory) else "kernels"
    for name, value in item:
        if value is None and name in _NEEDED[device]:
            yield f"measurement.{part}.{name}: must be given on {device}"
        if value is not None and name in _ALLOWED["cpu" if device == "cuda" else "cuda"]:
            yield f"measurement.{part}.{name}: must be null on {device}"


def sha256(content: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file of any size.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: a temporary file beside it is flushed to disk and renamed.

    Raises:
        DataError: the disk is full or not writable; the old file, if any, is intact.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path}: could not be written ({error.strerror}); the old file is intact") from error
    finally:
        if temporary is not None and temporary.exists():
            temporary.unlink()


def remove_half_written(folder: Path) -> None:
    """Delete what a process that was killed inside `write_atomic` left in a folder."""
    for path in folder.glob(".*"):
        if any(f"{suffix}." in path.name for suffix in (".json", ".npz", ".safetensors")):
            path.unlink(missing_ok=True)


def write_record(record: Record, folder: Path, predictions: bytes | None = None) -> Path:
    """Write `<trial_id>.npz` (if given) and then `<trial_id>.json`, each atomically; returns the JSON's path."""
    if predictions is not None:
        write_atomic(folder / f"{record.trial_id}.npz", predictions)
    path = folder / f"{record.trial_id}.json"
    write_atomic(path, (record.model_dump_json(indent=1) + "\n").encode())
    return path


def shorten(text: str) -> str:
    """The text as one line that a record can hold: control characters become blanks, and its end is cut."""
    line = CONTROL.sub(" ", text).strip()
    return line if len(line) <= TEXT_LENGTH else f"{line[: TEXT_LENGTH - 3]}..."


def parse_record(text: str | bytes, *, source: str) -> Record:
    """Validate the JSON text of one record.

    Args:
        text: JSON.
        source: file, and what in it, for the message.

    Raises:
        DataError: not JSON, of another version, or not of this schema.
    """
    again = "copy it again, or delete it and run the study again"
    try:
        content = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not a record ({first_line(error)}); {again}") from error
    version = content.get("record_version") if isinstance(content, dict) else None
    if version in (1, 2) and not isinstance(version, bool):
        advice = f"run the study again with this version, or read it with commit {FIRST_EDITION} of this repository"
        raise DataError(f"{source}: record_version {version} is of the first edition; {advice}")
    if version != RECORD_VERSION:
        raise DataError(f"{source}: record_version {str(version)[:40]!r}; this program reads {RECORD_VERSION}; {again}")
    try:
        return Record.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise DataError(f"{source}: {one_line(error)}; {again}") from None


def parse_json(text: str | bytes) -> Any:
    """The content of a JSON text in which no object has a key twice.

    Raises:
        ValueError, RecursionError: it is none.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"key {name[:60]!r} is there twice")
            found[name] = value
        return found

    return json.loads(text, object_pairs_hook=unique)


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        DataError: as `parse_record`, or the file cannot be read, or its name is not the trial's.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not a record ({error.strerror}); copy it again, or run the study again") from error
    record = parse_record(content, source=str(path))
    if path.stem != record.trial_id:
        raise DataError(f"{path}: key trial_id: {record.trial_id}, so its name must be {record.trial_id}.json; copy it again, or delete it")
    return record


def read_records(folder: Path) -> list[Record]:
    """Read every record below a folder, sorted by path. An empty or missing folder gives an empty list.

    Raises:
        DataError: as `read_record`.
    """
    return [read_record(path) for path in sorted(folder.rglob("*.json")) if not path.name.startswith(".")]
