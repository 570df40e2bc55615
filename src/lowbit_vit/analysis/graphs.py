"""Arms that a CUDA graph replays, against 16 bits with compiled blocks replayed the same way: what low bits give beyond no launches."""

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl

from lowbit_vit.analysis.arms import MIB, compared_with
from lowbit_vit.analysis.latencies import ratio_of_medians
from lowbit_vit.analysis.results import Result

MARGIN = 0.005  # of Top-1, that an arm may be worse than the reference: half a point
_SCHEMA: dict[str, Any] = {
    "order": pl.Int64, "arm": pl.String, "reference": pl.String, "seed": pl.Int64, "batch_size": pl.Int64, "p50_ms": pl.Float64,
    "times": pl.Float64, "times_low": pl.Float64, "times_high": pl.Float64, "over_weights_mib": pl.Float64, "images": pl.Int64,
    "flips": pl.Int64, "flips_of_fp32": pl.Int64, "reference_flips_of_fp32": pl.Int64, "lost": pl.Int64, "gained": pl.Int64,
    "difference": pl.Float64, "p_inferior": pl.Float64, "records": pl.String,
}  # fmt: skip


def graphs(results: Sequence[Result], *, arms: Sequence[str]) -> pl.DataFrame:
    """One row for each arm in a CUDA graph, seed and batch size; empty where no reference finished.

    The reference is the first finished arm, in the profile's order, in 16 bits with `execution: compile_graph`. `times` is its median
    latency over the arm's, with an interval. `flips` counts images with another class than the reference gives, `flips_of_fp32` with
    another than the first finished fp32 arm gives, whatever its execution; `p_inferior` is of "worse than the reference by `MARGIN` or
    more". `over_weights_mib` is the peak less the weights and cuBLAS's workspace. Comparisons are of one seed.
    """
    place = {label: index for index, label in enumerate(arms)}
    done = sorted(
        (result for result in results if result.record.status == "success"),
        key=lambda result: (place.get(result.record.trial.label, len(place)), result.record.trial.seed),
    )
    high = [result for result in done if not result.record.trial.plan.rules]
    rows: list[dict[str, Any]] = []
    for result in done:
        trial = result.record.trial
        same_seed = [other for other in high if other.record.trial.seed == trial.seed]
        reference = next(
            (other for other in same_seed if other.record.trial.execution == "compile_graph" and _dtype(other) in ("fp16", "bf16")), None
        )
        if reference is None or trial.execution not in ("cuda_graph", "compile_graph"):
            continue
        exact = next((other for other in same_seed if _dtype(other) == "fp32"), None)
        row = {
            "order": place.get(trial.label, len(place)),
            "arm": trial.label,
            "reference": reference.record.trial.label,
            "seed": trial.seed,
            "flips": _flips(result, reference),
            "flips_of_fp32": _flips(result, exact),
            "reference_flips_of_fp32": _flips(reference, exact),
            "records": " ".join(dict.fromkeys(other.record.trial_id for other in (result, reference, exact) if other is not None)),
        }
        rows += [row | _accuracy(result, reference) | timed for timed in _timings(result, reference)]
    return pl.DataFrame(rows, schema=_SCHEMA).sort("order", "arm", "seed", "batch_size")


def _dtype(result: Result) -> str:
    return result.record.trial.plan.compute_dtype


def _flips(result: Result, other: Result | None) -> int | None:
    if other is None or result.predictions is None or other.predictions is None:
        return None
    return int((result.predictions.best != other.predictions.best).sum())


def _accuracy(result: Result, reference: Result) -> dict[str, Any]:
    compared = compared_with(reference, result, margin=MARGIN)
    if not compared or result.whole is None:
        return {}
    names = ("lost", "gained", "difference", "p_inferior")
    return {"images": result.whole.images} | {name: compared[name] for name in names}


def _timings(result: Result, reference: Result) -> Iterable[dict[str, Any]]:
    """A row a batch size that both were timed at."""
    mine, theirs = result.latency, reference.latency
    measured, model = result.record.measurement, result.record.model
    for batch in mine.keys() & theirs.keys():
        ratio = ratio_of_medians(mine[batch].samples_ms, theirs[batch].samples_ms)
        memory = next((item for item in measured.memory if item.batch_size == batch), None) if measured else None
        over = None
        if memory and model and memory.peak_allocated_bytes is not None and memory.workspace_bytes is not None:
            over = (memory.peak_allocated_bytes - memory.workspace_bytes - model.weight_bytes) / MIB
        yield {
            "batch_size": batch,
            "p50_ms": mine[batch].p50_ms,
            "times": ratio.value,
            "times_low": ratio.interval.low if ratio.interval else None,
            "times_high": ratio.interval.high if ratio.interval else None,
            "over_weights_mib": over,
        }
