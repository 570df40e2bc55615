"""Packs a profile's records: which images' means are kept, and what a study must be to be packed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowbit_vit.analysis.results import Result, load_all_results
from lowbit_vit.analysis.scores import draw_images
from lowbit_vit.errors import DataError
from lowbit_vit.schema.answers import Answers
from lowbit_vit.schema.config import Profile, Study
from lowbit_vit.schema.packed import PackedStudy, pack, packed_file
from lowbit_vit.schema.record import write_atomic
from lowbit_vit.schema.workspace import Workspace

# Draws whose means are kept: each doubles the groups, and with more than these the groups' means would outweigh the images.
_DRAWS = 5


def pack_records(profile: Profile, workspace: Workspace, to: Path) -> list[Path]:
    """Write `to`/records/<study>.packed for each study that has records; returns the files.

    Raises:
        DataError: there are no records, one is damaged, a study's cells are of different images or halves, or the study's records
            lie loose in `to`.
    """
    studies = {study: results for study, results in load_all_results(workspace).items() if results}
    if not studies:
        raise DataError(f"{workspace.reports / 'records'}: no records; run dvc repro report@{profile.name} first")
    contents: dict[Path, bytes] = {}
    for study, results in studies.items():
        folder = Workspace(root=workspace.root, profile=profile.name, elsewhere=to).records(study)
        if any(folder.glob("*.json")):
            raise DataError(f"{folder}: holds loose records of {study}; pack into another folder, or delete them")
        contents[packed_file(folder)] = _packed(results, study, profile)
    for path, content in contents.items():
        write_atomic(path, content)
    return list(contents)


def _packed(results: Sequence[Result], study: Study, profile: Profile) -> bytes:
    answers = {result.record.trial_id: result.predictions for result in results if result.predictions is not None}
    groups = np.zeros(0, np.uint8)
    if answers:
        one, first = next(iter(answers.items()))
        for other, cell in answers.items():
            if not (np.array_equal(cell.label, first.label) and np.array_equal(cell.selection, first.selection)):
                again = f"run lowbit-vit {study} {profile.name} again"
                raise DataError(f"{study}: {one} and {other} are of different images or halves, so they cannot be packed together; {again}")
        groups = image_groups(first, profile)
    return pack(PackedStudy(tuple(result.record for result in results), answers), groups)


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
