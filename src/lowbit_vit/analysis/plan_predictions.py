"""What is predicted of a plan before it is run, and the tables of it beside what was measured of the mixed plans.

KL and bytes are the sums over units measured alone. Flips do not add up. A block changes the class of the images that lie nearest to a
boundary, and the next block changes mostly the same ones; and of noise in the logits KL grows as the square, flips as the amount
itself, so flips go as the root of KL. So a rising curve is fitted to the cells' flips over the sum of KL that their blocks have alone.
Latency is that of high precision plus, for each block, an equal share of what the uniform arm of its format differs by from high
precision, under the same compute dtype, attention and execution.

Predictions come from the selection half, measurements from the report half, so a good fit is no fit to the same images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from scipy.optimize import isotonic_regression

from lowbit_vit.analysis.block_cells import BlockCells, cell_rows
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import wilson
from lowbit_vit.schema.cell_role import AllBlocks, CellRole, OneUnit, Reference, unit_role
from lowbit_vit.schema.config import Execution, Profile
from lowbit_vit.schema.metrics import Interval
from lowbit_vit.schema.plan import HighPrecision, Plan, SensitivityScores, linear_names

# ----------------------------------------------------------------------------------------------------------------- flips


@dataclass(frozen=True)
class FlipCurve:
    """Expected flips in 1,000 images over summed KL in nats.

    Attributes:
        roots: square roots of the KL at the curve's corners, ascending from 0.
        flips: in 1,000 images there, never falling, from 0.
        images: of the selection half, on which both were measured.
    """

    roots: tuple[float, ...]
    flips: tuple[float, ...]
    images: int

    def expected(self, kl: float) -> float:
        """Flips in 1,000 images of a plan whose units' KL is `kl` in all: straight between corners over the root, and beyond the last."""
        root = float(np.sqrt(max(kl, 0.0)))
        if root > self.roots[-1] > 0:
            return self.flips[-1] * root / self.roots[-1]
        return float(np.interp(root, self.roots, self.flips))

    def interval(self, kl: float) -> Interval:
        """Where 95 % of counts on as many other images lie, in flips of 1,000: Wilson's interval of half as many images.

        Half, because both the curve and the count that it is held against are counts on `images`: their variances add. The cells
        share their images, so the curve counts as one of them, though many made it.
        """
        half = max(1, self.images // 2)
        found = wilson(min(half, round(self.expected(kl) * half / 1000)), half)
        return Interval(low=1000 * found.low, high=1000 * found.high)

    def most_kl(self, flips: float) -> float:
        """The greatest summed KL whose expected flips in 1,000 images are no more than `flips`; infinite where none is too much."""
        if flips >= self.flips[-1]:
            return float((self.roots[-1] * flips / self.flips[-1]) ** 2) if self.flips[-1] > 0 else float("inf")
        above = next(index for index, value in enumerate(self.flips) if value > flips)
        low, high = self.flips[above - 1], self.flips[above]
        share = (flips - low) / (high - low)
        return float((self.roots[above - 1] + share * (self.roots[above] - self.roots[above - 1])) ** 2)


def flip_curve(
    cells: BlockCells, scores: Sequence[SensitivityScores], *, units: Literal["blocks", "modules"] = "blocks"
) -> FlipCurve | None:
    """Fit the curve to every cell of the sensitivity study, all formats and both directions, each with the same weight.

    Isotonic regression of flips on the sum of KL (pool adjacent violators): that flips do not fall as KL grows is all that is assumed.

    Args:
        cells: of the sensitivity study.
        scores: what each unit costs alone; the KL of a cell is the sum over the units that it quantizes.
        units: whose scores are summed.

    Returns:
        None without the high-precision reference, or without the scores of single units.

    Source: Barlow et al., "Statistical Inference under Order Restrictions", 1972, chapter 1; scipy.optimize.isotonic_regression.
    """
    summed = {role: _summed_kl(role, scores, units) for role in cells.place}
    points = [(kl, cells.selection.flips[cells.place[role]].sum()) for role, kl in summed.items() if kl is not None]
    if Reference() not in cells.place or not points:
        return None
    images = cells.selection.flips.shape[1]
    places, where = np.unique([kl for kl, _ in points], return_inverse=True)
    weights = np.bincount(where)
    means = np.bincount(where, weights=[count for _, count in points]) / weights
    fitted = 1000 * isotonic_regression(means, weights=weights).x / images
    return FlipCurve(roots=(0.0, *map(float, np.sqrt(places))), flips=(0.0, *map(float, fitted)), images=images)


def _summed_kl(role: CellRole, scores: Sequence[SensitivityScores], units: Literal["blocks", "modules"]) -> float | None:
    """The sum over the units that a cell quantizes; None where it is no sum of whole units, or nothing was measured alone."""
    if not isinstance(role, AllBlocks | OneUnit):
        return None
    score = next((score for score in scores if score.weights.name == role.weights and score.direction == "only"), None)
    found = () if score is None else score.blocks if units == "blocks" else score.modules
    if not found or (isinstance(role, OneUnit) and role.module is not None and units == "blocks"):
        return None
    whole = sum(unit.mean_kl for unit in found)
    if isinstance(role, AllBlocks):
        return whole
    own = sum(unit.mean_kl for unit in found if unit.block == role.block and role.module in (None, unit.module))
    # Rounding must not make a spared whole negative.
    return own if role.kind == "only" else max(0.0, whole - own)


# --------------------------------------------------------------------------------------------------------------- latency


def timed_plans(mixed: Sequence[Result], variants: Sequence[Result], profile: Profile) -> pl.DataFrame:
    """One row a timed cell of the mixed study and batch size, then the uniform arms that its prediction rests on.

    `ratio` is measured / predicted. Empty where no cell of the mixed study was timed; predictions are null where a uniform arm that
    they need was not timed (`mixed.timed` may time high precision and the plan that spares nothing itself). Top-1 is of the report half.
    """
    cells = [result for result in mixed if result.record.measurement is not None]
    shown = [*cells, *(result for result in variants if cells and _as_the_cells(result, cells[0]))]
    frames = Frames(shown)
    timed = frames.timings.join(frames.trials, on="trial")
    asked = ((shown[trial].record.trial.plan, batch) for trial, batch in timed.select("trial", "batch_size").rows())
    expected = [predicted_ms(plan, profile, shown, batch_size=batch) for plan, batch in asked]
    table = timed.with_columns(pl.Series("predicted_ms", expected, pl.Float64)).select(
        pl.col("arm").alias("plan"), "study", "batch_size", "weight_mib", "file_mib", pl.col("report_top1").alias("top1"), "predicted_ms",
        "p50_ms", "p50_low_ms", "p50_high_ms", (pl.col("p50_ms") / pl.col("predicted_ms")).alias("ratio"), "peak_memory_mib", "memory_is",
        "trial_id",
    )  # fmt: skip
    return table.sort("batch_size", "study", "weight_mib", "plan")


def _as_the_cells(result: Result, cell: Result) -> bool:
    """Whether an arm differs from a cell in its plan alone, and has one format throughout."""
    arm, trial = result.record.trial, cell.record.trial
    axes = ("attention", "qkv", "adaptation", "execution", "device", "seed")
    same = all(getattr(arm, axis) == getattr(trial, axis) for axis in axes) and arm.plan.compute_dtype == trial.plan.compute_dtype
    return same and result.record.measurement is not None and len(_blocks(arm.plan, arm.backbone.depth)) == 1


def _blocks(plan: Plan, depth: int) -> dict[str, float]:
    """How many blocks each format has; a block of several formats counts in part for each."""
    formats = [weights.name for weights in plan.resolve(linear_names(depth)).values()]
    return {name: formats.count(name) * depth / len(formats) for name in dict.fromkeys(formats)}


def predicted_ms(plan: Plan, profile: Profile, timed: Sequence[Result], *, batch_size: int, execution: Execution = "eager") -> float | None:
    """Median latency of one batch of a cell of the mixed study.

    None where a uniform arm that it needs was not timed, or the mixed study has another compute dtype or attention than sensitivity,
    whose settings the uniform arms are picked by.
    """
    mixed, alone = profile.mixed, profile.sensitivity
    if (mixed.compute_dtype, mixed.attention) != (alone.compute_dtype, alone.attention):
        return None
    latencies = uniform_latencies(profile, timed, batch_size=batch_size, execution=execution)
    blocks = _blocks(plan, profile.backbone.depth)
    if not {"high", *blocks} <= set(latencies):
        return None
    high = latencies["high"]
    return high + sum((latencies[name] - high) * count / profile.backbone.depth for name, count in blocks.items())


def uniform_latencies(profile: Profile, results: Sequence[Result], *, batch_size: int, execution: Execution) -> dict[str, float]:
    """Median latency in ms of the timed arms that have one format throughout, by format; else as the sensitivity study is run."""
    study = profile.sensitivity
    found: dict[str, float] = {}
    for result in results:
        trial = result.record.trial
        names = {rule.weights.name for rule in trial.plan.rules} or {"high"}
        alike = (
            trial.plan.compute_dtype == study.compute_dtype,
            trial.attention == study.attention,
            trial.adaptation == ("none" if profile.lora is None else "ptq"),
            trial.execution == execution,
            trial.qkv == "separate",
            len(names) == 1,
        )
        if batch_size in result.latency and all(alike):
            found |= dict.fromkeys(names, result.latency[batch_size].p50_ms)
    return found


# ------------------------------------------------------------------------------------------------------------------- predicted and measured

# What is predicted: the column of the prediction and that of the measurement.
PREDICTIONS = {
    "kl": ("predicted_kl", "kl"),
    "flips_per_1000": ("predicted_flips_per_1000", "flips_per_1000"),
    "flips_per_1000 from KL": ("expected_flips_per_1000", "flips_per_1000"),
    "p50_ms": ("predicted_ms", "p50_ms"),
    "weight_bytes": ("predicted_weight_bytes", "weight_bytes"),
}


# What is known of a plan before it is run, and the latency that was measured of it.
_PREDICTION_COLUMNS: dict[str, type] = {"trial_id": str, "predicted_kl": float, "predicted_flips_per_1000": float}
_PREDICTION_COLUMNS |= dict.fromkeys(("expected_flips_per_1000", "expected_flips_low", "expected_flips_high"), float)
_PREDICTION_COLUMNS |= {"batch_size": int, "predicted_ms": float, "p50_ms": float, "predicted_weight_bytes": int}


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
    rows: list[dict[str, object]] = []
    for trial_id, result in cells.items():
        plan = result.record.trial.plan
        parts = _parts(plan, depth=profile.backbone.depth)
        if not parts or not units.keys() >= set(parts):
            continue
        kl = sum(units[part][0] for part in parts)
        row: dict[str, object] = {"trial_id": trial_id, "predicted_kl": kl}
        row["predicted_flips_per_1000"] = sum(units[part][1] for part in parts)
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
        .join(pl.DataFrame(rows, schema=_PREDICTION_COLUMNS), on="trial_id", maintain_order="left")
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
