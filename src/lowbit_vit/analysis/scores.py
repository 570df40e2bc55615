"""How sensitive each block is to quantization: what the sensitivity study found, over several draws of images.

NF4 and int8 calibrate nothing, so the draws are of evaluation images: each is a seeded half of the selection half of the
test split. The report half is never looked at here, so that what `mixed` chooses from these scores can be reported on it.
The draws overlap: their spread says how much the choice of images matters, it is not a confidence interval. The intervals are of
the whole selection half, for all units together; a unit is called sensitive only where its interval says so.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lowbit_vit.analysis.results import Result, cells_by_role, load_results
from lowbit_vit.errors import DataError
from lowbit_vit.schema.cell_role import CellRole, OneUnit, Reference, label_of, unit_role
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import BlockScore, SensitivityScores, linear_names
from lowbit_vit.schema.predictions import Predictions
from lowbit_vit.schema.record import write_atomic
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
        DataError: the reference or a block's cell has no success, or the cells saw different weights.
    """
    study = profile.sensitivity
    cells = cells_by_role(results)
    reference = cells.get(Reference())
    if reference is None or reference.predictions is None:
        raise DataError(f"sensitivity: the high-precision reference did not succeed; run lowbit-vit sensitivity {profile.name} again")
    hashes = {result.record.model.backbone_sha256 for result in cells.values() if result.record.model is not None}
    if len(hashes) != 1:
        raise DataError(
            f"reports/{profile.name}/records/sensitivity: cells of {len(hashes)} checkpoints; delete the folder, then run again"
        )
    draws = draw_images(reference.predictions.selection, draws=study.draws, seed=study.draw_seed)
    depth = profile.backbone.depth
    blocks = [f"blocks.{block}" for block in range(depth)]
    modules = linear_names(depth) if "modules" in study.units else []
    return [
        SensitivityScores(
            profile=profile.name,
            backbone_sha256=next(iter(hashes)),
            weights=weights,
            direction=direction,
            images=len(draws[0]),
            blocks=_score_units([unit_role(direction, weights.name, name) for name in blocks], cells, draws),
            modules=_score_units([unit_role(direction, weights.name, name) for name in modules], cells, draws),
        )
        for weights in study.formats
        for direction in study.directions
    ]


def _score_units(
    roles: Sequence[OneUnit], cells: Mapping[CellRole, Result], draws: Sequence[npt.NDArray[np.int64]]
) -> tuple[BlockScore, ...]:
    """Score the blocks, or the linears, of one format and direction."""
    if not roles:
        return ()
    reference = _predictions(cells, Reference())
    found = [_predictions(cells, role) for role in roles]
    # float64: a mean of float32 would depend on numpy's summation order.
    kl = np.stack([_kl(predictions, role) for predictions, role in zip(found, roles, strict=True)])
    costs = kl[:, reference.selection]
    # Where a unit is spared, what it costs is what is missing.
    excess = (costs - costs.mean(axis=0)) * (1 if roles[0].kind == "only" else -1)
    kl_intervals, excess_intervals = simultaneous_intervals(costs), simultaneous_intervals(excess)
    return tuple(
        BlockScore(
            block=role.block,
            module=role.module,
            kl=tuple(float(kl[index, draw].mean()) for draw in draws),
            flips=tuple(int(np.count_nonzero(predictions.flips(reference)[draw])) for draw in draws),
            margin=tuple(float((predictions.margin.astype(np.float64) - reference.margin)[draw].mean()) for draw in draws),
            top1=tuple(float((predictions.right)[draw].mean()) for draw in draws),
            kl_interval=(max(0.0, kl_intervals[index][0]), kl_intervals[index][1]),
            excess_interval=excess_intervals[index],
        )
        for index, (role, predictions) in enumerate(zip(roles, found, strict=True))
    )


def _predictions(cells: Mapping[CellRole, Result], role: CellRole) -> Predictions:
    cell = cells.get(role)
    if cell is None or cell.predictions is None:
        raise DataError(f"sensitivity: {label_of(role)}: no successful record; run the study again, then this")
    return cell.predictions


def _kl(predictions: Predictions, role: OneUnit) -> npt.NDArray[np.float64]:
    if predictions.kl is None:
        raise DataError(f"sensitivity: {label_of(role)}: its predictions hold no KL; delete its record and run the study again")
    return predictions.kl.astype(np.float64)


def simultaneous_intervals(
    values: npt.NDArray[np.float64], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> list[tuple[float, float]]:
    """Intervals of the means of several quantities seen on the same images, float64 [units, N], that hold all at once.

    The single-step bootstrap of the greatest t: images are drawn again, all quantities of an image together; the half width is the
    quantile, over resamples, of the greatest deviation among the quantities in units of its standard error. A quantity that is the
    same for every image gets an interval of no width.

    Source: Westfall and Young, "Resampling-Based Multiple Testing", 1993; Romano and Wolf, JASA 100, 2005, section 4.
    """
    images = values.shape[1]
    means = values.mean(axis=1)
    errors = values.std(axis=1) / np.sqrt(images)
    greatest = []
    for counts in _resamples(images, resamples, seed):
        deviations = np.abs(counts.astype(np.float64) @ values.T / images - means)
        greatest.append(np.divide(deviations, errors, out=np.zeros_like(deviations), where=errors > 0).max(axis=1))
    width = float(np.quantile(np.concatenate(greatest), confidence)) * errors
    return [(float(mean - half), float(mean + half)) for mean, half in zip(means, width, strict=True)]


@lru_cache(maxsize=1)
def _resamples(images: int, resamples: int, seed: int) -> tuple[npt.NDArray[np.uint16], ...]:
    """How often each image is drawn, uint16 [100, N] for every hundred resamples.

    Kept for the next quantities on as many images: drawing takes far longer than what is done with the draws. No image is drawn
    65,536 times: a count is a sum of rare events of mean 1.
    """
    random = np.random.default_rng(seed)
    share = np.full(images, 1 / images)
    return tuple(random.multinomial(images, share, size=100).astype(np.uint16) for _ in range(0, resamples, 100))


def write_scores(profile: Profile, workspace: Workspace) -> Path:
    """Score the sensitivity study's records and write them as JSON; returns the file.

    Raises:
        DataError: as `scores`.
    """
    found = scores(load_results(workspace, "sensitivity"), profile)
    content = "[\n" + ",\n".join(score.model_dump_json(indent=1) for score in found) + "\n]\n"
    write_atomic(workspace.sensitivity, content.encode())
    return workspace.sensitivity
