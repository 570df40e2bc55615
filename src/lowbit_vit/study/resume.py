"""What a study need not run: cells that have their result, cells that this machine cannot run, cells that left the grid."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lowbit_vit.data.arrays import MANIFEST, read_manifest
from lowbit_vit.errors import DataError
from lowbit_vit.schema.allocation import PlanFile, load_plan_file, load_plan_files
from lowbit_vit.schema.code_hash import code_sha256, is_current
from lowbit_vit.schema.config import Profile, Study, Trial
from lowbit_vit.schema.machine import provenance, why_unavailable
from lowbit_vit.schema.metrics import disturbance
from lowbit_vit.schema.plan import SensitivityScores
from lowbit_vit.schema.predictions import check_predictions, parse_predictions, read_predictions
from lowbit_vit.schema.record import Record, read_record, remove_half_written, write_record
from lowbit_vit.schema.stage_documents import read_stage_document
from lowbit_vit.schema.workspace import TRAINED, Workspace
from lowbit_vit.study.cells import CELL_SEED
from lowbit_vit.study.launch import scratch_folder, without_result

log = logging.getLogger(__name__)

# A timing that was disturbed is taken again twice: a host that is always busy has no better one. Where `measurement.exclusive` is waived,
# timings are taken beside other work knowingly: they are marked and stay.
_MOST_ATTEMPTS = 3
_SCORES: TypeAdapter[tuple[SensitivityScores, ...]] = TypeAdapter(tuple[SensitivityScores, ...])


def why_not_here(trials: Sequence[Trial]) -> dict[str, str]:
    """trial_id -> why this machine cannot run it, for those that it cannot."""
    reasons = {
        trial.trial_id: why_unavailable(device=trial.device, attention=trial.attention, execution=trial.execution, plan=trial.plan)
        for trial in trials
    }
    return {trial_id: reason for trial_id, reason in reasons.items() if reason is not None}


@dataclass(frozen=True)
class _Present:
    """What the record of a new run would be made by and from; None: no images are prepared here, so they cannot be compared."""

    code: str
    data: str | None
    gpu_kind: str | None  # that timing trials are to have, as Ray names it; None: any


def missing_trials(
    trials: Sequence[Trial],
    workspace: Workspace,
    *,
    why_not: Callable[[Sequence[Trial]], dict[str, str]] = why_not_here,
    gpu_kind: str | None = None,
) -> list[Trial]:
    """The trials that a process has to run; every other one has its final record: it succeeded before, or cannot run here.

    A result counts if the same code made it from the same images and weights, and its predictions are undamaged.
    Those that do not count are counted in the log, with the reason. The label, roles and paper row of a result follow the profile,
    for they are no part of its identity; otherwise its file is not touched.

    Args:
        trials: of one study.
        workspace: with their records.
        why_not: gives the reasons of those that cannot be run at all; called once, with all that have no result.
        gpu_kind: that timings must have been taken on, such as H100; None: any.

    Raises:
        DataError: the prepared images' manifest or a card of the weights is damaged.
    """
    data = read_manifest(workspace.data).content_sha256 if (workspace.data / MANIFEST).exists() else None
    present = _Present(code=code_sha256(), data=data, gpu_kind=gpu_kind)
    ahead: list[tuple[Trial, Record | None, str | None]] = []
    for trial in trials:
        path = workspace.records(trial.study) / f"{trial.trial_id}.json"
        before = _read(path)
        why = None
        if before is not None and before.status == "success":
            why = _why_not_valid(before, trial, workspace, present)
            if why is None:
                _follow_profile(before, trial, path)
                continue
        ahead.append((trial, before, why))
    reasons = why_not([trial for trial, _, _ in ahead]) if ahead else {}
    missing: list[Trial] = []
    outdated: Counter[str] = Counter()
    for trial, before, why in ahead:
        if trial.trial_id in reasons:
            _skip(before, trial, workspace, present, reason=reasons[trial.trial_id])
        else:
            missing.append(trial)
            outdated.update([why] if why else [])
    for why, count in outdated.items():
        log.warning("%s: %d %s %s: run again", trials[0].study, count, "record" if count == 1 else "records", why)
    return missing


def repeatable(repeats: Sequence[Trial], workspace: Workspace) -> list[Trial]:
    """Of repeats, those whose first process succeeded; the others get a record that says that it did not."""
    found = []
    for trial in repeats:
        first = read_record(workspace.records(trial.study) / f"{trial.first_process.trial_id}.json")
        if first.status == "success":
            found.append(trial)
        else:
            facts = provenance(f"lowbit-vit {trial.study} {trial.profile}")
            reason = f"its first process did not succeed ({first.status}: {first.reason})"
            put_record(without_result(trial, status="skipped", reason=reason, provenance=facts), None, workspace)
    return found


def _read(path: Path) -> Record | None:
    if not path.exists():
        return None
    try:
        return read_record(path)
    except DataError as error:
        log.warning("%s: run again", error)
        return None


def _why_not_valid(record: Record, trial: Trial, workspace: Workspace, present: _Present) -> str | None:
    """Why a successful record does not count, in words that follow "2 records"; None if it counts."""
    weights = weights_sha256(starting_weights(trial, workspace))
    arrays = workspace.records(trial.study) / f"{trial.trial_id}.npz"
    gpu = None if record.provenance is None else record.provenance.gpu
    if not is_current(record):
        return "made by other code"
    if present.data is not None and record.data_sha256 != present.data:
        return "made from other images"
    if weights is not None and record.model is not None and record.model.backbone_sha256 != weights:
        return "made from other weights"
    if present.gpu_kind is not None and trial.measurement is not None and trial.device == "cuda" and not _is_of_kind(gpu, present.gpu_kind):
        return "timed on another GPU"
    try:
        if record.evaluation is not None:
            read_predictions(arrays, record)
    except DataError:
        return "with missing or damaged predictions"
    quiet_asked = trial.measurement is not None and trial.measurement.exclusive != "waived"
    again = quiet_asked and record.attempts < _MOST_ATTEMPTS and disturbance(record) is not None
    return "timed on a disturbed host" if again else None


def _is_of_kind(gpu: str | None, kind: str) -> bool:
    """Whether the driver's name, such as NVIDIA A100-SXM4-80GB, is of Ray's kind, such as A100 or A100-80G."""
    words = (gpu or "").upper().replace("-", " ").split()
    return kind.upper().split("-")[0] in words


def _skip(before: Record | None, trial: Trial, workspace: Workspace, present: _Present, *, reason: str) -> None:
    """Write the reason why a trial is not run into its record."""
    if before is not None and (before.status, before.reason, before.code_sha256) == ("skipped", reason, present.code):
        _follow_profile(before, trial, workspace.records(trial.study) / f"{trial.trial_id}.json")
    else:
        facts = provenance(f"lowbit-vit {trial.study} {trial.profile}")
        put_record(without_result(trial, status="skipped", reason=reason, provenance=facts), None, workspace)


def _follow_profile(record: Record, trial: Trial, path: Path) -> None:
    # Those that are no part of the identity; the rest of the measurement is equal.
    follows = ("label", "roles", "paper_row", "measurement")
    named = record.trial.model_copy(update={name: getattr(trial, name) for name in follows})
    if named != record.trial:
        write_record(record.model_copy(update={"trial": named}), path.parent)


def starting_weights(trial: Trial, workspace: Workspace) -> Path:
    """The high-precision file that the trial starts from."""
    return workspace.adapted(trial.seed) if trial.adaptation == "ptq" else workspace.backbone


def weights_sha256(path: Path) -> str | None:
    """The hash in the card beside the weights; None where there is none (records may be read far from their weights)."""
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
        DataError: the file is missing or damaged, or was made from other weights than those in the folder.
    """
    path = workspace.sensitivity
    advice = f"run lowbit-vit sensitivity {workspace.profile}"
    scores = read_stage_document(path, _SCORES, advice=advice)
    known = {weights_sha256(workspace.adapted(CELL_SEED)), weights_sha256(workspace.backbone)} - {None}
    if known and any(score.backbone_sha256 not in known for score in scores):
        raise DataError(f"{path}: was made from other weights than those in checkpoints/{workspace.profile}; {advice} again")
    return scores


def load_plans(profile: Profile, workspace: Workspace) -> tuple[PlanFile, ...]:
    """The plans that the mixed study runs beside its own: those of the allocate stage, and the files that the profile names.

    Raises:
        DataError: the stage's file is damaged, or missing though the profile times its plans.
        ConfigError: a file of the profile is missing or wrong.
    """
    if not workspace.plans.exists():
        if timed := [kind for kind in profile.mixed.timed if kind in ("milp", "gradient")]:
            advice = f"run lowbit-vit allocate {workspace.profile}"
            raise DataError(f"{workspace.plans}: no such file, but mixed.timed names {timed[0]}; {advice}")
        log.info("mixed: no plans of lowbit-vit allocate %s, so none is run", workspace.profile)
    made = load_plan_files(workspace.plans, profile=workspace.profile) if workspace.plans.exists() else ()
    return (*made, *(load_plan_file(workspace.root / name) for name in profile.mixed.plans))


def prune(workspace: Workspace, study: Study, *, keep: set[str]) -> None:
    """Delete records of cells that left the grid, and what a killed process left behind."""
    shutil.rmtree(scratch_folder(workspace), ignore_errors=True)
    remove_half_written(workspace.records(study))
    for path in (workspace.reports / TRAINED).glob("*"):
        if study == "variants" and path.stem not in keep:  # no other study trains
            path.unlink()
    for path in sorted(workspace.records(study).glob("[!.]*")):
        if path.suffix in (".json", ".npz") and path.stem not in keep:
            if path.suffix == ".json":
                log.info("%s: its cell left the grid; deleted", path.name)
            path.unlink()


def put_record(record: Record, predictions: bytes | None, workspace: Workspace, *, lost: int = 0) -> Record:
    """Put a record among the study's, with its predictions, in place of what was there.

    Args:
        record: as it was made, here or on a node.
        predictions: the content of their file; None if there are none.
        workspace: of the study.
        lost: how often the trial was started in vain before, without leaving a record.

    Returns:
        The record with `attempts`: how often the trial has been tried since its last success on a host that was not disturbed.

    Raises:
        DataError: the predictions are not those of the record, or a file cannot be written.
    """
    if record.evaluation is not None:
        source = f"{record.trial_id}.npz"
        check_predictions(parse_predictions(predictions or b"", source=source), record, source=source)
    folder = workspace.records(record.trial.study)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        before = read_record(folder / f"{record.trial_id}.json")
    except DataError:  # none, or not readable: it is replaced
        attempts = 1
    else:
        disturbed = is_current(before) and disturbance(before) is not None
        attempts = 1 if before.status in ("success", "skipped") and not disturbed else before.attempts + 1
    record = record.model_copy(update={"attempts": attempts + lost})
    if predictions is None:
        (folder / f"{record.trial_id}.npz").unlink(missing_ok=True)
    write_record(record, folder, predictions)
    return record
