"""What the report stage reads: every record of a profile with its per-image predictions, checked against their hashes.

A study's records lie loose in a folder or packed in one file; who reads them here sees no difference but the packed ones' rounding.

Records of different code, images or weights are never put side by side: whoever reads them together is told which two differ.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lowbit_vit.errors import DataError
from lowbit_vit.schema.answers import Answers, answers_of
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


def same_images(results: Iterable[Result]) -> bool:
    """Whether all that succeeded were evaluated on the same images with the same labels, so that pairs can be compared."""
    return len({result.record.evaluation.labels_sha256 for result in results if result.record.evaluation is not None}) <= 1
