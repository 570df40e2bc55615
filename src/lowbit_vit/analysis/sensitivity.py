"""How sensitive each block is to quantization: the scores over several draws of images, and the tables of the sensitivity study.

NF4 and int8 calibrate nothing, so the draws are of evaluation images: each is a seeded half of the selection half of the
test split. The report half is never looked at for the scores, so that what `mixed` chooses from them can be reported on it.
The draws overlap: their spread says how much the choice of images matters, it is not a confidence interval. The intervals are of
the whole selection half, for all units together; a unit is called sensitive only where its interval says so.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from lowbit_vit.analysis.block_cells import OUTCOME, BlockCells, Floats, cell_rows, gather_cells
from lowbit_vit.analysis.intervals import agreement, kendall, kendall_interval, simultaneous_intervals
from lowbit_vit.analysis.results import load_results
from lowbit_vit.errors import DataError
from lowbit_vit.schema.cell_role import OneUnit, Reference, label_of, unit_role
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import BlockScore, SensitivityScores, linear_names
from lowbit_vit.schema.record import write_atomic
from lowbit_vit.schema.stage_documents import ESTIMATORS, Estimates
from lowbit_vit.schema.workspace import Workspace

# ------------------------------------------------------------------------------------------------------------- the scores


def draw_images(images: int, *, draws: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Draw `draws` times half of the images of the selection half, without replacement; sorted int64 places among them.

    Raises:
        DataError: fewer than two images.
    """
    if images < 2:
        raise DataError(f"sensitivity: the selection half has {images} images; at least 2 are needed")
    return [np.sort(np.random.default_rng([seed, draw]).choice(images, images // 2, replace=False)) for draw in range(draws)]


def scores(cells: BlockCells, profile: Profile) -> list[SensitivityScores]:
    """Score every block for each format and direction that the profile asks for, in its order.

    KL is the mean over a draw's images of KL(high precision || quantized) in nats; a flip is an image whose Top-1 class
    differs from the high-precision model's.

    Raises:
        DataError: the reference or a block's cell has no success.
    """
    study, depth = profile.sensitivity, profile.backbone.depth
    if Reference() not in cells.place:
        raise DataError(f"sensitivity: the high-precision reference did not succeed; run lowbit-vit sensitivity {profile.name} again")
    draws = draw_images(cells.selection.kl.shape[1], draws=study.draws, seed=study.draw_seed)
    blocks = [f"blocks.{block}" for block in range(depth)]
    modules = linear_names(depth) if "modules" in study.units else []
    return [
        SensitivityScores(
            profile=profile.name,
            backbone_sha256=cells.models[Reference()].backbone_sha256,
            weights=weights,
            direction=direction,
            images=len(draws[0]),
            blocks=_score_units([unit_role(direction, weights.name, name) for name in blocks], cells, draws),
            modules=_score_units([unit_role(direction, weights.name, name) for name in modules], cells, draws),
        )
        for weights in study.formats
        for direction in study.directions
    ]


def scores_if_complete(cells: BlockCells, profile: Profile) -> list[SensitivityScores]:
    """Scores need every cell; a study that was not run or has failed cells has none.

    Raises:
        DataError: as `scores`.
    """
    return scores(cells, profile) if cells.parts and len(cells.place) == len(cells.parts) else []


def _score_units(roles: Sequence[OneUnit], cells: BlockCells, draws: Sequence[npt.NDArray[np.int64]]) -> tuple[BlockScore, ...]:
    """Score the blocks, or the linears, of one format and direction."""
    for role in roles:
        if role not in cells.place:
            raise DataError(f"sensitivity: {label_of(role)}: no successful record; run the study again, then this")
    if not roles:
        return ()
    half, places = cells.selection, [cells.place[role] for role in roles]

    def over_draws(values: Floats, statistic: Callable[..., Floats] = np.mean) -> list[tuple[float, ...]]:
        return list(zip(*(statistic(values.take(draw, axis=1), axis=1).tolist() for draw in draws), strict=True))

    kl = half.kl[places]
    # Where a unit is spared, what it costs is what is missing.
    excess = (kl - kl.mean(axis=0)) * (1 if roles[0].kind == "only" else -1)
    columns = {
        "block": [role.block for role in roles],
        "module": [role.module for role in roles],
        "kl": over_draws(kl),
        "flips": over_draws(half.flips[places], np.sum),
        "margin": over_draws(half.margin[places] - half.margin[cells.place[Reference()]]),
        "top1": over_draws(half.right[places].astype(np.float64)),
        "kl_interval": [(max(0.0, low), high) for low, high in simultaneous_intervals(kl).tolist()],
        "excess_interval": simultaneous_intervals(excess).tolist(),
    }
    return tuple(BlockScore.model_validate(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True))


def write_scores(profile: Profile, workspace: Workspace) -> Path:
    """Score the sensitivity study's records and write them as JSON; returns the file.

    Raises:
        DataError: as `scores`.
    """
    found = scores(gather_cells(load_results(workspace, "sensitivity")), profile)
    content = "[\n" + ",\n".join(score.model_dump_json(indent=1) for score in found) + "\n]\n"
    write_atomic(workspace.sensitivity, content.encode())
    return workspace.sensitivity


# ------------------------------------------------------------------------------------------------------------- the tables


_UNIT_COLUMNS: dict[str, type] = {"weights": str, "direction": str, "unit": str, "block": int, "module": str}
_UNIT_COLUMNS |= dict.fromkeys(("kl_mean", "kl_low", "kl_high", "excess_low", "excess_high"), float) | {"sensitive": bool}
_UNIT_COLUMNS |= dict.fromkeys(("flips_mean", "margin_mean", "top1_mean"), float) | {"draws": int, "draw_images": int}


def units(scores: Sequence[SensitivityScores]) -> pl.DataFrame:
    """One row a block and, where they were measured, a linear: KL on the selection half with its interval, and the verdict.

    `kl_low`..`kl_high` and `excess_low`..`excess_high` are 95 % intervals that hold for all units of one format, direction and kind
    together. The excess is what the unit costs beyond the mean unit; it is sensitive if that is surely positive.
    """
    rows = [
        (
            *(score.weights.name, score.direction, unit.name, unit.block, unit.module),
            *(unit.mean_kl, *unit.kl_interval, *unit.excess_interval, unit.sensitive),
            *(np.mean(values) for values in (unit.flips, unit.margin, unit.top1)),
            *(len(unit.kl), score.images),
        )
        for score in scores
        for unit in score.units
    ]
    return pl.DataFrame(rows, schema=_UNIT_COLUMNS, orient="row")


def sensitivity(cells: BlockCells, scores: Sequence[SensitivityScores]) -> pl.DataFrame:
    """One row a cell of whole blocks: direction `reference`, `all`, `only` or `all_but`; KL over the draws where it was scored.

    `kl_low`..`kl_high` is the range over the draws, `interval_low`..`interval_high` the 95 % interval and `sensitive` the verdict of
    `units`. Top-1 and its paired difference from the high-precision reference are of the report half. Scores that are missing leave
    nulls.
    """
    ranges = [(min(unit.kl), max(unit.kl)) for score in scores for unit in score.units]
    scored = (
        units(scores)
        .rename({"kl_low": "interval_low", "kl_high": "interval_high"})
        .hstack(pl.DataFrame(ranges, schema={"kl_low": float, "kl_high": float}, orient="row"))
        .filter(pl.col("module").is_null())
    )
    rows = cell_rows(cells, against=Reference()).filter(pl.col("module").is_null()).rename({"kind": "direction"})
    # High precision first, then each format in the profile's order: all blocks, only, all but.
    formats = list(dict.fromkeys(score.weights.name for score in scores))
    format_place = pl.col("weights").replace_strict(formats, range(len(formats)), default=-1, return_dtype=pl.Int64)
    direction = pl.col("direction").cast(pl.Enum(["reference", "all", "only", "all_but"]))
    over_draws = ("kl_mean", "kl_low", "kl_high", "interval_low", "interval_high", "sensitive", "flips_mean", "draws", "draw_images")
    return (
        rows.join(scored, on=["weights", "direction", "block"], how="left", maintain_order="left")
        .select("weights", "direction", "block", *over_draws, *OUTCOME)
        .sort(format_place, "weights", direction, "block", maintain_order=True)
    )


def draw_agreement(scores: Sequence[SensitivityScores]) -> pl.DataFrame:
    """Mean Kendall's tau between the draws' rankings of the blocks, for each format and direction.

    The draws share images, so this is an upper bound of how stable the ranking is.
    """
    rows = [
        (
            *(score.weights.name, score.direction, len(score.blocks[0].kl)),
            agreement(list(zip(*(block.kl for block in score.blocks), strict=True))) if len(score.blocks) > 1 else None,
        )
        for score in scores
    ]
    return pl.DataFrame(rows, schema={"weights": str, "direction": str, "draws": int, "kendall_tau": float}, orient="row")


_ESTIMATOR_COLUMNS: dict[str, type] = dict.fromkeys(("weights", "direction", "units", "estimator"), str) | {"number": int}
_ESTIMATOR_COLUMNS |= dict.fromkeys(("kendall_tau", "tau_low", "tau_high"), float)


def estimator_agreement(estimates: Estimates | None, scores: Sequence[SensitivityScores]) -> pl.DataFrame:
    """Kendall's tau of each cheap estimator with what was measured, and its interval; nothing where there are no estimates.

    One row for each format, direction, kind of unit and estimator.

    Raises:
        DataError: the estimates are of other weights than the scores, or leave out what was scored.
    """
    rows = []
    if estimates is None:
        return pl.DataFrame(schema=_ESTIMATOR_COLUMNS)
    for score in scores:
        if estimates.backbone_sha256 != score.backbone_sha256:
            raise DataError(
                f"estimates.json of {estimates.profile}: of other weights than the sensitivity study's; "
                f"run lowbit-vit estimate {estimates.profile} again"
            )
        for kind, scored in (("blocks", score.blocks), ("modules", score.modules)):
            measured = [score.cost(unit.mean_kl) for unit in scored]
            for estimator in ESTIMATORS if len(scored) > 1 else ():
                guessed = [estimates.of(unit.name, score.weights.name, estimator) for unit in scored]
                interval = kendall_interval(guessed, measured)
                ends = (None, None) if interval is None else (interval.low, interval.high)
                what = (score.weights.name, score.direction, kind, estimator.replace("_", " "), len(scored))
                rows.append((*what, kendall(guessed, measured), *ends))
    return pl.DataFrame(rows, schema=_ESTIMATOR_COLUMNS, orient="row")
