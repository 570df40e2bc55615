"""What a study need not run: cells that have their result, cells that this machine cannot run, cells that left the grid."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lowbit_vit.data.arrays import MANIFEST, read_manifest
from lowbit_vit.errors import DataError
from lowbit_vit.schema.code import code_sha256
from lowbit_vit.schema.config import Study, Trial, one_line
from lowbit_vit.schema.environment import provenance, why_unavailable
from lowbit_vit.schema.plan import SensitivityScores
from lowbit_vit.schema.record import Record, read_record, remove_half_written, sha256, write_record
from lowbit_vit.schema.workspace import Workspace
from lowbit_vit.study.grid import CELL_SEED
from lowbit_vit.study.launch import scratch_folder, write_without_result

log = logging.getLogger(__name__)

_SCORES: TypeAdapter[tuple[SensitivityScores, ...]] = TypeAdapter(tuple[SensitivityScores, ...])


@dataclass(frozen=True)
class Present:
    """What a trial that ran now would be made by and from; None: no images are prepared here, so they cannot be compared."""

    code: str
    data: str | None


def missing_trials(trials: Sequence[Trial], workspace: Workspace) -> list[Trial]:
    """The trials that a process has to run; every other one has its final record: it succeeded before, or cannot run here.

    A result counts if this very code made it from the images and weights that are there now, and its predictions are undamaged.
    Those that do not count are counted in the log, with the reason. The label and paper row of a result follow the profile, for
    they are no part of its identity; otherwise its file is not touched.

    Raises:
        DataError: the prepared images' manifest or a card of the weights is damaged.
    """
    present = Present(code=code_sha256(), data=_prepared_sha256(workspace))
    missing: list[Trial] = []
    outdated: Counter[str] = Counter()
    for trial in trials:
        path = workspace.records(trial.study) / f"{trial.trial_id}.json"
        before = _read(path)
        why = None
        if before is not None and before.status == "success":
            why = _why_not_valid(before, trial, workspace, present)
            if why is None:
                _relabel(before, trial, path)
                continue
        if not _skip(before, trial, workspace, present):
            missing.append(trial)
            outdated.update([why] if why else [])
    for why, count in outdated.items():
        log.warning("%s: %d %s %s: run again", trials[0].study, count, "record" if count == 1 else "records", why)
    return missing


def _read(path: Path) -> Record | None:
    if not path.exists():
        return None
    try:
        return read_record(path)
    except DataError as error:
        log.warning("%s: run again", error)
        return None


def _prepared_sha256(workspace: Workspace) -> str | None:
    return read_manifest(workspace.data).content_sha256 if (workspace.data / MANIFEST).exists() else None


def _why_not_valid(record: Record, trial: Trial, workspace: Workspace, present: Present) -> str | None:
    """Why a successful record does not count, in words that follow "2 records"; None if it counts."""
    weights = weights_sha256(starting_weights(trial, workspace))
    arrays = workspace.records(trial.study) / f"{trial.trial_id}.npz"
    if record.code_sha256 != present.code:
        return "made by other code"
    if present.data is not None and record.data_sha256 != present.data:
        return "made from other images"
    if weights is not None and record.model is not None and record.model.backbone_sha256 != weights:
        return "made from other weights"
    if not arrays.exists() or (record.evaluation and sha256(arrays.read_bytes()) != record.evaluation.predictions_sha256):
        return "with missing or damaged predictions"
    return None


def _skip(before: Record | None, trial: Trial, workspace: Workspace, present: Present) -> bool:
    """Whether this machine cannot run the trial; its record then says why."""
    reason = why_unavailable(device=trial.device, attention=trial.attention, execution=trial.execution, plan=trial.plan)
    if reason is None:
        return False
    if before is not None and (before.status, before.reason, before.code_sha256) == ("skipped", reason, present.code):
        _relabel(before, trial, workspace.records(trial.study) / f"{trial.trial_id}.json")
    else:
        facts = provenance(f"lowbit-vit {trial.study} {trial.profile}")
        write_without_result(trial, workspace, status="skipped", reason=reason, provenance=facts)
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
    remove_half_written(workspace.records(study))
    for path in sorted(workspace.records(study).glob("[!.]*")):
        if path.suffix in (".json", ".npz") and path.stem not in keep:
            if path.suffix == ".json":
                log.info("%s: its cell left the grid; deleted", path.name)
            path.unlink()
