"""How sensitive each block is to quantization: what the sensitivity study found, over several draws of images.

NF4 and int8 calibrate nothing, so the draws are of evaluation images: each is a seeded half of the selection half of the
test split. The report half is never looked at here, so that what `mixed` chooses from these scores can be reported on it.
The draws overlap: their spread says how much the choice of images matters, it is not a confidence interval.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowbit_vit.analysis.results import Result, load_results, same_images
from lowbit_vit.errors import DataError
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import BlockScore, SensitivityScores, WeightFormat
from lowbit_vit.schema.record import Predictions, write_atomic
from lowbit_vit.schema.roles import SensitivityRole, read_role
from lowbit_vit.schema.workspace import Workspace


def draw_images(selection: npt.NDArray[np.bool_], *, draws: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Draw `draws` times half of the images marked in `selection` (bool [N]), without replacement; sorted int64 indices.

    Raises:
        DataError: fewer than two images are marked.
    """
    images = np.flatnonzero(selection)
    if len(images) < 2:
        raise DataError(f"sensitivity: the selection half has {len(images)} images; at least 2 are needed")
    return [np.sort(np.random.default_rng([seed, draw]).choice(images, len(images) // 2, replace=False)) for draw in range(draws)]


def scores(results: Sequence[Result], profile: Profile) -> list[SensitivityScores]:
    """Score every block for each format and direction that the profile asks for, in its order.

    KL is the mean over a draw's images of KL(high precision || quantized) in nats; a flip is an image whose Top-1 class
    differs from the high-precision model's.

    Raises:
        DataError: the reference or a block's cell has no success, or the cells saw different images or weights.
    """
    study = profile.sensitivity
    cells = {read_role(result.record.trial.label): result for result in results if result.predictions is not None}
    reference = cells.get(SensitivityRole("reference"))
    if reference is None or reference.predictions is None:
        raise DataError(f"sensitivity: the high-precision reference did not succeed; run lowbit-vit sensitivity {profile.name} again")
    if not same_images(cells.values()):
        raise DataError(f"reports/{profile.name}/records/sensitivity: cells of different test images; delete the folder, then run again")
    hashes = {result.record.model.backbone_sha256 for result in cells.values() if result.record.model is not None}
    if len(hashes) != 1:
        raise DataError(
            f"reports/{profile.name}/records/sensitivity: cells of {len(hashes)} checkpoints; delete the folder, then run again"
        )
    draws = draw_images(reference.predictions.selection, draws=study.draws, seed=study.draw_seed)
    return [
        SensitivityScores(
            profile=profile.name,
            backbone_sha256=next(iter(hashes)),
            weights=weights,
            direction=direction,
            images=len(draws[0]),
            blocks=tuple(
                _score(
                    cells.get(SensitivityRole(direction, weights.name, block)), reference.predictions, draws, block=block, weights=weights
                )
                for block in range(profile.backbone.depth)
            ),
        )
        for weights in study.formats
        for direction in study.directions
    ]


def _score(
    cell: Result | None, reference: Predictions, draws: Sequence[npt.NDArray[np.int64]], *, block: int, weights: WeightFormat
) -> BlockScore:
    if cell is None or cell.predictions is None:
        raise DataError(f"sensitivity: {weights.name}, block {block}: no successful record; run the study again, then this")
    kl, changed = cell.predictions.kl, cell.predictions.top5[:, 0] != reference.top5[:, 0]
    if kl is None:
        raise DataError(f"sensitivity: {cell.record.trial_id}: its predictions hold no KL; delete its record and run the study again")
    return BlockScore(
        block=block,
        # float64: a mean of float32 would depend on numpy's summation order.
        kl=tuple(float(kl[draw].astype(np.float64).mean()) for draw in draws),
        flips=tuple(int(np.count_nonzero(changed[draw])) for draw in draws),
    )


def write_scores(profile: Profile, workspace: Workspace) -> Path:
    """Score the sensitivity study's records and write them as JSON; returns the file.

    Raises:
        DataError: as `scores`.
    """
    found = scores(load_results(workspace, "sensitivity"), profile)
    content = "[\n" + ",\n".join(score.model_dump_json(indent=1) for score in found) + "\n]\n"
    write_atomic(workspace.sensitivity, content.encode())
    return workspace.sensitivity
