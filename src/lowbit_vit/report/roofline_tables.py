"""The tables of what stands beside the latencies: execution, CUDA graphs, rooflines, parts of the memory peaks, batch invariance."""

from typing import Any

import polars as pl

from lowbit_vit.analysis.cuda_graph_speedup import MARGIN
from lowbit_vit.analysis.latencies import Ratio, ratio_of_rows
from lowbit_vit.report.columns import Column, Table
from lowbit_vit.report.number_format import decimals, image_changes, milliseconds, number, points, probability, process_words, within

Row = dict[str, Any]
_ARM = (Column("#", lambda row: row["order"] + 1), Column("arm", "arm", kind="name"))
_TIMED_ARM = (*_ARM, Column("batch", "batch_size"), Column("P50 ms", "p50_ms", milliseconds))


def execution_table(table: pl.DataFrame) -> Table:
    """Arms that differ in their execution alone, eager against graph: what replaying or compiling the same kernels saves."""
    same = ("weights", "compute_dtype", "attention", "qkv", "adaptation", "device", "batch_size")
    good = table.filter((pl.col("status") == "success") & pl.col("p50_ms").is_not_null())
    eager = good.filter(pl.col("execution") == "eager").unique(list(same), keep="first", maintain_order=True)
    pairs = eager.join(good.filter(pl.col("execution") != "eager"), on=list(same), suffix="_twin", maintain_order="left")
    columns = (
        Column("arm", "arm", note="{execution_twin}: {arm_twin}", kind="name"),
        Column("batch", "batch_size"),
        Column("eager, P50 ms", "p50_ms", milliseconds, lambda row: _idle(row["idle_us"], row["wall_us"])),
        Column("graph or compiled, P50 ms", "p50_ms_twin", milliseconds, lambda row: _idle(row["idle_us_twin"], row["wall_us_twin"])),
        Column("eager / graph", lambda row: _over_twin(row).value, number, _over_twin_note),
    )
    return Table("Eager against graph", columns, pairs.to_dicts(), records=lambda row: f"{row['records']} {row['records_twin']}")


def _over_twin(row: Row) -> Ratio:
    twin = {name: row[f"{name}_twin"] for name in ("p50_ms", "process_medians_ms")}
    return ratio_of_rows(twin, row)


def _over_twin_note(row: Row) -> str:
    interval = _over_twin(row).interval
    return "" if interval is None else f"{number(interval.low)} to {number(interval.high)}"


def _idle(idle_us: float | None, wall_us: float | None) -> str:
    return "" if idle_us is None or not wall_us else f"idle {100 * idle_us / wall_us:.0f} %"


def graph_table(frame: pl.DataFrame) -> Table:
    """One line for each arm in a CUDA graph, seed and batch size, beside the reference."""
    columns = (
        *_TIMED_ARM,
        Column("times the reference", _times, decimals(3), within("times_low", "times_high", decimals(3))),
        Column("other class than fp32's", "flips_of_fp32", note="the reference {reference_flips_of_fp32}"),
        Column("against the reference, points", "difference", points, _accuracy_note),
        Column("peak over weights and cuBLAS, MiB", "over_weights_mib", decimals(1)),
    )
    return Table("Low bits without launches", columns, frame.to_dicts(), records="records")


def _times(row: Row) -> float | str:
    return "reference" if row["arm"] == row["reference"] else float(row["times"])


def _accuracy_note(row: Row) -> str:
    return f"{image_changes(row)} images, p {probability(row['p_inferior'])}"


def graph_words(frame: pl.DataFrame) -> str:
    """What the table compares with what."""
    if frame.is_empty():
        return ""
    return (
        f"The reference is {frame.item(0, 'reference')}: times is its median latency over the arm's, with a 95 % interval. "
        f"{process_words(frame['processes'])} "
        f"p is of worse than the reference by {100 * MARGIN:g} points or more, by Tango's score test."
    )


def roofline_table(frame: pl.DataFrame) -> Table:
    """One line an arm and batch size: the median latency, the device's own limit, and how far above it the arm is."""
    columns = (
        *_TIMED_ARM,
        Column("roofline ms", "roofline_ms", milliseconds, "bound by {bound}"),
        Column("P50 / roofline", "over_roofline", decimals(1)),
        Column("TFLOP/s", "tflop_per_s", _tflops),
        Column("matmul ceiling, TFLOP/s", "ceiling_tflop_per_s", _tflops),
        Column("copy ceiling, GB/s", "ceiling_gb_per_s", decimals(0)),
    )
    return Table("Latency over its roofline", columns, frame.to_dicts(), records="records")


def _tflops(value: float) -> str:
    return number(value, 1 if value >= 1 else 4)


def memory_table(frame: pl.DataFrame) -> Table:
    """One line an arm and batch size: the parts of the peak, MiB."""
    columns = (
        *_TIMED_ARM[:-1],
        Column("weights", "weights_mib", decimals(1)),
        Column("images, constants", "resident_mib", decimals(1)),
        Column("cuBLAS", "workspace_mib", decimals(1)),
        Column("activations, scratch", "activation_mib", decimals(1)),
        Column("peak MiB", "peak_mib", decimals(1)),
        Column("process MiB (NVML)", "process_mib", decimals(1)),
    )
    return Table("What the memory peaks are made of", columns, frame.to_dicts(), records="records")


def invariance_table(frame: pl.DataFrame) -> Table:
    """One line an arm: whether the same images get the same logits at two batch sizes."""
    columns = (
        *_ARM,
        Column("batches", lambda row: f"{row['first_batch']}, {row['second_batch']}"),
        Column("images", "images"),
        Column("flipped", "flips"),
        Column("greatest difference of a logit", "max_abs_logit_difference", "{:.2g}".format),
        Column("equal to the bit", lambda row: "yes" if row["bit_equal"] else "no"),
    )
    return Table("Predictions at two batch sizes", columns, frame.to_dicts(), records="records")
