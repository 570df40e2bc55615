"""Arms that a CUDA graph replays, against 16 bits with compiled blocks replayed the same way: what low bits give beyond no launches."""

import polars as pl

from lowbit_vit.analysis.frames import MIB, Frames
from lowbit_vit.analysis.latencies import latency_ratio

MARGIN = 0.005  # of Top-1, that an arm may be worse than the reference: half a point


def cuda_graph_speedup(frames: Frames) -> pl.DataFrame:
    """One row for each arm in a CUDA graph, seed and batch size; empty where no reference finished.

    The reference is the first finished arm, in the profile's order, in 16 bits with `execution: compile_graph`. `times` is its median
    latency over the arm's, with an interval, paired by round where both were measured in several processes (`times_p`: sign test).
    `flips` counts images with another class than the reference gives, `flips_of_fp32` with another than the first finished fp32 arm
    gives, whatever its execution; `p_inferior` is of "worse than the reference by `MARGIN` or more". `over_weights_mib` is the peak less
    the weights and cuBLAS's workspace. Comparisons are of one seed.
    """
    done = frames.trials.drop("flips").filter(pl.col("status") == "success").sort("order", "seed", maintain_order=True)
    high = done.filter(pl.col("weights") == "none")
    compiled = high.filter((pl.col("execution") == "compile_graph") & pl.col("compute_dtype").is_in(["fp16", "bf16"]))
    reference = compiled.unique("seed", keep="first", maintain_order=True)
    fp32 = high.filter(pl.col("compute_dtype") == "fp32").unique("seed", keep="first", maintain_order=True)
    replayed = (
        done.filter(pl.col("execution").is_in(["cuda_graph", "compile_graph"]))
        .join(reference.select("seed", reference="trial", reference_arm="arm", reference_id="trial_id"), on="seed")
        .join(fp32.select("seed", fp32="trial", fp32_id="trial_id"), on="seed", how="left")
    )
    pairs = {"flips": ("trial", "reference"), "flips_of_fp32": ("trial", "fp32"), "reference_flips_of_fp32": ("reference", "fp32")}
    for name, pair in pairs.items():
        asked = replayed.select(pl.col(pair[0]).alias("trial"), pl.col(pair[1]).alias("reference")).drop_nulls().unique()
        flips = frames.changes(asked).select(
            pl.col("trial").alias(pair[0]), pl.col("reference").alias(pair[1]), pl.col("flips").alias(name)
        )
        replayed = replayed.join(flips, on=pair, how="left")
    others = replayed.select("trial", "reference").filter(pl.col("trial") != pl.col("reference"))
    compared = frames.comparisons(others, margin=MARGIN)
    theirs = frames.timings.select("batch_size", reference="trial")
    timed = (
        replayed.join(compared, on=["trial", "reference"], how="left")
        .join(frames.timings, on="trial")
        .join(theirs, on=["reference", "batch_size"])
    )
    ratios = [
        latency_ratio(*(frames.results[trial].latency[batch] for trial in pair), one_run=True)
        for *pair, batch in timed.select("trial", "reference", "batch_size").rows()
    ]
    limits = [(None, None) if ratio.interval is None else (ratio.interval.low, ratio.interval.high) for ratio in ratios]
    peak = pl.col("peak_allocated_bytes") - pl.col("workspace_bytes") - pl.col("weight_bytes")
    ids = pl.concat_list("trial_id", "reference_id", "fp32_id").list.drop_nulls().list.unique(maintain_order=True)
    table = timed.with_columns(
        pl.Series("times", [ratio.value for ratio in ratios], pl.Float64),
        pl.Series("times_low", [low for low, _ in limits], pl.Float64),
        pl.Series("times_high", [high for _, high in limits], pl.Float64),
        pl.Series("times_p", [ratio.p_value for ratio in ratios], pl.Float64),
        pl.col("reference_arm").alias("reference"),
        (peak / MIB).alias("over_weights_mib"),
        pl.when(pl.col("lost").is_not_null()).then("images").alias("images"),
        ids.list.join(" ").alias("records"),
    )
    times = ("batch_size", "p50_ms", "processes", "times", "times_low", "times_high", "times_p", "over_weights_mib")
    accuracy = ("images", *pairs, "lost", "gained", "difference", "p_inferior")
    return table.select("order", "arm", "reference", "seed", *times, *accuracy, "records").sort("order", "arm", "seed", "batch_size")
