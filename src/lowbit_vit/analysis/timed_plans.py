"""Plans that were timed as an arm is, beside the arms of one format throughout: bytes, latency and memory, predicted and measured.

A plan's latency is predicted as `allocate` does: each block's share of what the uniform arm of its format differs by from high
precision, under the same compute dtype, attention and execution. Bytes are those of `additivity`.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl

from lowbit_vit.analysis.allocation import uniform_latencies
from lowbit_vit.analysis.arms import MIB, peak_memory
from lowbit_vit.analysis.results import Result
from lowbit_vit.schema.config import Profile
from lowbit_vit.schema.plan import Plan, linear_names

TIMED_SCHEMA: dict[str, Any] = {
    "plan": pl.String,
    "study": pl.String,
    "batch_size": pl.Int64,
    "weight_mib": pl.Float64,
    "file_mib": pl.Float64,
    "top1": pl.Float64,
    "predicted_ms": pl.Float64,
    "p50_ms": pl.Float64,
    "p50_low_ms": pl.Float64,
    "p50_high_ms": pl.Float64,
    "ratio": pl.Float64,
    "peak_memory_mib": pl.Float64,
    "memory_is": pl.String,
    "trial_id": pl.String,
}


def timed_plans(mixed: Sequence[Result], variants: Sequence[Result], profile: Profile) -> pl.DataFrame:
    """One row a timed cell of the mixed study and batch size, then the uniform arms that its prediction rests on.

    `ratio` is measured / predicted. Empty where no cell of the mixed study was timed; predictions are null where a uniform arm that
    they need was not timed (`mixed.timed` may time high precision and the plan that spares nothing itself).
    """
    cells = [result for result in mixed if result.record.measurement is not None]
    if not cells:
        return pl.DataFrame(schema=TIMED_SCHEMA)
    alike = [result for result in variants if _as_the_cells(result, cells[0])]
    rows = [row for result in (*cells, *alike) for row in _rows(result, (*alike, *cells), profile)]
    return pl.DataFrame(rows, schema=TIMED_SCHEMA).sort("batch_size", "study", "weight_mib", "plan")


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


def predicted_ms(plan: Plan, profile: Profile, timed: Sequence[Result], *, batch_size: int) -> float | None:
    """Median latency of one batch of a cell of the mixed study, eager.

    None where a uniform arm that it needs was not timed, or the mixed study has another compute dtype or attention than sensitivity,
    whose settings the uniform arms are picked by.
    """
    mixed, alone = profile.mixed, profile.sensitivity
    if (mixed.compute_dtype, mixed.attention) != (alone.compute_dtype, alone.attention):
        return None
    latencies = uniform_latencies(profile, timed, batch_size=batch_size, execution="eager")
    blocks = _blocks(plan, profile.backbone.depth)
    if not {"high", *blocks} <= set(latencies):
        return None
    high = latencies["high"]
    return high + sum((latencies[name] - high) * count / profile.backbone.depth for name, count in blocks.items())


def _rows(result: Result, timed: Sequence[Result], profile: Profile) -> list[dict[str, Any]]:
    record = result.record
    if record.measurement is None or record.model is None or result.report is None:
        return []
    rows = []
    memories = {memory.batch_size: memory for memory in record.measurement.memory}
    for latency in result.latency.values():
        expected = predicted_ms(record.trial.plan, profile, timed, batch_size=latency.batch_size)
        rows.append(
            {
                "plan": record.trial.label,
                "study": record.trial.study,
                "batch_size": latency.batch_size,
                "weight_mib": record.model.weight_bytes / MIB,
                "file_mib": record.model.file_bytes / MIB,
                "top1": result.report.top1,
                "predicted_ms": expected,
                "p50_ms": latency.p50_ms,
                "p50_low_ms": None if latency.p50_ci_ms is None else latency.p50_ci_ms.low,
                "p50_high_ms": None if latency.p50_ci_ms is None else latency.p50_ci_ms.high,
                "ratio": None if expected is None else latency.p50_ms / expected,
                **peak_memory(memories.get(latency.batch_size)),
                "trial_id": record.trial_id,
            }
        )
    return rows
