"""What stands behind each number, for the page: a record's command, host, image and hashes, each distinct text once."""

from collections.abc import Callable, Sequence
from typing import Any

from lowbit_vit.report import facts
from lowbit_vit.schema.record import Record


class Shared:
    """Distinct values in the order of their first use; `place` gives a value's index."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Any, int] = {}

    def place(self, value: Any) -> int | None:
        """Index of a value; None for None."""
        if value is None:
            return None
        if value not in self._places:
            self._places[value] = len(self.values)
            self.values.append(value)
        return self._places[value]


def provenance_document(records: Sequence[Record], *, packed: bool = False) -> dict[str, Any]:
    """`entries`: trial id, and its study, seed, status, start and a place in the list of `shared` of each kind in `kinds`.

    `packed`: whether the records lie in Parquet files.

    The page refers to a record by its place in `entries`. A place is null where the record does not know: the process died
    before it could say.
    """
    kinds = ("label", "command", "host", "code", "data", "weights")
    shared = {name: Shared() for name in kinds}
    entries = []
    for record in records:
        made = record.provenance
        model = record.model
        values = {
            "label": record.trial.label,
            "command": made.command if made else None,
            "host": facts.host_facts(made) if made else None,
            "code": record.code_sha256,
            "data": record.data_sha256,
            "weights": model.backbone_sha256 if model else None,
        }
        places = [shared[name].place(value) for name, value in values.items()]
        about = [record.trial.study, record.trial.seed, record.status, made.started_utc if made else None, *places]
        entries.append([record.trial_id, about])
    return {"entries": entries, "kinds": kinds, "shared": {name: values.values for name, values in shared.items()}, "packed": packed}


def places(records: Sequence[Record]) -> Callable[[str], str]:
    """What turns trial ids, separated by spaces, into their places in `entries`: a tenth of the bytes."""
    known = {record.trial_id: str(place) for place, record in enumerate(records)}
    return lambda trial_ids: " ".join(known[trial_id] for trial_id in trial_ids.split())


def with_places(specification: dict[str, Any], to_places: Callable[[str], str]) -> dict[str, Any]:
    """A figure's document with places for trial ids in its data's field `records`."""
    datasets = {
        name: [{**row, "records": to_places(row["records"])} if row.get("records") else row for row in rows]
        for name, rows in specification["datasets"].items()
    }
    return {**specification, "datasets": datasets}
