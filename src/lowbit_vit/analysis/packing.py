"""Packs a profile's records: which images' means are kept, and what a study must be to be packed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowbit_vit.analysis.results import Result, load_all_results, require_one_origin
from lowbit_vit.analysis.scores import draw_images
from lowbit_vit.errors import DataError
from lowbit_vit.schema.answers import Answers
from lowbit_vit.schema.config import Profile, Study
from lowbit_vit.schema.packed import PackedStudy, load_packed, pack, packed_file
from lowbit_vit.schema.record import write_atomic
from lowbit_vit.schema.workspace import Workspace

# Draws whose means are kept: each doubles the groups, and with more than these the groups' means would outweigh the images.
_DRAWS = 5


def pack_records(profile: Profile, workspace: Workspace, to: Path, *, add: bool = False) -> list[Path]:
    """Write `to`/records/<study>.packed for each study that has records; returns the files.

    With `add`, cells that are only in a file that is there stay in it, before the others: a study whose records come back in pieces.
    Their KL and margins are then rounded once more, with the same bounds and the same means.

    Raises:
        DataError: there are no records, one is damaged, a study's cells are of different images or halves or made by different code,
            or the study's records lie loose in `to`.
    """
    studies = {study: results for study, results in load_all_results(workspace).items() if results}
    if not studies:
        raise DataError(f"{workspace.reports / 'records'}: no records; run dvc repro report@{profile.name} first")
    contents: dict[Path, bytes] = {}
    for study, results in studies.items():
        folder = Workspace(root=workspace.root, profile=profile.name, elsewhere=to).records(study)
        if any(folder.glob("*.json")):
            raise DataError(f"{folder}: holds loose records of {study}; pack into another folder, or delete them")
        before = load_packed(packed_file(folder)) if add and packed_file(folder).exists() else PackedStudy((), {})
        contents[packed_file(folder)] = _packed(_joined(before, results), study, profile)
    for path, content in contents.items():
        write_atomic(path, content)
    return list(contents)


def _joined(before: PackedStudy, results: Sequence[Result]) -> PackedStudy:
    """Those before that were not made again, then the new ones."""
    records = [result.record for result in results]
    again = {record.trial_id for record in records}
    stay = [record for record in before.records if record.trial_id not in again]
    require_one_origin([*stay, *records], Path("the records and those that they are added to"))
    answers = {record.trial_id: before.answers[record.trial_id] for record in stay if record.trial_id in before.answers}
    return PackedStudy(
        (*stay, *records), answers | {result.record.trial_id: result.predictions for result in results if result.predictions is not None}
    )


def _packed(cells: PackedStudy, study: Study, profile: Profile) -> bytes:
    groups = np.zeros(0, np.uint8)
    if cells.answers:
        one, first = next(iter(cells.answers.items()))
        for other, cell in cells.answers.items():
            if not (np.array_equal(cell.label, first.label) and np.array_equal(cell.selection, first.selection)):
                again = f"run lowbit-vit {study} {profile.name} again"
                raise DataError(f"{study}: {one} and {other} are of different images or halves, so they cannot be packed together; {again}")
        groups = image_groups(first, profile)
    return pack(cells, groups)


def image_groups(answers: Answers, profile: Profile) -> npt.NDArray[np.uint8]:
    """Of each image its group, uint8 [N]: 0 is the report half; the selection half is cut by which of the first five draws hold it.

    So both halves and each of these draws is a union of groups.
    """
    study = profile.sensitivity
    groups = np.where(answers.selection, 1, 0)
    if np.count_nonzero(answers.selection) > 1:
        for place, draw in enumerate(draw_images(answers.selection, draws=min(study.draws, _DRAWS), seed=study.draw_seed)):
            groups[draw] += 2**place
    return np.unique(groups, return_inverse=True)[1].astype(np.uint8)
