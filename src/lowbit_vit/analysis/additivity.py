"""Whether losses measured block by block add up: what their sum predicts of each mixed plan, beside what was measured of it.

Predictions come from the selection half, measurements from the report half, so a good fit is no fit to the same images. Bytes are
added up as well; they must be exact. Flips are predicted twice: as the sum over blocks, and from the summed KL (`flips`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from lowbit_vit.analysis.flips import FlipCurve, flip_curve
from lowbit_vit.analysis.results import Result, cells_by_role
from lowbit_vit.analysis.timed_plans import predicted_ms
from lowbit_vit.schema.cell_role import BlockPair, CellRole, Reference, unit_role
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import BlockScore, HighPrecision, Plan, SensitivityScores, linear_names

ADDITIVITY_SCHEMA: dict[str, Any] = {
    "plan": pl.String,
    "strategy": pl.String,
    "k": pl.Int64,
    "predicted_kl": pl.Float64,
    "kl": pl.Float64,
    "predicted_flips_per_1000": pl.Float64,
    "expected_flips_per_1000": pl.Float64,
    "expected_flips_low": pl.Float64,
    "expected_flips_high": pl.Float64,
    "flips_per_1000": pl.Float64,
    "batch_size": pl.Int64,
    "predicted_ms": pl.Float64,
    "p50_ms": pl.Float64,
    "predicted_weight_bytes": pl.Int64,
    "weight_bytes": pl.Int64,
    "images": pl.Int64,
    "trial_id": pl.String,
}
FITS_SCHEMA: dict[str, Any] = {
    "quantity": pl.String,
    "plans": pl.Int64,
    "r2_line": pl.Float64,
    "r2_identity": pl.Float64,
    "slope": pl.Float64,
    "median_ratio": pl.Float64,
    "mean_error": pl.Float64,
}
# What is predicted: the column of the prediction and that of the measurement.
PREDICTIONS = {
    "kl": ("predicted_kl", "kl"),
    "flips_per_1000": ("predicted_flips_per_1000", "flips_per_1000"),
    "flips_per_1000 from KL": ("expected_flips_per_1000", "flips_per_1000"),
    "p50_ms": ("predicted_ms", "p50_ms"),
    "weight_bytes": ("predicted_weight_bytes", "weight_bytes"),
}
Floats = npt.NDArray[np.float64]
Part = tuple[BlockScore, int, str]  # what a unit costs alone, on how many images, in which format


def additivity(
    mixed: Sequence[Result],
    sensitivity: Sequence[Result],
    scores: Sequence[SensitivityScores],
    profile: Profile,
    *,
    variants: Sequence[Result] = (),
) -> pl.DataFrame:
    """One row a plan of the mixed study that quantizes anything and whose every unit was measured alone; losses of the report half.

    `variants` are the arms whose latencies predict those of the plans that were timed, at the largest batch size.
    """
    reference = cells_by_role(mixed).get(Reference())
    if reference is None or reference.predictions is None:
        return pl.DataFrame(schema=ADDITIVITY_SCHEMA)
    units = {
        (unit.name, score.weights.name): (unit, score.images)
        for score in scores
        if score.direction == "only"
        for unit in (*score.blocks, *score.modules)
    }
    sizes = {
        role: result.record.model.weight_bytes for role, result in cells_by_role(sensitivity).items() if result.record.model is not None
    }
    curve = flip_curve(sensitivity, scores)
    rows = []
    for result in mixed:
        role = result.record.trial.roles[0]
        parts = _parts(result.record.trial.plan, units, depth=profile.backbone.depth)
        predictions, model = result.predictions, result.record.model
        kl = None if predictions is None else predictions.report_kl
        if isinstance(role, BlockPair) or not parts or predictions is None or kl is None or model is None:
            continue
        summed_kl = sum(float(np.mean(unit.kl)) for unit, _, _ in parts)
        rows.append(
            {
                "plan": result.record.trial.label,
                "strategy": role.kind,
                **role.model_dump(include={"k"}),
                "predicted_kl": summed_kl,
                "kl": float(kl.mean()),
                "predicted_flips_per_1000": sum(1000 * float(np.mean(unit.flips)) / images for unit, images, _ in parts),
                **_expected_flips(curve, summed_kl),
                "flips_per_1000": 1000 * float(predictions.flips(reference.predictions)[~predictions.selection].mean()),
                **_latency(result, (*variants, *mixed), profile),
                "predicted_weight_bytes": _summed_bytes(parts, sizes),
                "weight_bytes": model.weight_bytes,
                "images": len(kl),
                "trial_id": result.record.trial_id,
            }
        )
    return pl.DataFrame(rows, schema=ADDITIVITY_SCHEMA).sort("k", "strategy", "plan", nulls_last=True)


def _expected_flips(curve: FlipCurve | None, kl: float) -> dict[str, float]:
    if curve is None:
        return {}
    within = curve.interval(kl)
    return {"expected_flips_per_1000": curve.expected(kl), "expected_flips_low": within.low, "expected_flips_high": within.high}


def _summed_bytes(parts: Sequence[Part], sizes: Mapping[CellRole, int]) -> int | None:
    """Bytes of a plan's weights from the cells of the sensitivity study; None if one of them has no record."""
    base = sizes.get(Reference())
    added = [sizes.get(unit_role("only", weights, unit.name)) for unit, _, weights in parts]
    known = [size for size in added if size is not None]
    return None if base is None or len(known) < len(added) else base + sum(size - base for size in known)


def _latency(result: Result, timed: Sequence[Result], profile: Profile) -> dict[str, Any]:
    if result.record.measurement is None:
        return {}
    latency = result.latency[max(result.latency)]
    expected = predicted_ms(result.record.trial.plan, profile, timed, batch_size=latency.batch_size)
    return {"batch_size": latency.batch_size, "predicted_ms": expected, "p50_ms": latency.p50_ms}


def _parts(plan: Plan, units: Mapping[tuple[str, str], tuple[BlockScore, int]], *, depth: int) -> list[Part] | None:
    """The measured units that make up a plan, whole blocks where a block has one format; None if one was not measured."""
    formats = plan.resolve(linear_names(depth))
    parts: list[Part] = []
    for block in range(depth):
        own = {name: weights for name, weights in formats.items() if name.startswith(f"blocks.{block}.")}
        whole = len({weights.name for weights in own.values()}) == 1
        for name, weights in [(f"blocks.{block}", next(iter(own.values())))] if whole else own.items():
            if isinstance(weights, HighPrecision):
                continue
            found = units.get((name, weights.name))
            if found is None:
                return None
            parts.append((*found, weights.name))
    return parts


def additivity_fits(frame: pl.DataFrame) -> pl.DataFrame:
    """How well the predictions fit: R2 of the best line, R2 of the prediction itself, the line's slope, the median of measured / predicted.

    Null where all predictions or all measurements are equal. `mean_error` is the mean of |measured - predicted|.
    """
    rows = []
    for quantity, columns in PREDICTIONS.items():
        both = frame.select(columns).drop_nulls()
        if both.height < 3:
            continue
        predicted, measured = (both.get_column(name).cast(pl.Float64).to_numpy() for name in both.columns)
        rows.append({"quantity": quantity, "plans": both.height, **_fit(predicted, measured)})
    return pl.DataFrame(rows, schema=FITS_SCHEMA)


def _fit(predicted: Floats, measured: Floats) -> dict[str, float | None]:
    spread_predicted = float(((predicted - predicted.mean()) ** 2).sum())
    spread = float(((measured - measured.mean()) ** 2).sum())
    ratios = measured[predicted > 0] / predicted[predicted > 0]
    rest = {
        "median_ratio": float(np.median(ratios)) if len(ratios) else None,
        "mean_error": float(np.abs(measured - predicted).mean()),
    }
    if spread_predicted <= 0 or spread <= 0:
        return {"r2_line": None, "r2_identity": None, "slope": None, **rest}
    together = float(((predicted - predicted.mean()) * (measured - measured.mean())).sum())
    return {
        "r2_line": together**2 / (spread_predicted * spread),
        "r2_identity": 1 - float(((measured - predicted) ** 2).sum()) / spread,
        "slope": together / spread_predicted,
        **rest,
    }
