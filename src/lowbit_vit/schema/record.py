"""The output of the study: one JSON record a trial, versioned, with units in the field names.

Beside each successful record lies `<trial_id>.npz` with the per-image predictions. Records are written atomically: a
reader sees the old file or the new one, never a part. No torch.
"""

import hashlib
import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import Trial, one_line
from lowbit_vit.schema.plan import Frozen

RECORD_VERSION = 2
Status = Literal["success", "oom", "timeout", "failed", "skipped"]


class Provenance(Frozen):
    """Where, when and with what a record was made. A fact that could not be read is null, never guessed."""

    started_utc: str = Field(description="ISO 8601")
    host_os: str
    python: str
    packages: dict[str, str] = Field(description="name -> version of what decides a number")
    cpu: str
    cpu_cores: int
    threads: int | None = Field(description="torch intra-op threads; null: no torch in the process that wrote this")
    memory_gib: float
    gpu: str | None
    gpu_uuid: str | None
    gpu_memory_gib: float | None
    driver: str | None
    cuda: str | None
    git_revision: str | None
    git_dirty: bool | None
    image_digest: str | None = Field(description="of the container; null: not run in one")
    image_pinned: bool | None = Field(default=None, description="whether the profile names that image; null: not run in a container")
    container_runtime: str | None = Field(default=None, description="docker or podman; null: not started by us in a container")
    command: str


class Clocks(Frozen):
    """The card's state beside a timing, from NVML."""

    sm_mhz: int
    memory_mhz: int
    temperature_c: int
    throttle_reasons: str


class LayerAudit(Frozen):
    """What the encoder's linears became: counted on the model itself after conversion, not from the plan."""

    linears: int = Field(description="encoder linears in all; 144 in ViT-L/16 with separate q, k, v")
    by_format: dict[str, int] = Field(description="format name -> number of linears")


class ModelFacts(Frozen):
    """Sizes of the model that was measured."""

    backbone_sha256: str = Field(description="of the high-precision checkpoint file the trial started from")
    base_sha256: str | None = Field(
        default=None, description="of backbone.safetensors: that file, or what it was adapted from; null: a record of version 1"
    )
    parameters: int = Field(description="of the model before quantization and adapters")
    trainable_parameters: int = Field(description="adapters and head; 0 where nothing was trained")
    layers: LayerAudit
    weight_bytes: int = Field(description="weights with scales, absmax and adapters, as held in memory")
    file_bytes: int = Field(description="of the saved safetensors + JSON, as it really is on disk")


class TrainingResult(Frozen):
    """One fine-tuning run."""

    epochs: int
    steps: int
    seconds: float
    images_per_s: float
    loss: tuple[float, ...] = Field(description="mean training loss of each epoch")
    peak_allocated_bytes: int | None = Field(description="CUDA allocator peak; null on the CPU")


class Accuracy(Frozen):
    """Metrics of one set of images."""

    images: int
    top1: float
    top5: float
    macro_f1: float
    loss: float = Field(description="mean cross-entropy, nats")


class EvaluationResult(Frozen):
    """Accuracy on the whole test split and on its two halves; the images themselves are in the npz."""

    split: Literal["test"]
    whole: Accuracy
    selection: Accuracy
    report: Accuracy
    seconds: float = Field(description="of a scan's cell: beyond what other cells had computed before it")
    images_per_s: float
    predictions_sha256: str = Field(description="of the npz's bytes")
    labels_sha256: str = Field(description="of ids and labels: only records that share it may be compared image by image")
    class_names: tuple[str, ...] | None = Field(default=None, description="in the order of the labels; null in older records")
    block_evaluations: int | None = Field(
        default=None, description="of all images, that a scan did for this cell alone; null: nothing was shared, or an older record"
    )


class Interval(Frozen):
    """A 95 % confidence interval."""

    low: float
    high: float


class Latency(Frozen):
    """Latency of one batch size. A percentile without enough samples for a finite interval is null."""

    batch_size: int
    samples_ms: tuple[float, ...] = Field(description="raw, in order, rounded to 0.1 us")
    first_call_ms: float
    mean_ms: float
    p50_ms: float
    p50_ci_ms: Interval | None
    p95_ms: float | None
    p95_ci_ms: Interval | None
    p99_ms: float | None
    p99_ci_ms: Interval | None
    images_per_s: float = Field(description="batch_size / mean latency")
    clocks_before: Clocks | None
    clocks_after: Clocks | None


class Memory(Frozen):
    """Memory of one batch size: CUDA allocator and NVML on a card, resident set on the CPU.

    On a card the peak is what was there before (weights and one batch of images), the libraries' workspaces, and what is left:
    activations and the kernels' own scratch, dequantized weights among them.
    """

    batch_size: int
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    process_bytes: int | None = Field(description="NVML's figure for this process")
    peak_resident_bytes: int | None = Field(description="host, CPU trials only")
    before_bytes: int | None = Field(default=None, description="allocated before the first call; null: CPU, or an older record")
    workspace_bytes: int | None = Field(default=None, description="what cuBLAS keeps after it; null: CPU, or an older record")


class KernelTime(Frozen):
    """Where one forward's time goes, by kernel class. On the CPU the classes are of operators, and idle is null."""

    batch_size: int
    device: Literal["cpu", "cuda"]
    wall_us: float
    by_class_us: dict[str, float] = Field(
        description="gemm, quantize, attention, norm_elementwise, copy, other; where kernels overlap, the time is the earlier one's"
    )
    idle_us: float | None = Field(description="wall minus busy")
    launches: int | None
    host_syncs: int | None
    attention_kernels: tuple[str, ...] = Field(description="names that confirm the attention label")
    low_bit_kernels: tuple[str, ...] | None = Field(
        default=None, description="names of those that read or make low-bit values: the way bitsandbytes took; null: an older record"
    )


class Ceilings(Frozen):
    """What the device itself gives, measured beside the latencies: the two lines of a roofline."""

    matmul_flops_per_s: float = Field(description="one square matrix product in the trial's compute dtype")
    matmul_side: int = Field(description="rows and columns of its matrices")
    copy_bytes_per_s: float = Field(description="a copy on the device: bytes read plus bytes written")
    copy_bytes: int = Field(description="read plus written by one copy")


class Work(Frozen):
    """The least that one batch asks of any implementation."""

    batch_size: int
    flop: float = Field(description="a multiply-add counts two; counted from the architecture, adapters not counted")
    least_bytes: int = Field(description="weights as stored, images in, logits out: each moved once")


class Invariance(Frozen):
    """Whether an image's prediction depends on the size of its batch: the same images, predicted at two batch sizes."""

    images: int
    batch_sizes: tuple[int, int]
    flips: int = Field(description="images whose most likely class is another one")
    max_abs_logit_difference: float
    bit_equal: bool = Field(description="all logits, as fp32")


class MeasurementResult(Frozen):
    """All that a timing trial measured."""

    exclusive: bool | None = Field(description="no other process on the card; null: unknown, or a CPU trial; false: told not to mind")
    latency: tuple[Latency, ...]
    memory: tuple[Memory, ...]
    kernels: tuple[KernelTime, ...]
    work: tuple[Work, ...] = Field(default=(), description="empty: an older record")
    ceilings: Ceilings | None = Field(default=None, description="null: an older record")
    invariance: Invariance | None = Field(default=None, description="null: the profile did not ask for it")


class Record(Frozen):
    """One trial's result."""

    record_version: Literal[2] = 2
    trial_id: str
    status: Status
    reason: str | None = Field(description="null on success, else one line")
    trial: Trial
    provenance: Provenance | None = Field(description="null if the process died before it could say")
    code_sha256: str | None = Field(description="of the modules that every trial imports (schema/code.py); null: a record of version 1")
    formats_sha256: str | None = Field(
        default=None, description="of the modules that its plan's formats add; null: high precision, or no result"
    )
    data_sha256: str | None = Field(default=None, description="of the prepared images; null: no result, or a record of version 1")
    model: ModelFacts | None = None
    training: TrainingResult | None = None
    evaluation: EvaluationResult | None = None
    measurement: MeasurementResult | None = None
    durations_s: dict[str, float] = Field(default_factory=dict, description="wall seconds of each part of the trial")
    attempts: int = Field(default=1, ge=1)


@dataclass(frozen=True)
class Predictions:
    """Per-image results of N test images, packed small; order is the test split's.

    Attributes:
        label: uint16 [N].
        top5: uint16 [N, min(5, classes)], best first.
        loss: float32 [N], cross-entropy in nats.
        margin: float32 [N], the label's logit minus the best other.
        selection: bool [N], true in the selection half, false in the report half.
        kl: float32 [N], KL(high precision || this) in nats; None where no reference was at hand.
    """

    label: npt.NDArray[np.uint16]
    top5: npt.NDArray[np.uint16]
    loss: npt.NDArray[np.float32]
    margin: npt.NDArray[np.float32]
    selection: npt.NDArray[np.bool_]
    kl: npt.NDArray[np.float32] | None

    def to_bytes(self) -> bytes:
        """The npz file's bytes, equal for equal arrays (numpy stamps every member 1980-01-01)."""
        buffer = io.BytesIO()
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()


def load_predictions(path: Path) -> Predictions:
    """Read a predictions file.

    Raises:
        DataError: missing, damaged, or without a field.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return Predictions(kl=arrays.pop("kl", None), **arrays)
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise DataError(f"{path}: not a predictions file ({type(error).__name__}); delete it and its .json, then run again") from error


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
    """Write a whole file or nothing: to a temporary file beside it, flushed to disk, then renamed.

    Raises:
        DataError: the disk is full or not writable; the old file, if any, is intact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary: Path | None = None
    try:
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


def read_record(path: Path) -> Record:
    """Read one record.

    A record of version 1 does not say which code and images made it: those hashes are null.

    Raises:
        DataError: not JSON, of an unknown version, or not of this schema.
    """
    try:
        text = path.read_text()
        content: Any = json.loads(text)
        version = content.get("record_version") if isinstance(content, dict) else None
        if version == 1:
            text = json.dumps(content | {"record_version": RECORD_VERSION, "code_sha256": None})
        elif version != RECORD_VERSION:
            raise DataError(f"{path}: record_version {version!r}; this program reads 1 and {RECORD_VERSION}")
        return Record.model_validate_json(text)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a record ({error}); delete it and run again") from error
    except ValidationError as error:
        raise DataError(f"{path}: {one_line(error)}") from None


def read_records(folder: Path) -> list[Record]:
    """Read every record below a folder, sorted by path. An empty or missing folder gives an empty list."""
    return [read_record(path) for path in sorted(folder.rglob("*.json")) if not path.name.startswith(".")]
