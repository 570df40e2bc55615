"""What a peak of device memory is made of, and whether predictions depend on the batch: one row for each arm, seeds together."""

from collections.abc import Iterable
from typing import Any

import polars as pl

from lowbit_vit.analysis.results import Result

MIB = 2**20

_ARM: dict[str, Any] = {"order": pl.Int64, "arm": pl.String}
_PARTS = ("weights_mib", "resident_mib", "workspace_mib", "activation_mib", "peak_mib", "reserved_mib", "process_mib")


def memory_parts(results: Iterable[Result], *, arms: list[str]) -> pl.DataFrame:
    """Peaks of the CUDA allocator in parts, MiB, for each arm and batch size; records that hold no parts are left out.

    weights + resident + workspace + activation = peak. `resident` is what else lay on the card before the call: the batch of
    images, and constants of the formats; `workspace` is what cuBLAS keeps; `activation` is the rest of the peak, the kernels'
    scratch included, such as a dequantized weight; 0 in a captured int8 model whose graph takes its workspace when the activations
    are gone. `process` is NVML's figure, with the CUDA context and all libraries.
    """
    place = {label: index for index, label in enumerate(arms)}
    rows: list[dict[str, Any]] = []
    for result in results:
        record = result.record
        for memory in record.measurement.memory if record.measurement else ():
            if memory.before_bytes is None or memory.workspace_bytes is None or memory.peak_allocated_bytes is None or record.model is None:
                continue
            sizes = {
                "weights_mib": record.model.weight_bytes,
                "resident_mib": memory.before_bytes - record.model.weight_bytes,
                "workspace_mib": memory.workspace_bytes,
                "activation_mib": memory.peak_allocated_bytes - memory.before_bytes - memory.workspace_bytes,
                "peak_mib": memory.peak_allocated_bytes,
                "reserved_mib": memory.peak_reserved_bytes,
                "process_mib": memory.process_bytes,
            }
            label = record.trial.label
            identity = {"order": place.get(label, len(place)), "arm": label, "batch_size": memory.batch_size, "records": record.trial_id}
            rows.append(identity | {name: None if size is None else size / MIB for name, size in sizes.items()})
    keys = _ARM | {"batch_size": pl.Int64}
    frame = pl.DataFrame(rows, schema=keys | dict.fromkeys(_PARTS, pl.Float64) | {"records": pl.String})
    averaged = frame.group_by(*keys, maintain_order=True).agg(*(pl.col(name).mean() for name in _PARTS), pl.col("records").str.join(" "))
    return averaged.sort("order", "arm", "batch_size")


def invariances(results: Iterable[Result], *, arms: list[str]) -> pl.DataFrame:
    """For each arm, over its seeds: images predicted at two batch sizes, how many flipped, the greatest difference of a logit."""
    place = {label: index for index, label in enumerate(arms)}
    rows = [
        {
            "order": place.get(result.record.trial.label, len(place)),
            "arm": result.record.trial.label,
            "first_batch": found.batch_sizes[0],
            "second_batch": found.batch_sizes[1],
            "images": found.images,
            "flips": found.flips,
            "max_abs_logit_difference": found.max_abs_logit_difference,
            "bit_equal": found.bit_equal,
            "records": result.record.trial_id,
        }
        for result in results
        if result.record.measurement is not None and (found := result.record.measurement.invariance) is not None
    ]
    keys = _ARM | {"first_batch": pl.Int64, "second_batch": pl.Int64}
    values: dict[str, Any] = {"images": pl.Int64, "flips": pl.Int64, "max_abs_logit_difference": pl.Float64, "bit_equal": pl.Boolean}
    frame = pl.DataFrame(rows, schema=keys | values | {"records": pl.String})
    together = frame.group_by(*keys, maintain_order=True).agg(
        pl.col("images").sum(),
        pl.col("flips").sum(),
        pl.col("max_abs_logit_difference").max(),
        pl.col("bit_equal").all(),
        pl.col("records").str.join(" "),
    )
    return together.sort("order", "arm")
