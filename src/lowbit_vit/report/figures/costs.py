"""What each arm costs, as bars: size on disk and peak memory, and one forward's time by kernel class."""

from typing import Any

import altair as alt
import polars as pl

from lowbit_vit.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    WIDTH,
    YELLOW,
    finished,
    first_arms,
    named_bars,
    rows,
    unique,
    weights_colour,
)

# Idle is the lightest: it is the absence of work.
KERNEL_CLASSES = {
    "gemm": BLUE,
    "quantize": ORANGE,
    "attention": GREEN,
    "norm_elementwise": PURPLE,
    "copy": YELLOW,
    "other": GREY,
    "idle": "#c9ced6",
}
CLASS_NAMES = {
    "gemm": "matrix products",
    "quantize": "quantize, dequantize",
    "attention": "attention",
    "norm_elementwise": "norms, elementwise",
    "copy": "copies",
    "other": "other",
    "idle": "idle: the GPU waits",
}


def time_by_class(frame: pl.DataFrame) -> dict[str, Any] | None:
    """Stacked bars, one panel a batch size. `frame` has a row for each arm, batch size and class."""
    if frame.is_empty():
        return None
    frame = first_arms(frame)
    used = [name for name in KERNEL_CLASSES if name in set(frame["class"])]
    share = pl.col("us") / pl.col("us").sum().over("row", "batch_size")
    frame = frame.with_columns(
        (pl.col("us") / 1000).alias("ms"),
        pl.when(share.is_finite()).then(share).otherwise(0.0).alias("share"),
        pl.format("batch {}, ms", "batch_size").alias("panel"),
        pl.col("class").replace_strict({name: index for index, name in enumerate(KERNEL_CLASSES)}, default=99).alias("rank"),
        pl.col("class").replace_strict(CLASS_NAMES, default=pl.col("class")).alias("class"),
    )
    frame, y, height = named_bars(frame, "row")
    scale = alt.Scale(domain=[CLASS_NAMES[name] for name in used], range=[KERNEL_CLASSES[name] for name in used])
    chart = (
        alt.Chart(frame.select("row", "order", "class", "ms", "share", "panel", "rank", "records"))
        .mark_bar(height=alt.RelativeBandSize(0.7))
        .encode(
            x=alt.X("ms:Q", title=None, stack=True, axis=alt.Axis(tickCount=7)),
            y=y,
            color=alt.Color("class:N", title=None, scale=scale, legend=alt.Legend(columns=3)),
            order="rank:Q",
            tooltip=[
                alt.Tooltip("row:N", title="arm"),
                alt.Tooltip("class:N", title="spent on"),
                alt.Tooltip("ms:Q", format=",.3f"),
                alt.Tooltip("share:Q", title="of the forward", format=".0%"),
            ],
        )
        .properties(width=WIDTH - 160, height=height)
    )
    return rows(chart, column="panel", order=unique(frame.sort("batch_size"), "panel"), independent=("x",))


def size_and_memory(table: pl.DataFrame) -> dict[str, Any] | None:
    """Bars of file size and of peak memory, at the largest batch size."""
    frame = first_arms(finished(table))
    if frame.is_empty():
        return None
    largest = max(frame.get_column("batch_size").drop_nulls(), default=None)
    memory_is = " / ".join(frame.get_column("memory_is").drop_nulls().unique(maintain_order=True))
    names = {"file_mib": "model file, MiB", "peak_memory_mib": f"{memory_is or 'peak memory'}, batch {largest}, MiB"}
    shown = frame.filter(pl.col("batch_size").eq_missing(largest)).select("row", "order", "weights_family", "records", *names)
    long = shown.unpivot(index=["row", "order", "weights_family", "records"], on=list(names), variable_name="panel", value_name="mib")
    long, y, height = named_bars(long.drop_nulls("mib").with_columns(pl.col("panel").replace_strict(names)), "row")
    x = alt.X("mib:Q", title=None, scale=alt.Scale(zero=True))
    tooltip = [alt.Tooltip("row:N", title="arm"), alt.Tooltip("mib:Q", title="MiB", format=",.2f")]
    bars = alt.Chart().mark_bar(height=alt.RelativeBandSize(0.7)).encode(x=x, y=y, color=weights_colour(frame), tooltip=tooltip)
    numbers = alt.Chart().mark_text(align="left", dx=3, fontSize=10).encode(x=x, y=y, text=alt.Text("mib:Q", format=",.4~r"))
    chart = alt.layer(bars, numbers, data=long).properties(width=WIDTH - 200, height=height)
    return rows(chart, column="panel", order=[name for name in names.values() if name in set(long["panel"])], independent=("x",))
