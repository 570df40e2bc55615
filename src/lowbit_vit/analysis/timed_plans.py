"""Plans that were timed as an arm is, beside the arms of one format throughout: bytes, latency and memory, predicted and measured.

A plan's latency is predicted as `allocate` does: each block's share of what the uniform arm of its format differs by from high
precision, under the same compute dtype, attention and execution. Bytes are those of `additivity`.
"""

from collections.abc import Sequence

import polars as pl

from lowbit_vit.analysis.allocation import uniform_latencies
from lowbit_vit.analysis.frames import Frames
from lowbit_vit.analysis.results import Result
from lowbit_vit.schema.config import Execution, Profile
from lowbit_vit.schema.plan import Plan, linear_names


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
