"""The variants study as tidy frames: one row a trial and batch size, then one row an arm with its seeds averaged.

An arm is what the profile declares: its trials differ in the seed alone. Sizes are in MiB (2^20 bytes): the paper's "MB" are
MiB, as its 1157.4 for 303,406,182 fp32 parameters shows.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import compare, holm, margin_test, wilson
from lowbit_vit.schema.config import Trial
from lowbit_vit.schema.metrics import LatencySummary
from lowbit_vit.schema.record import KernelTime, Memory, Record

MIB = 2**20

_IDENTITY = ("order", "arm", "paper_row", "weights", "compute_dtype", "attention", "qkv", "adaptation", "execution", "device")
# Averaged over seeds; each also gets a `_spread` column, greatest minus least, null for a single seed.
_AVERAGED = ("top1", "top5", "macro_f1", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "images_per_s", "peak_memory_mib")
_MEANS_ONLY = (
    "file_mib",
    "weight_mib",
    "cpu_mean_ms",
    "kernel_us",
    "attention_us",
    "idle_us",
    "wall_us",
    "top1_low",
    "top1_high",
    "p50_low_ms",
    "p50_high_ms",
)
_COMPARED = ("lost", "gained", "difference", "p_value", "p_holm", "p_mid", "p_inferior", "p_equivalent")

VARIANTS_SCHEMA: dict[str, Any] = {
    "order": pl.Int64,
    "arm": pl.String,
    "paper_row": pl.Int64,
    "weights": pl.String,
    "compute_dtype": pl.String,
    "attention": pl.String,
    "qkv": pl.String,
    "adaptation": pl.String,
    "execution": pl.String,
    "device": pl.String,
    "seed": pl.Int64,
    "status": pl.String,
    "reason": pl.String,
    "batch_size": pl.Int64,
    "file_mib": pl.Float64,
    "weight_mib": pl.Float64,
    "mean_ms": pl.Float64,
    "p50_ms": pl.Float64,
    "p50_low_ms": pl.Float64,
    "p50_high_ms": pl.Float64,
    "p95_ms": pl.Float64,
    "p99_ms": pl.Float64,
    "samples": pl.Int64,
    "images_per_s": pl.Float64,
    "peak_memory_mib": pl.Float64,
    "memory_is": pl.String,
    "cpu_mean_ms": pl.Float64,
    "images": pl.Int64,
    "top1": pl.Float64,
    "top1_low": pl.Float64,
    "top1_high": pl.Float64,
    "top5": pl.Float64,
    "macro_f1": pl.Float64,
    "lost": pl.Int64,
    "gained": pl.Int64,
    "difference": pl.Float64,
    "p_value": pl.Float64,
    "p_holm": pl.Float64,
    "p_mid": pl.Float64,
    "p_inferior": pl.Float64,
    "p_equivalent": pl.Float64,
    "kernel_us": pl.Float64,
    "attention_us": pl.Float64,
    "idle_us": pl.Float64,
    "wall_us": pl.Float64,
    "launches": pl.Int64,
    "host_syncs": pl.Int64,
    "trial_id": pl.String,
}


def weights_name(trial: Trial) -> str:
    """`none` for a model that stays floating point, else the quantized format, such as nf4-dq or int8-6."""
    names = list(dict.fromkeys(rule.weights.name for rule in trial.plan.rules))
    return "none" if not names else names[0] if len(names) == 1 else "mixed"


def variants(results: Sequence[Result], *, arms: Sequence[str], margin: float | None = None) -> pl.DataFrame:
    """One row for each trial and batch size, in the order of `arms` (the profile's labels), then seed, then batch size.

    A trial without a result has one row with its status, its reason and nulls. Where there is a trial of the baseline (the first arm)
    with the same seed, `lost`, `gained`, `difference` and `p_value` compare Top-1 with it, image by image;
    `p_holm` adjusts for the family of all these comparisons. With a margin (the profile's `statistics.margin`), `p_inferior`
    is of "worse by the margin or more" and `p_equivalent` of "different by the margin or more": small means it is not.
    """
    place = {label: index for index, label in enumerate(arms)}
    baselines = {
        result.record.trial.seed: result for result in results if result.record.trial.label in arms[:1] and result.predictions is not None
    }
    compared = [compared_with(baselines.get(result.record.trial.seed), result, margin=margin) for result in results]
    adjusted = holm([against.get("p_value") for against in compared])
    rows: list[dict[str, Any]] = []
    for result, against, p_holm in zip(results, compared, adjusted, strict=True):
        trial = result.record.trial
        row = {"order": place.get(trial.label, len(place)), **_identity(result.record), **_accuracy(result)}
        row |= against | {"p_holm": p_holm}
        rows.extend(row | _measured(result, latency) for latency in result.latency.values())
        if not result.latency:
            rows.append(row)
    return pl.DataFrame(rows, schema=VARIANTS_SCHEMA).sort("order", "arm", "seed", "batch_size", nulls_last=True)


def _identity(record: Record) -> dict[str, Any]:
    trial = record.trial
    model = record.model
    return {
        "arm": trial.label,
        "paper_row": trial.paper_row,
        "weights": weights_name(trial),
        "compute_dtype": trial.plan.compute_dtype,
        "attention": trial.attention,
        "qkv": trial.qkv,
        "adaptation": trial.adaptation,
        "execution": trial.execution,
        "device": trial.device,
        "seed": trial.seed,
        "status": record.status,
        "reason": record.reason,
        "trial_id": record.trial_id,
        "file_mib": model.file_bytes / MIB if model else None,
        "weight_mib": model.weight_bytes / MIB if model else None,
    }


def _accuracy(result: Result) -> dict[str, Any]:
    whole = result.whole
    if whole is None:
        return {}
    interval = wilson(round(whole.top1 * whole.images), whole.images)
    return {
        "images": whole.images,
        "top1": whole.top1,
        "top1_low": interval.low,
        "top1_high": interval.high,
        "top5": whole.top5,
        "macro_f1": whole.macro_f1,
    }


def compared_with(baseline: Result | None, result: Result, *, margin: float | None) -> dict[str, Any]:
    """Paired comparison with the baseline, as `variants` has it; empty for the baseline itself."""
    if baseline is None or baseline is result or baseline.predictions is None or result.predictions is None:
        return {}
    outcome = compare(
        baseline.predictions.right,
        result.predictions.right,
    )
    row = {
        "lost": outcome.lost,
        "gained": outcome.gained,
        "difference": outcome.difference,
        "p_value": outcome.p_value,
        "p_mid": outcome.p_mid,
    }
    if margin is None:
        return row
    test = margin_test(outcome.lost, outcome.gained, images=outcome.images, margin=margin)
    return row | {"p_inferior": test.p_inferior, "p_equivalent": test.p_equivalent}


def _measured(result: Result, latency: LatencySummary) -> dict[str, Any]:
    batch, measured = latency.batch_size, result.record.measurement
    memory = next((item for item in measured.memory if item.batch_size == batch), None) if measured else None
    kernels = next((item for item in measured.kernels if item.batch_size == batch), None) if measured else None
    interval = latency.p50_ci_ms
    return {
        "batch_size": batch,
        "mean_ms": latency.mean_ms,
        "p50_ms": latency.p50_ms,
        "p50_low_ms": interval.low if interval else None,
        "p50_high_ms": interval.high if interval else None,
        "p95_ms": latency.p95_ms,
        "p99_ms": latency.p99_ms,
        "samples": len(latency.samples_ms),
        "images_per_s": latency.images_per_s,
        "cpu_mean_ms": latency.mean_ms if result.record.trial.device == "cpu" else None,
        **peak_memory(memory),
        **_kernels(result, kernels),
    }


def peak_memory(memory: Memory | None) -> dict[str, Any]:
    """The peak, and which of the two very different things it is."""
    if memory is None:
        return {}
    if memory.peak_allocated_bytes is not None:
        return {"peak_memory_mib": memory.peak_allocated_bytes / MIB, "memory_is": "CUDA allocator"}
    if memory.peak_resident_bytes is not None:
        return {"peak_memory_mib": memory.peak_resident_bytes / MIB, "memory_is": "resident set"}
    return {}


def _kernels(result: Result, kernels: KernelTime | None) -> dict[str, Any]:
    if kernels is None:
        return {}
    return {
        "kernel_us": sum(kernels.by_class_us.values()),
        "attention_us": kernels.by_class_us.get("attention", 0.0),
        "idle_us": result.idle_us(kernels),
        "wall_us": result.wall_us(kernels),
        "launches": kernels.launches,
        "host_syncs": kernels.host_syncs,
    }


def paper_table(frame: pl.DataFrame) -> pl.DataFrame:
    """All columns of the paper's table from the frame of `variants`: one row an arm and batch size, seeds averaged.

    The batch sizes of an arm are those of its successful trials. An arm of which no trial succeeded keeps one row with the
    statuses and reasons. `records` and `failed_records` name the trials. `top1_low`..`top1_high` is the mean of the seeds'
    Wilson intervals: images, not seeds, are its sampling unit; `_spread` columns show the seeds.
    """
    good = frame.filter(pl.col("status") == "success")
    bad = frame.filter(pl.col("status") != "success")
    averaged = good.group_by(*_IDENTITY, "batch_size", maintain_order=True).agg(
        *(pl.col(name).mean() for name in (*_AVERAGED, *_MEANS_ONLY)),
        *(
            pl.when(pl.col(name).count() > 1).then(pl.col(name).max() - pl.col(name).min()).alias(f"{name}_spread").first()
            for name in _AVERAGED
        ),
        *(pl.col(name).first() for name in ("images", "samples", "memory_is")),
        pl.col("seed").alias("seeds"),
        pl.col("trial_id").alias("records"),
        # Several seeds: the comparison of each is in `variants`; a single p value would have to pool them.
        *(pl.when(pl.len() == 1).then(pl.col(n).first()).first().alias(n) for n in _COMPARED),
        pl.lit("success").alias("status"),
    )
    failed = bad.group_by(*_IDENTITY, maintain_order=True).agg(
        pl.col("seed").alias("failed_seeds"),
        pl.col("trial_id").alias("failed_records"),
        pl.concat_str(pl.col("status"), pl.lit(": "), pl.col("reason").fill_null("no reason recorded"))
        .unique(maintain_order=True)
        .alias("why"),
        pl.col("status").first().alias("failed_status"),
    )
    # An arm can be in both: then its good seeds make the row and `reason` names what is missing.
    table = averaged.join(failed, on=list(_IDENTITY), how="full", coalesce=True, nulls_equal=True)
    return (
        table.with_columns(
            pl.coalesce("status", "failed_status").alias("status"),
            pl.col("why").list.join("; ").alias("reason"),
            *(pl.col(name).cast(pl.List(pl.String)).list.join(" ") for name in ("seeds", "failed_seeds", "records", "failed_records")),
        )
        .drop("why", "failed_status")
        .sort("order", "arm", "batch_size", nulls_last=True)
    )


def kernel_classes(results: Iterable[Result], *, arms: Sequence[str]) -> pl.DataFrame:
    """Where one forward's time goes: one row for each arm, batch size and kernel class, seeds averaged, microseconds.

    `records` names the trials that were averaged.
    """
    place = {label: index for index, label in enumerate(arms)}
    rows: list[dict[str, Any]] = []
    for result in results:
        trial, measured = result.record.trial, result.record.measurement
        for kernels in measured.kernels if measured else ():
            idle = result.idle_us(kernels)
            parts = {**kernels.by_class_us, **({} if idle is None else {"idle": idle})}
            rows.extend(
                {
                    "order": place.get(trial.label, len(place)),
                    "arm": trial.label,
                    "device": trial.device,
                    "batch_size": kernels.batch_size,
                    "class": name,
                    "us": microseconds,
                    "records": result.record.trial_id,
                }
                for name, microseconds in parts.items()
            )
    keys: dict[str, Any] = {"order": pl.Int64, "arm": pl.String, "device": pl.String, "batch_size": pl.Int64, "class": pl.String}
    frame = pl.DataFrame(rows, schema=keys | {"us": pl.Float64, "records": pl.String})
    averaged = frame.group_by(*keys, maintain_order=True).agg(pl.col("us").mean(), pl.col("records").str.join(" "))
    return averaged.sort("batch_size", "order", "class")
