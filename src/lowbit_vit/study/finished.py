"""What a study need not run: cells that have their result, cells that this machine cannot run, cells that left the grid."""

import json
import logging
import shutil
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import Study, Trial, one_line
from lowbit_vit.schema.environment import provenance, why_unavailable
from lowbit_vit.schema.plan import SensitivityScores
from lowbit_vit.schema.record import Record, read_record, sha256, write_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.grid import CELL_SEED
from lowbit_vit.study.launch import scratch_folder, write_without_result

log = logging.getLogger(__name__)

_SCORES: TypeAdapter[tuple[SensitivityScores, ...]] = TypeAdapter(tuple[SensitivityScores, ...])


def settle_without_running(trial: Trial, workspace: Workspace) -> bool:
    """Whether the cell has its final record without a process: it succeeded before, or this machine cannot run it.

    A result counts if its predictions are undamaged and it started from the weights that are there now. Its label and paper
    row follow the profile, for they are no part of its identity; otherwise the file is not touched.
    """
    path = workspace.records(trial.study) / f"{trial.trial_id}.json"
    before = _read(path)
    if before is not None and before.status == "success" and _still_valid(before, trial, workspace, path):
        _relabel(before, trial, path)
        return True
    reason = why_unavailable(device=trial.device, attention=trial.attention, execution=trial.execution, plan=trial.plan)
    if reason is None:
        return False
    if before is not None and before.status == "skipped" and before.reason == reason:
        _relabel(before, trial, path)
    else:
        facts = provenance(f"lowbit-vit {trial.study} {trial.profile}")
        write_without_result(trial, workspace, status="skipped", reason=reason, provenance=facts)
    return True


def _read(path: Path) -> Record | None:
    if not path.exists():
        return None
    try:
        return read_record(path)
    except DataError as error:
        log.warning("%s: run again", error)
        return None


def _still_valid(record: Record, trial: Trial, workspace: Workspace, path: Path) -> bool:
    arrays = path.with_suffix(".npz")
    if not arrays.exists() or (record.evaluation and sha256(arrays.read_bytes()) != record.evaluation.predictions_sha256):
        log.warning("%s: missing or damaged; run again", arrays)
        return False
    weights = weights_sha256(starting_weights(trial, workspace))
    if weights is not None and record.model is not None and record.model.backbone_sha256 != weights:
        log.info("%s: was made from other weights; run again", record.trial.label)
        return False
    return True


def _relabel(record: Record, trial: Trial, path: Path) -> None:
    named = record.trial.model_copy(update={"label": trial.label, "paper_row": trial.paper_row})
    if named != record.trial:
        write_record(record.model_copy(update={"trial": named}), path.parent)


def starting_weights(trial: Trial, workspace: Workspace) -> Path:
    """The high-precision file that the trial starts from."""
    return workspace.adapted(trial.seed) if trial.adaptation == "ptq" else workspace.backbone


def weights_sha256(path: Path) -> str | None:
    """What the card beside the weights says; None where there are none (records may be read far from their weights)."""
    card = path.with_suffix(".json")
    try:
        return str(json.loads(card.read_text())["sha256"])
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{card}: not the card of a safetensors file; delete both and run lowbit-vit backbone again") from error


def load_scores(workspace: Workspace) -> tuple[SensitivityScores, ...]:
    """Read what the sensitivity study found.

    Raises:
        DataError: the file is missing or damaged, or was made from other weights than those that are there now.
    """
    path = workspace.sensitivity
    advice = f"run lowbit-vit sensitivity {workspace.profile}"
    try:
        scores = _SCORES.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {advice}") from None
    except ValidationError as error:
        raise DataError(f"{path}: {one_line(error)}; {advice} again") from None
    known = {weights_sha256(workspace.adapted(CELL_SEED)), weights_sha256(workspace.backbone)} - {None}
    if known and any(score.backbone_sha256 not in known for score in scores):
        raise DataError(f"{path}: was made from other weights than those in checkpoints/{workspace.profile}; {advice} again")
    return scores


def prune(workspace: Workspace, study: Study, *, keep: set[str]) -> None:
    """Delete records of cells that left the grid, and what a killed process left behind."""
    shutil.rmtree(scratch_folder(workspace), ignore_errors=True)
    for path in sorted(workspace.records(study).glob("*")):
        half_written = path.name.startswith(".") and (".json." in path.name or ".npz." in path.name)
        left_the_grid = path.suffix in (".json", ".npz") and not path.name.startswith(".") and path.stem not in keep
        if left_the_grid and path.suffix == ".json":
            log.info("%s: its cell left the grid; deleted", path.name)
        if half_written or left_the_grid:
            path.unlink()
