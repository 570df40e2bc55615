"""What the report stage reads: every record of a profile with its per-image predictions, checked against their hashes."""

from collections.abc import Iterable
from dataclasses import dataclass

from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import STUDIES, Study
from lowbit_vit.schema.record import Predictions, Record, load_predictions, read_record, sha256
from lowbit_vit.schema.workspace import Workspace


@dataclass(frozen=True)
class Result:
    """One trial: its record, and its predictions if it succeeded."""

    record: Record
    predictions: Predictions | None


def load_results(workspace: Workspace, study: Study) -> list[Result]:
    """Read one study's records in the order of their files; a study that was not run gives an empty list.

    Raises:
        DataError: a record or a predictions file is damaged, or a predictions file is not the one its record names.
    """
    folder = workspace.records(study)
    results = []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        record = read_record(path)
        predictions = None
        if record.status == "success" and record.evaluation is not None:
            arrays = path.with_suffix(".npz")
            predictions = load_predictions(arrays)
            if sha256(arrays.read_bytes()) != record.evaluation.predictions_sha256:
                raise DataError(f"{arrays}: its sha256 is not predictions_sha256 of {path.name}; delete both, then run again")
        results.append(Result(record=record, predictions=predictions))
    return results


def load_all_results(workspace: Workspace) -> dict[Study, list[Result]]:
    """Read the records of every study."""
    return {study: load_results(workspace, study) for study in STUDIES}


def same_images(results: Iterable[Result]) -> bool:
    """Whether all that succeeded were evaluated on the same images with the same labels, so that pairs can be compared."""
    return len({result.record.evaluation.labels_sha256 for result in results if result.record.evaluation is not None}) <= 1
