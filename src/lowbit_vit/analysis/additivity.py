"""Whether losses measured block by block add up: what their sum predicts of each mixed plan, beside what was measured of it.

Predictions come from the selection half, measurements from the report half, so a good fit is no fit to the same images. Bytes are
added up as well; they must be exact. Flips are predicted twice: as the sum over blocks, and from the summed KL (`flip_model`).
"""

from collections.abc import Sequence
from typing import TypedDict, get_type_hints

import polars as pl

from lowbit_vit.analysis.block_cells import BlockCells, cell_rows
from lowbit_vit.analysis.flip_model import flip_curve
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.timed_plans import predicted_ms
from lowbit_vit.schema.cell_role import Reference, unit_role
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import HighPrecision, Plan, SensitivityScores, linear_names

# What is predicted: the column of the prediction and that of the measurement.
PREDICTIONS = {
    "kl": ("predicted_kl", "kl"),
    "flips_per_1000": ("predicted_flips_per_1000", "flips_per_1000"),
    "flips_per_1000 from KL": ("expected_flips_per_1000", "flips_per_1000"),
    "p50_ms": ("predicted_ms", "p50_ms"),
    "weight_bytes": ("predicted_weight_bytes", "weight_bytes"),
}


class Prediction(TypedDict, total=False):
    """What is known of a plan before it is run, and the latency that was measured of it."""

    trial_id: str
    predicted_kl: float
    predicted_flips_per_1000: float
    expected_flips_per_1000: float
    expected_flips_low: float
    expected_flips_high: float
    batch_size: int
    predicted_ms: float | None
    p50_ms: float
    predicted_weight_bytes: int


def additivity(
    mixed: BlockCells,
    sensitivity: BlockCells,
    scores: Sequence[SensitivityScores],
    profile: Profile,
    *,
    variants: Sequence[Result] = (),
) -> pl.DataFrame:
    """One row a plan of the mixed study that quantizes anything and whose every unit was measured alone; losses of the report half.

    `variants` are the arms whose latencies predict those of the plans that were timed, at the largest batch size.
    """
    alone = [score for score in scores if score.direction == "only"]
    units = {(unit.name, score.weights.name): (unit.mean_kl, score.flips_per_1000(unit)) for score in alone for unit in score.units}
    sizes = {role: model.weight_bytes for role, model in sensitivity.models.items()}
    cells = {result.record.trial_id: result for _, result in mixed.parts}
    curve, timed = flip_curve(sensitivity, scores), (*variants, *cells.values())
    rows: list[Prediction] = []
    for trial_id, result in cells.items():
        plan = result.record.trial.plan
        parts = _parts(plan, depth=profile.backbone.depth)
        if not parts or not units.keys() >= set(parts):
            continue
        kl = sum(units[part][0] for part in parts)
        row = Prediction(trial_id=trial_id, predicted_kl=kl, predicted_flips_per_1000=sum(units[part][1] for part in parts))
        if curve is not None:
            within = curve.interval(kl)
            row |= {"expected_flips_per_1000": curve.expected(kl), "expected_flips_low": within.low, "expected_flips_high": within.high}
        if result.latency:
            latency = result.latency[max(result.latency)]
            expected = predicted_ms(plan, profile, timed, batch_size=latency.batch_size)
            row |= {"batch_size": latency.batch_size, "predicted_ms": expected, "p50_ms": latency.p50_ms}
        roles = [unit_role("only", weights, unit) for unit, weights in parts]
        if sizes.keys() >= {Reference(), *roles}:
            base = sizes[Reference()]
            row["predicted_weight_bytes"] = base + sum(sizes[role] - base for role in roles)
        rows.append(row)
    measured = cell_rows(mixed).unique("trial_id", keep="first", maintain_order=True).filter(pl.col("kind") != "pair").drop_nulls("flips")
    return (
        measured.with_columns(flips_per_1000=1000 * (pl.col("flips") / pl.col("images")))
        .join(pl.DataFrame(rows, schema=get_type_hints(Prediction)), on="trial_id", maintain_order="left")
        .rename({"label": "plan", "kind": "strategy"})
        .select(
            *("plan", "strategy", "k", "predicted_kl", "kl", "predicted_flips_per_1000"),
            *("expected_flips_per_1000", "expected_flips_low", "expected_flips_high", "flips_per_1000"),
            *("batch_size", "predicted_ms", "p50_ms", "predicted_weight_bytes", "weight_bytes", "images", "trial_id"),
        )
        .sort("k", "strategy", "plan", nulls_last=True)
    )


def _parts(plan: Plan, *, depth: int) -> list[tuple[str, str]]:
    """Unit and format of all that a plan quantizes: whole blocks where a block has one format, else linears."""
    formats = plan.resolve(linear_names(depth))
    parts: list[tuple[str, str]] = []
    for block in range(depth):
        own = {name: weights for name, weights in formats.items() if name.startswith(f"blocks.{block}.")}
        if len({weights.name for weights in own.values()}) == 1:
            own = {f"blocks.{block}": next(iter(own.values()))}
        parts += [(name, weights.name) for name, weights in own.items() if not isinstance(weights, HighPrecision)]
    return parts


def additivity_fits(frame: pl.DataFrame) -> pl.DataFrame:
    """How well the predictions fit: R2 of the best line, R2 of the prediction itself, the line's slope, the median of measured / predicted.

    Null where all predictions or all measurements are equal. `mean_error` is the mean of |measured - predicted|. A row needs 3 plans.
    """
    predicted, measured = pl.col("predicted"), pl.col("measured")
    off_predicted, off_measured = predicted - predicted.mean(), measured - measured.mean()
    spread_predicted, spread = (off_predicted**2).sum(), (off_measured**2).sum()
    together = (off_predicted * off_measured).sum()
    varied = pl.when((predicted.n_unique() > 1) & (measured.n_unique() > 1))
    return (
        pl.concat(
            frame.select(pl.lit(quantity).alias("quantity"), *(pl.col(column).cast(pl.Float64).alias(name) for name, column in pair))
            for quantity, columns in PREDICTIONS.items()
            for pair in [zip(("predicted", "measured"), columns, strict=True)]
        )
        .drop_nulls()
        .group_by("quantity", maintain_order=True)
        .agg(
            plans=pl.len().cast(pl.Int64),
            r2_line=varied.then(together**2 / (spread_predicted * spread)),
            r2_identity=varied.then(1 - ((measured - predicted) ** 2).sum() / spread),
            slope=varied.then(together / spread_predicted),
            median_ratio=(measured / predicted).filter(predicted > 0).median(),
            mean_error=(measured - predicted).abs().mean(),
        )
        .filter(pl.col("plans") >= 3)
    )
