"""What the report stage reads: every record of a profile with its per-image predictions, checked against their hashes.

A study's records lie loose in a folder or packed in one file; who reads them here sees no difference but the packed ones' rounding.

Records of different code, images or weights are never put side by side: whoever reads them together is told which two differ.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lowbit_vit.errors import DataError
from lowbit_vit.schema.answers import Answers, answers_of
from lowbit_vit.schema.cell_role import CellRole, Reference
from lowbit_vit.schema.config import STUDIES, Study
from lowbit_vit.schema.packed import is_packed, load_packed, packed_file
from lowbit_vit.schema.record import Record, load_predictions, read_record, sha256
from lowbit_vit.schema.workspace import Workspace

CARDS = "cards"  # an origin of timings alone


@dataclass(frozen=True)
class Result:
    """One trial: its record, and what its predictions say if it succeeded."""

    record: Record
    predictions: Answers | None


def load_results(workspace: Workspace, study: Study) -> list[Result]:
    """Read one study's records in the order of their files; a study that was not run gives an empty list.

    Raises:
        DataError: a record or a predictions file is damaged, a predictions file is not the one its record names, or two records
            are of different code, images or weights; or the study is there twice, packed and loose.
    """
    folder = workspace.records(study)
    results = _packed_results(packed_file(folder)) if is_packed(folder) else _loose_results(folder)
    results = [Result(_roles_of_first_edition_label(result.record), result.predictions) for result in results]  # TEMPORARY
    require_one_origin([result.record for result in results], folder.parent)
    return results


def _packed_results(path: Path) -> list[Result]:
    packed = load_packed(path)
    return [Result(record, packed.answers.get(record.trial_id)) for record in packed.records]


def _loose_results(folder: Path) -> list[Result]:
    results = []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        record = read_record(path)
        predictions = None
        if record.status == "success" and record.evaluation is not None:
            arrays = path.with_suffix(".npz")
            predictions = answers_of(load_predictions(arrays))
            if sha256(arrays.read_bytes()) != record.evaluation.predictions_sha256:
                raise DataError(f"{arrays}: its sha256 is not predictions_sha256 of {path.name}; delete both, then run again")
        results.append(Result(record=record, predictions=predictions))
    return results


def load_all_results(workspace: Workspace) -> dict[Study, list[Result]]:
    """Read the records of every study.

    Raises:
        DataError: as `load_results`, over all studies.
    """
    results = {study: load_results(workspace, study) for study in STUDIES}
    require_one_origin([result.record for study in STUDIES for result in results[study]], workspace.reports / "records")
    return results


def require_one_origin(records: Iterable[Record], folder: Path) -> None:
    """Refuse to compare what was not made by the same code from the same images and weights.

    Adapted weights differ from seed to seed, but all come from one backbone. What a record of version 1 does not say is
    equal to what another one does not say, and to nothing else.

    Args:
        records: of one profile.
        folder: that holds `<study>/<trial_id>.json`, for the message.

    Raises:
        DataError: names two records and what differs.
    """
    first: dict[str, tuple[str | None, Record]] = {}
    for record in records:
        for what, value in _origin(record):
            before, other = first.setdefault(what, (value, record))
            if before != value and what == CARDS:
                raise DataError(
                    f"{folder}: {_name(other)} and {_name(record)} were timed on different cards ({before} and {value}), so they cannot be "
                    f"compared; choose one: lowbit-vit {record.trial.study} {record.trial.profile} --card KIND runs the others again"
                )
            if before != value:
                raise DataError(
                    f"{folder}: {_name(other)} and {_name(record)} are of different {what} (sha256 {_short(before)} and {_short(value)}), "
                    f"so they cannot be compared; run dvc repro report@{record.trial.profile}, which runs again what is out of date"
                )


def _origin(record: Record) -> Iterator[tuple[str, str | None]]:
    """What must be the same in all records that name it. A trial without a result has no images and no weights."""
    yield "code", record.code_sha256
    if record.formats_sha256 is not None:
        formats = sorted({rule.weights.format for rule in record.trial.plan.rules})
        yield f"code of {' and '.join(formats)}", record.formats_sha256
    if record.model is None:
        return
    if record.measurement is not None and record.trial.device == "cuda" and record.provenance is not None:
        yield CARDS, record.provenance.gpu
    yield "images", record.data_sha256
    adapted = record.trial.adaptation == "ptq"
    yield f"adapted weights of seed {record.trial.seed}" if adapted else "backbones", record.model.backbone_sha256
    if adapted and record.model.base_sha256 is not None:
        yield "backbones", record.model.base_sha256


def _name(record: Record) -> str:
    return f"{record.trial.study}/{record.trial_id}.json"


def _short(digest: str | None) -> str:
    return "not recorded" if digest is None else f"{digest[:12]}..."


def cell_roles(results: Iterable[Result]) -> list[tuple[CellRole, Result]]:
    """Every part that a cell of the sensitivity or the mixed study plays, with its result.

    Raises:
        DataError: the record of a cell names none.
    """
    results = list(results)
    for result in results:
        if not result.record.trial.roles:
            name = _name(result.record)
            raise DataError(f"{name}: its trial has no roles, so its part in the study is unknown; delete it and run the study again")
    return [(role, result) for result in results for role in result.record.trial.roles]


def cells_by_role(results: Iterable[Result]) -> dict[CellRole, Result]:
    """The cell that plays each part, of those that have predictions.

    Raises:
        DataError: as `cell_roles`.
    """
    return {role: result for role, result in cell_roles(results) if result.predictions is not None}


def same_images(results: Iterable[Result]) -> bool:
    """Whether all that succeeded were evaluated on the same images with the same labels, so that pairs can be compared."""
    return len({result.record.evaluation.labels_sha256 for result in results if result.record.evaluation is not None}) <= 1


# TEMPORARY, until the committed references hold roles: delete all below, its call in load_results, the imports that only this uses, and its
# test in tests/analysis/test_results.py.


def _roles_of_first_edition_label(record: Record) -> Record:
    trial = record.trial
    if trial.roles or trial.study == "variants":
        return record
    roles = tuple(_role_of_first_edition_label(part) for part in trial.label.split(" = "))
    return record.model_copy(update={"trial": trial.model_copy(update={"roles": roles})})


def _role_of_first_edition_label(part: str) -> CellRole:
    if part == "high precision":
        return Reference()
    for pattern in _FIRST_EDITION_LABELS:
        if match := re.fullmatch(pattern, part):
            values: dict[str, object] = dict(match.groupdict())
            if "first" in values:
                values["blocks"] = (values.pop("first"), values.pop("second"))
            values["kind"] = _FIRST_EDITION_KINDS.get(str(values["kind"]), values["kind"])
            return _ROLE.validate_python(values)
    raise DataError(f"label {part!r} names no part of a cell; delete its record and run the study again")


_ROLE: TypeAdapter[CellRole] = TypeAdapter(CellRole)
_FIRST_EDITION_KINDS = {"all blocks": "all", "all but": "all_but", "none spared": "none", "only blocks": "pair"}
_FIRST_EDITION_LABELS = (
    r"(?P<weights>\S+), (?P<kind>all blocks|none spared)",
    r"(?P<weights>\S+), (?P<kind>only|all but) block (?P<block>\d+)(?: (?P<module>[a-z]\S*))?",
    r"(?P<weights>\S+), (?P<kind>only blocks) (?P<first>\d+) (?P<second>\d+)",
    r"(?P<kind>first\+last|last|most sensitive|gradient|milp), k=(?P<k>\d+)",
    r"(?P<kind>random) (?P<index>\d+), k=(?P<k>\d+)",
    r"(?P<kind>plan) (?P<name>[a-z0-9][a-z0-9.-]*)",
)
