"""Tables of the variants study: trials, arms with their seeds averaged, kernels, rooflines, memory, batch invariance, classes.

An arm is what the profile declares: its trials differ in the seed alone.
"""

from collections.abc import Sequence

import polars as pl

from lowbit_vit.analysis.frames import (
    ACCURACY,
    ENERGY,
    IDENTITY,
    INVARIANCE,
    KERNELS,
    LATENCY,
    MIB,
    PROCESSES,
    Frames,
    average_over_seeds,
    typed,
)
from lowbit_vit.analysis.latencies import ratio_of_rows
from lowbit_vit.analysis.statistics import holm

# Averaged over seeds; each also gets a `_spread` column.
_AVERAGED = ("top1", "top5", "macro_f1", "mean_ms", "p50_ms", "p95_ms", "p99_ms", "images_per_s", "peak_memory_mib")
_SIZES = ("file_mib", "weight_mib")
_TIMES = ("cpu_mean_ms", "kernel_us", "attention_us", "idle_us", "wall_us")
_MEANS_ONLY = (*_SIZES, *_TIMES, "top1_low", "top1_high", "p50_low_ms", "p50_high_ms")
_TIMED = ("mean_ms", "p50_ms", "p50_low_ms", "p50_high_ms", "p95_ms", "p99_ms", "images_per_s", "cpu_mean_ms", "idle_us", "wall_us")
_TIMES_FIRST = ("times_first", "times_first_low", "times_first_high", "times_first_p")
_COMPARED = ("lost", "gained", "difference", "p_value", "p_holm", "p_mid", "p_inferior", "p_equivalent")


def variants(frames: Frames, *, margin: float | None = None) -> pl.DataFrame:
    """One row for each trial and batch size, in the order of the arms, then seed, then batch size.

    A trial without a result has one row with its status, its reason and nulls. Where there is a trial of the baseline (the first arm)
    with the same seed, `lost`, `gained`, `difference` and `p_value` compare Top-1 with it, image by image;
    `p_holm` adjusts for the family of all these comparisons. With a margin (the profile's `statistics.margin`), `p_inferior`
    is of "worse by the margin or more" and `p_equivalent` of "different by the margin or more": small means it is not.
    """
    compared = frames.comparisons(frames.baselines, margin=margin)
    compared = compared.with_columns(pl.Series("p_holm", holm(compared["p_value"].to_list()), pl.Float64))
    table = frames.trials.join(compared, on="trial", how="left").join(frames.timings, on="trial", how="left")
    state, memory = ("seed", "status", "reason", "batch_size", *_SIZES), ("peak_memory_mib", "memory_is", "cpu_mean_ms")
    energy = ENERGY if table["joules_per_image"].count() else ()  # no columns of dashes where nothing was counted
    columns = (*IDENTITY, *state, *LATENCY, *energy, *memory, *ACCURACY, *_COMPARED, *KERNELS, "trial_id")
    return table.sort("order", "arm", "seed", "batch_size", nulls_last=True).select(columns)


def paper_table(frame: pl.DataFrame) -> pl.DataFrame:
    """All columns of the paper's table from the frame of `variants`: one row an arm and batch size, seeds averaged.

    The batch sizes of an arm are those of its successful trials. An arm of which no trial succeeded keeps one row with the
    statuses and reasons. `records` and `failed_records` name the trials. `top1_low`..`top1_high` is the mean of the seeds'
    Wilson intervals: images, not seeds, are its sampling unit; `_spread` columns show the seeds. Latencies are of the seeds that were
    measured in most processes. `times_first` is the median latency over the first arm's.
    """
    averaged = average_over_seeds(
        _of_most_processes(frame.filter(pl.col("status") == "success"), (*IDENTITY, "batch_size"), _TIMED),
        (*IDENTITY, "batch_size"),
        (*_AVERAGED, *_MEANS_ONLY, *(name for name in ENERGY if name in frame.columns)),
        pl.col("images", "samples", "memory_is").first(),
        pl.col(PROCESSES).sort_by("processes", descending=True, maintain_order=True).first(),
        pl.col("seed").cast(pl.String).str.join(" ").alias("seeds"),
        # Several seeds: the comparison of each is in `variants`; a single p value would have to pool them.
        *(pl.when(pl.len() == 1).then(pl.col(name).first()).first().alias(name) for name in _COMPARED),
        pl.lit("success").alias("status"),
        spread=_AVERAGED,
    )
    reason = pl.concat_str(pl.col("status"), pl.lit(": "), pl.col("reason").fill_null("no reason recorded"))
    failed = (
        frame.filter(pl.col("status") != "success")
        .group_by(*IDENTITY, maintain_order=True)
        .agg(
            pl.col("seed").cast(pl.String).str.join(" ").alias("failed_seeds"),
            pl.col("trial_id").str.join(" ").alias("failed_records"),
            pl.col("status").first().alias("failed_status"),
            reason.unique(maintain_order=True).str.join("; ").alias("reason"),
        )
    )
    # An arm can be in both: then its good seeds make the row and `reason` names what is missing.
    table = averaged.join(failed, on=IDENTITY, how="full", coalesce=True, nulls_equal=True)
    status = pl.coalesce("status", "failed_status").alias("status")
    return _with_times_first(table.with_columns(status).drop("failed_status").sort("order", "arm", "batch_size", nulls_last=True))


def _of_most_processes(frame: pl.DataFrame, keys: Sequence[str], timed: Sequence[str]) -> pl.DataFrame:
    """Without the timings of seeds that were measured in fewer processes than another: one process would weigh as much as six."""
    fewer = pl.col("processes") < pl.col("processes").max().over(keys)
    return frame.with_columns(pl.when(fewer).then(None).otherwise(pl.col(name)).alias(name) for name in timed)


def _with_times_first(table: pl.DataFrame) -> pl.DataFrame:
    """Add the ratio of each median latency to the first arm's at that batch size, paired by round; null where there are no rounds."""
    rows = table.to_dicts()
    first = {row["batch_size"]: row for row in rows if row["order"] == 0 and row["p50_ms"] is not None}
    ratios: list[dict[str, float | None]] = []
    for row in rows:
        base = first.get(row["batch_size"])
        ratio = ratio_of_rows(base, row) if base is not None and base is not row and row["p50_ms"] is not None else None
        found: tuple[float | None, ...] = ()
        if ratio is not None and ratio.rounds:
            ends = (None, None) if ratio.interval is None else (ratio.interval.low, ratio.interval.high)
            found = (ratio.value, *ends, ratio.p_value)
        ratios.append(dict(zip(_TIMES_FIRST, found, strict=False)))
    return table.hstack(typed(ratios, *_TIMES_FIRST))


def kernel_classes(frames: Frames) -> pl.DataFrame:
    """Where one forward's time goes: one row for each arm, batch size and kernel class, seeds averaged, microseconds."""
    keys = ("order", "arm", "device", "batch_size", "class")
    return average_over_seeds(frames.kernels.join(frames.trials, on="trial"), keys, ("us",)).sort("batch_size", "order", "class")


def rooflines(frames: Frames) -> pl.DataFrame:
    """Each latency over its roofline: the time below which this device cannot go, by the ceilings measured beside the latency.

    The roofline of a batch is max(operations / matmul ceiling, bytes / copy ceiling), `bound` which of the two it is.
    Source: Williams et al., "Roofline", 2009, https://doi.org/10.1145/1498765.1498785.

    Returns:
        One row for each arm, batch size and bound, seeds averaged. `least_mb` and `ceiling_gb_per_s` are in 10^6 bytes and 10^9
        bytes a second.
    """
    compute = 1000 * pl.col("flop") / pl.col("matmul_flops_per_s")
    memory = 1000 * pl.col("least_bytes") / pl.col("copy_bytes_per_s")
    values = {
        "p50_ms": pl.col("p50_ms"),
        "roofline_ms": pl.max_horizontal(compute, memory),
        "over_roofline": pl.col("p50_ms") / pl.max_horizontal(compute, memory),
        "gflop": pl.col("flop") / 1e9,
        "least_mb": pl.col("least_bytes") / 1e6,
        "tflop_per_s": pl.col("flop") / pl.col("p50_ms") / 1e9,
        "ceiling_tflop_per_s": pl.col("matmul_flops_per_s") / 1e12,
        "ceiling_gb_per_s": pl.col("copy_bytes_per_s") / 1e9,
    }
    bound = pl.when(compute >= memory).then(pl.lit("compute")).otherwise(pl.lit("memory"))
    keys = ("order", "arm", "device", "batch_size", "bound")
    each = frames.timings.drop_nulls("flop").with_columns(bound=bound, **values).join(frames.trials, on="trial")
    averaged = average_over_seeds(_of_most_processes(each, keys, ("p50_ms", "over_roofline", "tflop_per_s")), keys, tuple(values))
    return averaged.sort("order", "arm", "batch_size", "bound")


def memory_breakdown(frames: Frames) -> pl.DataFrame:
    """Peaks of the CUDA allocator in parts, MiB, for each arm and batch size, seeds averaged; trials on a CPU are left out.

    weights + resident + workspace + activation = peak. `resident` is what else lay on the GPU before the call: the batch of
    images, and constants of the formats; `workspace` is what cuBLAS keeps; `activation` is the rest of the peak, the kernels'
    scratch included, such as a dequantized weight; 0 in a captured int8 model whose graph takes its workspace when the activations
    are gone. `process` is NVML's figure, with the CUDA context and all libraries.
    """
    sizes = {
        "weights_mib": pl.col("weight_bytes"),
        "resident_mib": pl.col("before_bytes") - pl.col("weight_bytes"),
        "workspace_mib": pl.col("workspace_bytes"),
        "activation_mib": pl.col("peak_allocated_bytes") - pl.col("before_bytes") - pl.col("workspace_bytes"),
        "peak_mib": pl.col("peak_allocated_bytes"),
        "reserved_mib": pl.col("peak_reserved_bytes"),
        "process_mib": pl.col("process_bytes"),
    }
    parts = frames.timings.join(frames.trials, on="trial").with_columns(**{name: size / MIB for name, size in sizes.items()})
    known = parts.drop_nulls(["weights_mib", "resident_mib", "activation_mib"])
    return average_over_seeds(known, ("order", "arm", "batch_size"), tuple(sizes)).sort("order", "arm", "batch_size")


def invariances(frames: Frames) -> pl.DataFrame:
    """For each arm, over its seeds: images predicted at two batch sizes, how many flipped, the greatest difference of a logit."""
    first, second, images, flips, difference, equal = (pl.col(name) for name in INVARIANCE)
    together = frames.trials.drop_nulls(INVARIANCE).group_by("order", "arm", first, second, maintain_order=True).agg(
        images.sum().alias("images"), flips.sum(), difference.max(), equal.all(), pl.col("trial_id").str.join(" ").alias("records")
    )  # fmt: skip
    return together.sort("order", "arm")


def per_class(frames: Frames) -> pl.DataFrame:
    """One row for each arm and class of the test images: where the arm loses images against the baseline, and to what class.

    Counts are summed over an arm's seeds. `lost` and `gained` count images that the baseline of the same seed has right and the
    arm wrong, and the other way round; null for the baseline and where a seed has none. `taken_for` is the class that most of a
    class's wrong images were taken for, `taken_for_images` how many; null where none was wrong.
    """
    keys = ("order", "arm", "label")
    before = frames.predictions.select("image", reference="trial", before="right")
    images = (
        frames.predictions.join(frames.trials.select("trial", "order", "arm"), on="trial")
        .join(frames.baselines, on="trial", how="left")
        .join(before, on=["reference", "image"], how="left")
    )
    right, reference = pl.col("right"), pl.col("before")
    known = reference.is_not_null().all()
    counts = images.group_by(*keys).agg(
        pl.col("trial").n_unique().alias("seeds"),
        pl.len().alias("images"),
        right.sum().alias("correct"),
        right.mean().alias("top1"),
        pl.when(known).then((reference & ~right).sum()).alias("lost"),
        pl.when(known).then((~reference & right).sum()).alias("gained"),
    )
    wrong = images.filter(~right).group_by(*keys, "best").len().sort("len", "best", descending=[True, False])
    taken = wrong.unique(keys, keep="first", maintain_order=True).join(frames.class_names, left_on="best", right_on="label")
    taken = taken.select(*keys, taken_for="class", taken_for_images="len")
    table = counts.join(frames.class_names, on="label").join(taken, on=keys, how="left").sort(keys)
    counted = ("seeds", "images", "correct", "top1", "lost", "gained")
    return table.select(*keys, "class", *counted, "taken_for", "taken_for_images").with_columns(
        pl.selectors.unsigned_integer().cast(pl.Int64)
    )


def most_lost(frame: pl.DataFrame, *, most: int = 3) -> pl.DataFrame:
    """For each arm, the classes that lose most images against the baseline, at most `most`, none without a loss.

    Args:
        frame: as `per_class` returns it.
        most: rows an arm.
    """
    lossy = frame.filter(pl.col("lost") > 0).sort("order", "arm", "lost", "label", descending=[False, False, True, False])
    return lossy.group_by("order", "arm", maintain_order=True).head(most)
