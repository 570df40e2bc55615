"""The JSON cards beside files of weights: of a backbone or adapter, and of an exported model. No torch."""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lowbit_vit.errors import DataError, first_line
from lowbit_vit.schema.allocation import PlanFile
from lowbit_vit.schema.config import AttentionName, Device, Profile, Study, Views, one_line
from lowbit_vit.schema.metrics import Accuracy, percentile
from lowbit_vit.schema.plan import Frozen, Plan
from lowbit_vit.schema.predictions import Predictions
from lowbit_vit.schema.record import Provenance, Record
from lowbit_vit.schema.workspace import Workspace

EXPORT_VERSION: Literal[2] = 2
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "model.json"
ANY_VIT_FILE = "quantized.safetensors"  # of another library's ViT


class ModelCard(BaseModel):
    """What every card of a checkpoint says. The backbone stage adds recipe, provenance, class names and teacher."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: str = Field(description="backbone, adapter or adapted")
    profile: str
    seed: int
    made: str = Field(description="how the weights were made, in one sentence")
    licence: dict[str, str] = Field(description="of the images, of the weights that these started from, of a teacher")
    data: str = Field(description="what the images are")
    content_sha256: str = Field(description="of the decoded images and labels")
    splits: dict[str, int] = Field(description="images of each split")
    accuracy: dict[str, Accuracy] | None = Field(description="of val and test in fp32 (on a GPU TF32); null: the head is untrained")
    sha256: str = Field(description="of the file of weights")


def weight_files(profile: Profile, workspace: Workspace) -> list[Path]:
    """Every file of weights that `lowbit-vit backbone` makes for the profile, the backbone first."""
    seeds = () if profile.lora is None else profile.adapted_seeds
    return [workspace.backbone, *(path for seed in seeds for path in (workspace.adapter(seed), workspace.adapted(seed)))]


class Measured(Frozen):
    """Results of this cell's record."""

    study: Study
    trial_id: str
    label: str
    device: str = Field(description="name of the GPU or CPU")
    test: Accuracy = Field(description="on the whole test split")
    report_half: Accuracy = Field(description="on the half of it that nothing was chosen on")
    predictions_sha256: str = Field(description="of the record's predictions")
    weight_bytes: int
    p50_ms: dict[int, float] = Field(description="median latency by batch size; empty: not timed")


class Converted(BaseModel):
    """What `model.serialization` adds to the card: all that the tensors need to become the model again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    plan: Plan
    num_classes: int


class ExportCard(BaseModel):
    """Everything but the tensors: how images become the model's input, what its outputs mean, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: Literal["export"] = "export"
    export_version: Literal[2] = EXPORT_VERSION
    load: str = Field(description="how to use it")
    made: str = Field(description="how the high-precision weights were made, in one sentence")
    licence: dict[str, str] = Field(description="of the images, of the weights that these started from, of a teacher")
    data: str = Field(description="what the training images are")
    profile: str
    label: str
    attention: AttentionName
    device: Device = Field(description="where the weights were quantized, and the record was measured")
    views: Views
    batch_size: int = Field(ge=1, description="images a call; that of the evaluation")
    class_names: tuple[str, ...]
    measured: Measured | None = Field(description="null: this cell was not run")
    plan_file: PlanFile | None = Field(description="null: the cell of a record")
    backbone_sha256: str = Field(description="of the high-precision weights that were quantized")
    base_sha256: str = Field(description="of backbone.safetensors: that file, or what it was adapted from")
    data_sha256: str = Field(description="of the prepared images")
    code_sha256: str = Field(description="of the modules that a trial imports")
    provenance: Provenance = Field(description="of the export")
    model: Converted | None = Field(default=None, description="architecture, layout and plan; added when the tensors are written")

    @model_validator(mode="after")
    def _a_name_for_each_class(self) -> Self:
        if self.model is not None and len(self.class_names) != self.model.num_classes:
            raise ValueError(f"class_names: {len(self.class_names)} names, the model has {self.model.num_classes} classes")
        return self


def measured_of(record: Record, predictions: Predictions) -> Measured | None:
    """The metrics of a record and its predictions; None without an evaluation."""
    if record.evaluation is None or record.model is None or record.provenance is None:
        return None
    timed = () if record.measurement is None else record.measurement.latency
    return Measured(
        study=record.trial.study,
        trial_id=record.trial_id,
        label=record.trial.label,
        device=(record.provenance.gpu if record.trial.device == "cuda" else None) or record.provenance.cpu,
        test=predictions.accuracy(),
        report_half=predictions.accuracy(~predictions.selection),
        predictions_sha256=record.evaluation.predictions_sha256,
        weight_bytes=record.model.weight_bytes,
        p50_ms={latency.batch_size: percentile(latency.samples_ms, 0.5) for latency in timed},
    )


def read_export(folder: Path) -> tuple[ExportCard, Converted]:
    """Read the card of an export, and of it what the tensors need.

    Raises:
        DataError: nothing is exported there, or the card is damaged or of another version.
    """
    path = folder / CARD_FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no exported model there; lowbit-vit export PROFILE PLAN DIR makes one") from None
    except OSError as error:
        raise DataError(f"{path}: could not be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({first_line(error)}); export the model again") from error
    if not isinstance(content, dict) or content.get("kind") != "export":
        raise DataError(f"{path}: not the card of an exported model; lowbit-vit export PROFILE PLAN DIR makes one")
    version = content.get("export_version")
    if version != EXPORT_VERSION:
        raise DataError(f"{path}: export_version {version!r}; this program reads {EXPORT_VERSION}: export the model again with it")
    try:
        card = ExportCard.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise DataError(f"{path}: {one_line(error)}; export the model again") from None
    if card.model is None:
        raise DataError(f"{path}: key model is missing; export the model again")
    return card, card.model
