"""The model of one cell as a folder of two files, which `lowbit_vit.load` reads without a study.

The cell is that of a record, or the one that `mixed` runs for a plan file. The code of a trial makes its model again from the
weights in the workspace, so it is the model that the record measured; records of other code or weights are refused.
"""

import difflib
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from lowbit_vit.data.arrays import Dataset
from lowbit_vit.errors import ConfigError, DataError
from lowbit_vit.model.precision import apply_plan, import_formats, matmul_mode
from lowbit_vit.model.serialization import save_model
from lowbit_vit.model.vit import VisionTransformer
from lowbit_vit.schema.allocation import PlanFile, load_plan_file
from lowbit_vit.schema.cell_role import label_of
from lowbit_vit.schema.code_hash import is_current
from lowbit_vit.schema.config import STUDIES, Profile, Trial, one_line
from lowbit_vit.schema.machine import command_line, provenance
from lowbit_vit.schema.model_card import CARD_FILE, WEIGHTS_FILE, ExportCard, Measured, ModelCard, measured_of
from lowbit_vit.schema.predictions import read_predictions
from lowbit_vit.schema.record import Record, read_records
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.cells import plan_cell
from lowbit_vit.study.resume import starting_weights
from lowbit_vit.trial.run import CODE_SHA256, Origin, check_available, load_backbone, load_data

log = logging.getLogger(__name__)

PLAN_SUFFIXES = (".json", ".yaml", ".yml")
LOAD = 'lowbit_vit.load("this folder").predict(["image.jpg"]), or: lowbit-vit predict "this folder" image.jpg'


def export_model(profile: Profile, workspace: Workspace, plan: str, folder: Path) -> ExportCard:
    """Write `model.safetensors` and `model.json` of one cell: the whole folder or nothing.

    Args:
        profile: the profile.
        workspace: with its prepared images, weights and records.
        plan: a plan file, or the label or trial_id of a cell that has a record.
        folder: new, empty, or an earlier export, which is replaced.

    Raises:
        ConfigError: the folder holds something else, or there is no such plan, or it does not fit, or cannot be exported.
        DataError: images or weights are missing or damaged, or others than those of the plan or the record; or the disk is full.
        Unavailable: this machine cannot make the cell.
    """
    folder = folder.resolve()
    refuse_other_content(folder)
    file, record = None, None
    if plan.endswith(PLAN_SUFFIXES):
        file = load_plan_file(Path(plan))
        trial = plan_cell(profile, file)
    else:
        record = _recorded(profile, workspace, plan)
        trial = record.trial
    model, dataset, origin = _convert(trial, workspace)
    if file is not None:
        if file.backbone_sha256 not in (None, origin.weights):
            raise DataError(f"{plan}: was made from other weights than {starting_weights(trial, workspace)}; allocate again")
        record = _record_of_plan(trial, workspace, origin)
    elif record is not None and (why := _why_other(record, origin)) is not None:
        raise DataError(f"{record.trial_id}: its record was made {why}; run lowbit-vit {trial.study} {trial.profile} again")
    card = _card(trial, workspace, dataset=dataset, origin=origin, file=file, record=record)
    _write(model, trial, folder, card)
    return card


def refuse_other_content(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier export.

    Raises:
        ConfigError: names the first file that is of none.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a folder for the export")
    names = sorted(item.name for item in folder.iterdir())
    own = (WEIGHTS_FILE, CARD_FILE) if _is_export(folder / CARD_FILE) else ()
    strange = [name for name in names if name not in own]
    if strange:
        raise ConfigError(f"{folder}: holds {strange[0]}, which is not of an earlier export; name a new or empty folder")


def _is_export(card: Path) -> bool:
    try:
        content = json.loads(card.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("kind") == "export"


def _recorded(profile: Profile, workspace: Workspace, name: str) -> Record:
    """The one successful record of a cell that has this label or id, and of which the exported model can be made."""
    records = [record for study in STUDIES for record in read_records(workspace.records(study))]
    found = [record for record in records if name in (record.trial_id, record.trial.label, *map(label_of, record.trial.roles))]
    if not found:
        near = difflib.get_close_matches(name, [record.trial.label for record in records], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"labels that can be exported: {_exportable(records)}"
        what = f"no record of {profile.name} has the label or trial_id {name!r}, and a plan file ends in .json or .yaml"
        raise ConfigError(f"export: {what}; {hint}")
    if len(found) > 1:
        ids = ", ".join(record.trial_id for record in found)
        raise ConfigError(f"export: {len(found)} records have the label {name!r}; give the trial_id of one: {ids}")
    (record,) = found
    trial = record.trial
    if record.status != "success":
        raise DataError(f"export: {name!r} has no result ({record.status}: {record.reason}); choose another, or run it again")
    if trial.adaptation == "qlora":
        why = "has adaptation qlora: its adapters were trained in the trial and are not kept"
        raise ConfigError(f"export: {name!r} {why}; labels that can be exported: {_exportable(records)}")
    if trial.execution != "eager":
        raise ConfigError(f"export: {name!r} is another execution ({trial.execution}) of a model; choose the eager one")
    return record


def _exportable(records: Sequence[Record]) -> str:
    """Labels of variants of which the model can be made again."""
    fit = [r for r in records if r.status == "success" and r.trial.adaptation != "qlora" and r.trial.execution == "eager"]
    return ", ".join(dict.fromkeys(repr(r.trial.label) for r in fit if r.trial.study == "variants")) or "none"


def _record_of_plan(trial: Trial, workspace: Workspace, origin: Origin) -> Record | None:
    """The record of the plan's cell, if `mixed` has run it with this code from these images and weights."""
    for record in read_records(workspace.records(trial.study)):
        # A cell with a timing is another trial, but the same model.
        untimed = record.trial.model_copy(update={"measurement": None}).trial_id
        if untimed == trial.trial_id and record.status == "success":
            why = _why_other(record, origin)
            if why is None:
                return record
            log.warning("export: the record of %s was made %s: the model card holds no metrics", trial.trial_id, why)
            return None
    log.warning(
        "export: %s was not run, so the model card holds no metrics (name the plan in the profile, key mixed.plans)", trial.trial_id
    )
    return None


def _why_other(record: Record, origin: Origin) -> str | None:
    if record.model is None or record.model.backbone_sha256 != origin.weights:
        return "from other weights"
    if record.data_sha256 != origin.data:
        return "from other images"
    return None if is_current(record) else "by other code"


def _convert(trial: Trial, workspace: Workspace) -> tuple[VisionTransformer, Dataset, Origin]:
    """The trial's model, as `run_trial` makes it."""
    import_formats([trial.plan])
    check_available(trial.model_copy(update={"measurement": None}))
    with matmul_mode(trial.plan):
        dataset = load_data(trial, workspace)
        model, origin = load_backbone(trial, workspace, dataset)
    apply_plan(model, trial.plan)
    return model.eval(), dataset, origin


def _card(
    trial: Trial, workspace: Workspace, *, dataset: Dataset, origin: Origin, file: PlanFile | None, record: Record | None
) -> ExportCard:
    path = starting_weights(trial, workspace).with_suffix(".json")
    try:
        weights = ModelCard.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: {one_line(error)}; run lowbit-vit backbone {trial.profile} again") from None
    return ExportCard(
        load=LOAD,
        made=weights.made,
        licence=weights.licence,
        data=dataset.description,
        profile=trial.profile,
        label=trial.label,
        attention=trial.attention,
        device=trial.device,
        views=trial.data.views,
        batch_size=trial.evaluation.batch_size,
        class_names=dataset.class_names,
        measured=None if record is None else _measured(record, workspace),
        plan_file=file,
        backbone_sha256=origin.weights,
        base_sha256=origin.base,
        data_sha256=origin.data,
        code_sha256=CODE_SHA256,
        provenance=provenance(command_line()),
    )


def _measured(record: Record, workspace: Workspace) -> Measured | None:
    path = workspace.records(record.trial.study) / f"{record.trial_id}.npz"
    return measured_of(record, read_predictions(path, record))


def _write(model: VisionTransformer, trial: Trial, folder: Path, card: ExportCard) -> None:
    """Write beside the folder, then take its place; what was there is an earlier export."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            new, old = Path(scratch) / "new", Path(scratch) / "old"
            save_model(model, trial.plan, new / WEIGHTS_FILE, card.model_dump(mode="json", exclude={"model"}))
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
    except OSError as error:
        raise DataError(f"{folder}: could not be written ({error.strerror})") from error
