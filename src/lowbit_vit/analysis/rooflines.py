"""Each latency over its roofline: the time below which this device cannot go, by the ceilings measured beside the latency.

Source: Williams et al., "Roofline", 2009, https://doi.org/10.1145/1498765.1498785.
"""

from collections.abc import Iterable
from typing import Any, Literal

import polars as pl

from lowbit_vit.analysis.results import Result
from lowbit_vit.schema.record import Ceilings, Work

_KEYS: dict[str, Any] = {"order": pl.Int64, "arm": pl.String, "device": pl.String, "batch_size": pl.Int64, "bound": pl.String}
_VALUES: dict[str, Any] = {
    "p50_ms": pl.Float64,
    "roofline_ms": pl.Float64,
    "over_roofline": pl.Float64,
    "gflop": pl.Float64,
    "least_mb": pl.Float64,
    "tflop_per_s": pl.Float64,
    "ceiling_tflop_per_s": pl.Float64,
    "ceiling_gb_per_s": pl.Float64,
}


def roofline_ms(work: Work, ceilings: Ceilings) -> tuple[float, Literal["compute", "memory"]]:
    """max(operations / matmul ceiling, bytes / copy ceiling) of one batch in ms, and which of the two it is."""
    compute = 1000 * work.flop / ceilings.matmul_flops_per_s
    memory = 1000 * work.least_bytes / ceilings.copy_bytes_per_s
    return (compute, "compute") if compute >= memory else (memory, "memory")


def rooflines(results: Iterable[Result], *, arms: list[str]) -> pl.DataFrame:
    """One row for each arm and batch size whose records hold ceilings, seeds averaged; `records` names the trials.

    `least_mb` and `ceiling_gb_per_s` are in 10^6 bytes and 10^9 bytes a second.
    """
    place = {label: index for index, label in enumerate(arms)}
    rows: list[dict[str, Any]] = []
    for result in results:
        trial, measured = result.record.trial, result.record.measurement
        if measured is None:
            continue
        for work in measured.work:
            limit, bound = roofline_ms(work, measured.ceilings)
            p50_ms = result.latency[work.batch_size].p50_ms
            rows.append(
                {
                    "order": place.get(trial.label, len(place)),
                    "arm": trial.label,
                    "device": trial.device,
                    "batch_size": work.batch_size,
                    "bound": bound,
                    "p50_ms": p50_ms,
                    "roofline_ms": limit,
                    "over_roofline": p50_ms / limit,
                    "gflop": work.flop / 1e9,
                    "least_mb": work.least_bytes / 1e6,
                    "tflop_per_s": work.flop / p50_ms / 1e9,
                    "ceiling_tflop_per_s": measured.ceilings.matmul_flops_per_s / 1e12,
                    "ceiling_gb_per_s": measured.ceilings.copy_bytes_per_s / 1e9,
                    "records": result.record.trial_id,
                }
            )
    frame = pl.DataFrame(rows, schema=_KEYS | _VALUES | {"records": pl.String})
    averaged = frame.group_by(*_KEYS, maintain_order=True).agg(*(pl.col(name).mean() for name in _VALUES), pl.col("records").str.join(" "))
    return averaged.sort("order", "arm", "batch_size", "bound")
