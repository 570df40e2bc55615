"""The sensitivity and mixed studies as tidy frames: what each block costs, and what sparing k blocks gives back.

Blocks are chosen on the selection half of the test split, so every accuracy here is of the report half.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from lowbit_vit.analysis.frames import MIB
from lowbit_vit.analysis.ranks import agreement
from lowbit_vit.analysis.results import Result, cell_roles, cells_by_role
from lowbit_vit.analysis.statistics import compare, wilson
from lowbit_vit.schema.cell_role import BlockPair, CellRole, GivenPlan, NoneSpared, OneUnit, Reference, label_of, unit_role
from lowbit_vit.schema.plan import BlockScore, SensitivityScores, linear_names, spared_blocks

_OUTCOME: dict[str, Any] = {
    "status": pl.String,
    "reason": pl.String,
    "images": pl.Int64,
    "top1": pl.Float64,
    "top1_low": pl.Float64,
    "top1_high": pl.Float64,
    "kl": pl.Float64,
    "lost": pl.Int64,
    "gained": pl.Int64,
    "difference": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "p_value": pl.Float64,
    "weight_mib": pl.Float64,
    "file_mib": pl.Float64,
    "trial_id": pl.String,
}
SENSITIVITY_SCHEMA: dict[str, Any] = {
    "weights": pl.String,
    "direction": pl.String,
    "block": pl.Int64,
    "kl_mean": pl.Float64,
    "kl_low": pl.Float64,
    "kl_high": pl.Float64,
    "interval_low": pl.Float64,
    "interval_high": pl.Float64,
    "sensitive": pl.Boolean,
    "flips_mean": pl.Float64,
    "draws": pl.Int64,
    "draw_images": pl.Int64,
    **_OUTCOME,
}
UNITS_SCHEMA: dict[str, Any] = {
    "weights": pl.String,
    "direction": pl.String,
    "unit": pl.String,
    "block": pl.Int64,
    "module": pl.String,
    "kl_mean": pl.Float64,
    "kl_low": pl.Float64,
    "kl_high": pl.Float64,
    "excess_low": pl.Float64,
    "excess_high": pl.Float64,
    "sensitive": pl.Boolean,
    "flips_mean": pl.Float64,
    "margin_mean": pl.Float64,
    "top1_mean": pl.Float64,
    "draws": pl.Int64,
    "draw_images": pl.Int64,
}
MIXED_SCHEMA: dict[str, Any] = {
    "k": pl.Int64,
    "strategy": pl.String,
    "index": pl.Int64,
    "blocks": pl.String,
    **_OUTCOME,
    "flips_per_1000": pl.Float64,
}
METRICS = ("top1", "kl", "flips_per_1000")
AGREEMENT_SCHEMA: dict[str, Any] = {"weights": pl.String, "direction": pl.String, "draws": pl.Int64, "kendall_tau": pl.Float64}
BANDS_SCHEMA: dict[str, Any] = {
    "k": pl.Int64,
    "metric": pl.String,
    "plans": pl.Int64,
    "least": pl.Float64,
    "quarter": pl.Float64,
    "median": pl.Float64,
    "three_quarters": pl.Float64,
    "greatest": pl.Float64,
}
STRATEGIES = {"none": "fully quantized", "reference": "high precision"}
KINDS = ("none", "first+last", "last", "most sensitive", "gradient", "milp", "random", "plan", "reference")  # in the order of the rows


def sensitivity(results: Sequence[Result], scores: Sequence[SensitivityScores]) -> pl.DataFrame:
    """One row a cell of whole blocks: direction `reference`, `all`, `only` or `all_but`; KL over the draws where it was scored.

    `kl_low`..`kl_high` is the range over the draws, `interval_low`..`interval_high` the 95 % interval and `sensitive` the verdict of
    `units`. Top-1 and its paired difference from the high-precision reference are of the report half. Scores that are missing leave
    nulls.
    """
    reference = cells_by_role(results).get(Reference())
    scored: dict[CellRole, tuple[int, BlockScore]] = {
        unit_role(score.direction, score.weights.name, block.name): (score.images, block) for score in scores for block in score.blocks
    }
    formats = list(dict.fromkeys(score.weights.name for score in scores))
    rows = []
    for role, result in cell_roles(results):
        if isinstance(role, OneUnit) and role.module is not None:
            continue
        row = {"direction": role.kind, **role.model_dump(include={"weights", "block"}), **_outcome(result, reference)}
        if role in scored:
            images, block = scored[role]
            row |= {
                "kl_mean": float(np.mean(block.kl)),
                "kl_low": min(block.kl),
                "kl_high": max(block.kl),
                **dict(zip(("interval_low", "interval_high"), block.kl_interval or (None, None), strict=True)),
                "sensitive": block.sensitive,
                "flips_mean": float(np.mean(block.flips)),
                "draws": len(block.kl),
                "draw_images": images,
            }
        rows.append(row)
    # High precision first, then each format in the profile's order: all blocks, only, all but.
    format_place = pl.col("weights").replace_strict(formats, range(len(formats)), default=-1, return_dtype=pl.Int64)
    direction = pl.col("direction").cast(pl.Enum(["reference", "all", "only", "all_but"]))
    return pl.DataFrame(rows, schema=SENSITIVITY_SCHEMA).sort(format_place, "weights", direction, "block", maintain_order=True)


def units(scores: Sequence[SensitivityScores]) -> pl.DataFrame:
    """One row a block and, where they were measured, a linear: KL on the selection half with its interval, and the verdict.

    `kl_low`..`kl_high` and `excess_low`..`excess_high` are 95 % intervals that hold for all units of one format, direction and kind
    together. The excess is what the unit costs beyond the mean unit; it is sensitive if that is surely positive.
    """
    rows = [
        {
            "weights": score.weights.name,
            "direction": score.direction,
            "unit": unit.name,
            "block": unit.block,
            "module": unit.module,
            "kl_mean": float(np.mean(unit.kl)),
            **dict(zip(("kl_low", "kl_high"), unit.kl_interval or (None, None), strict=True)),
            **dict(zip(("excess_low", "excess_high"), unit.excess_interval or (None, None), strict=True)),
            "sensitive": unit.sensitive,
            "flips_mean": float(np.mean(unit.flips)),
            "margin_mean": float(np.mean(unit.margin)) if unit.margin else None,
            "top1_mean": float(np.mean(unit.top1)) if unit.top1 else None,
            "draws": len(unit.kl),
            "draw_images": score.images,
        }
        for score in scores
        for unit in (*score.blocks, *score.modules)
    ]
    return pl.DataFrame(rows, schema=UNITS_SCHEMA)


def draw_agreement(scores: Sequence[SensitivityScores]) -> pl.DataFrame:
    """Mean Kendall's tau between the draws' rankings of the blocks, for each format and direction.

    The draws share images, so this is an upper bound of how stable the ranking is.
    """
    rows = [
        {
            "weights": score.weights.name,
            "direction": score.direction,
            "draws": len(score.blocks[0].kl),
            "kendall_tau": agreement(list(zip(*(block.kl for block in score.blocks), strict=True))) if len(score.blocks) > 1 else None,
        }
        for score in scores
    ]
    return pl.DataFrame(rows, schema=AGREEMENT_SCHEMA)


def mixed(results: Sequence[Result], *, depth: int) -> pl.DataFrame:
    """One row for each part that a cell plays; the difference is from the fully quantized model, paired, on the report half.

    Flips, in 1,000 images of the report half, are from the high-precision model; null without it.
    """
    parts = [(role, result) for role, result in cell_roles(results) if not isinstance(role, BlockPair)]
    cells = cells_by_role(results)
    reference = next((result for role, result in cells.items() if isinstance(role, NoneSpared)), None)
    high = cells.get(Reference())
    rows = [
        {
            **role.model_dump(include={"k", "index"}),
            "strategy": label_of(role) if isinstance(role, GivenPlan) else STRATEGIES.get(role.kind, role.kind),
            "blocks": _blocks(role, result, depth),
            **_outcome(result, reference),
            "flips_per_1000": _flips(result, high),
        }
        for role, result in sorted(parts, key=_mixed_place)
    ]
    return pl.DataFrame(rows, schema=MIXED_SCHEMA)


def _flips(result: Result, high: Result | None) -> float | None:
    if result.predictions is None or high is None or high.predictions is None:
        return None
    return 1000 * float(result.predictions.flips(high.predictions)[~high.predictions.selection].mean())


def _mixed_place(item: tuple[CellRole, Result]) -> tuple[int, int, int]:
    values = item[0].model_dump()
    return values.get("k", 0), KINDS.index(values["kind"]), values.get("index", 0)


def _blocks(role: CellRole, result: Result, depth: int) -> str:
    if role.kind in STRATEGIES:
        return "all" if role.kind == "reference" else "none"
    plan = result.record.trial.plan
    spared = " ".join(str(block) for block in spared_blocks(plan, depth))
    used = {weights.name for weights in plan.resolve(linear_names(depth)).values()}
    return spared if len(used) <= 2 else f"{spared or 'none'}, of {', '.join(sorted(used))}"


def random_bands(frame: pl.DataFrame) -> pl.DataFrame:
    """Least, quartiles and greatest of the random plans for each k: Top-1 in percent, KL in nats, flips in 1,000 images."""
    random = frame.filter(pl.col("strategy") == "random").with_columns(pl.col("top1") * 100)
    if random.is_empty():
        return pl.DataFrame(schema=BANDS_SCHEMA)
    long = random.unpivot(index="k", on=list(METRICS), variable_name="metric", value_name="value").drop_nulls("value")
    value = pl.col("value")
    quantiles = {"least": 0.0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "greatest": 1.0}
    bands = long.group_by("k", "metric").agg(
        pl.len().cast(pl.Int64).alias("plans"),
        *(value.quantile(level, interpolation="linear").alias(name) for name, level in quantiles.items()),
    )
    return bands.sort("k", pl.col("metric").cast(pl.Enum(METRICS))).select(*BANDS_SCHEMA)


def beats_random(frame: pl.DataFrame) -> pl.DataFrame:
    """For each chosen plan: how many random plans of the same k its Top-1 and its KL beat (a tie counts half)."""
    random = frame.filter(pl.col("strategy") == "random")
    chosen = frame.filter(pl.col("k").is_not_null() & (pl.col("strategy") != "random") & pl.col("top1").is_not_null())
    rows = []
    for row in chosen.to_dicts():
        peers = random.filter((pl.col("k") == row["k"]) & pl.col("top1").is_not_null())
        rows.append(
            {
                "k": row["k"],
                "strategy": row["strategy"],
                "random_plans": peers.height,
                "beaten_top1": _beaten(row["top1"], peers.get_column("top1").to_list()),
                # Less KL is better.
                "beaten_kl": None if row["kl"] is None else _beaten(-row["kl"], [-kl for kl in peers.get_column("kl").drop_nulls()]),
            }
        )
    schema = {"k": pl.Int64, "strategy": pl.String, "random_plans": pl.Int64, "beaten_top1": pl.Float64, "beaten_kl": pl.Float64}
    return pl.DataFrame(rows, schema=schema)


def _beaten(value: float, peers: Sequence[float]) -> float:
    return sum(1.0 if value > peer else 0.5 if value == peer else 0.0 for peer in peers)


def _outcome(result: Result, reference: Result | None) -> dict[str, Any]:
    """Status, size, report-half accuracy and the paired difference from `reference`; nulls for what there is not."""
    record, predictions = result.record, result.predictions
    row: dict[str, Any] = {"status": record.status, "reason": record.reason, "trial_id": record.trial_id}
    if record.model is not None:
        row |= {"weight_mib": record.model.weight_bytes / MIB, "file_mib": record.model.file_bytes / MIB}
    if predictions is None:
        return row
    report = ~predictions.selection
    right = (predictions.right)[report]
    interval = wilson(int(right.sum()), len(right))
    row |= {"images": len(right), "top1": float(right.mean()), "top1_low": interval.low, "top1_high": interval.high}
    if predictions.report_kl is not None:
        row["kl"] = float(predictions.report_kl.mean())
    if reference is None or reference is result or reference.predictions is None:
        return row
    outcome = compare((reference.predictions.right)[report], right)
    return row | outcome.columns()
