"""Packs a profile's records into Parquet files, for a reference run that is committed."""

from pathlib import Path

from lowbit_vit.analysis.archive import is_archived, write_archive
from lowbit_vit.analysis.results import load_all_results, require_comparable
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import STUDIES, Profile
from lowbit_vit.schema.workspace import Workspace


def pack_records(profile: Profile, workspace: Workspace, to: Path, *, add: bool = False) -> list[Path]:
    """Write the records of every study, with their predictions, to `to`/records; returns the files.

    With `add`, trials that are only among those that are packed there stay, before the others: a study whose records come back in
    pieces.

    Raises:
        DataError: there are no records, one is damaged, or the records lie loose in `to`; or what is there and what is added cannot be
            put together.
    """
    results = load_all_results(workspace)
    if not any(results.values()):
        raise DataError(f"{workspace.reports / 'records'}: no records; run dvc repro report@{profile.name} first")
    there = Workspace(root=workspace.root, profile=profile.name, elsewhere=to)
    folder = to / "records"
    archived = is_archived(folder)
    if not archived and any(folder.glob("*/*.json")):
        raise DataError(f"{folder}: holds loose records; pack into another folder, or delete them")
    again = {result.record.trial_id for found in results.values() for result in found}
    before = load_all_results(there) if add and archived else {study: [] for study in STUDIES}
    stay = {study: [result for result in before[study] if result.record.trial_id not in again] for study in STUDIES}
    joined = {study: [*stay[study], *results[study]] for study in STUDIES}
    require_comparable([result for study in STUDIES for result in joined[study]], folder)
    every = [result for study in STUDIES for result in joined[study]]
    repeats = [(record, None) for result in every for record in result.repeats]
    return write_archive([*((result.record, result.predictions) for result in every), *repeats], folder)
