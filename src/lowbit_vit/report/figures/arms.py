"""The figures of the arms: accuracy against latency, size and memory, time by kernel class, Pareto fronts."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from lowbit_vit.report.figures.style import (
    BLUE,
    GREEN,
    GREY,
    MOST_ARMS,
    ORANGE,
    PURPLE,
    WIDTH,
    YELLOW,
    configured,
    finished,
    first_arms,
    named_bars,
    rows,
    unique,
    weights_colour,
)

# ---------------------------------------------------------------------------------------------- accuracy against latency

_PANEL = (280, 200)  # px, in which the labels' letters have this width and height
_LETTER, _HEIGHT = 6.5, 11
_MOST_NUMBERS = 4  # at one point; the others are counted
_TOOLTIP = [
    alt.Tooltip("row:N", title="arm"),
    alt.Tooltip("weights:N"),
    alt.Tooltip("attention:N"),
    alt.Tooltip("adaptation:N"),
    alt.Tooltip("execution:N"),
    alt.Tooltip("p50_ms:Q", title="median, ms", format=".3~f"),
    alt.Tooltip("p50_low_ms:Q", title="95 % from", format=".3~f"),
    alt.Tooltip("p50_high_ms:Q", title="95 % to", format=".3~f"),
    alt.Tooltip("mean_ms:Q", title="mean, ms", format=".3~f"),
    alt.Tooltip("top1:Q", title="Top-1, %", format=".2f"),
    alt.Tooltip("top1_low:Q", title="95 % from", format=".2f"),
    alt.Tooltip("top1_high:Q", title="95 % to", format=".2f"),
]


def accuracy_against_latency(table: pl.DataFrame) -> dict[str, Any] | None:
    """Figure 1: one point an arm, one panel a batch size; the number beside a point is the row of the result table."""
    frame = finished(table).filter(pl.col("p50_ms").is_not_null())
    if frame.is_empty():
        return None
    frame = frame.with_columns((100 * pl.col(name)).alias(name) for name in ("top1", "top1_low", "top1_high"))
    batches = frame.sort("batch_size", "order").partition_by("batch_size", maintain_order=True)
    panels = [_latency_panel(batch, weights_colour(frame)) for batch in batches]
    return configured(alt.vconcat(*panels, spacing=22))


def _latency_panel(frame: pl.DataFrame, colour: alt.Color) -> alt.LayerChart | alt.FacetChart:
    # Room for the numbers beside the outermost points.
    lows = frame.select(pl.coalesce("p50_low_ms", "p50_ms").min()).item()
    highs = frame.select(pl.coalesce("p50_high_ms", "p50_ms").max()).item()
    axis = alt.Axis(tickCount=6, format="~g", labelOverlap=True)
    scale = alt.Scale(type="log", nice=False, domain=[0.9 * lows, 1.2 * highs])
    x = alt.X("p50_ms:Q", title="median latency of one call, ms (log scale)", axis=axis, scale=scale)
    y = alt.Y("top1:Q", title="Top-1, % of test images", scale=alt.Scale(zero=False), axis=alt.Axis(minExtent=24))
    shapes = alt.Shape("attention:N", title="attention kernel", legend=alt.Legend(symbolFillColor=GREY, symbolStrokeColor=GREY))
    bar = alt.Chart().mark_rule(opacity=0.4)
    across = bar.encode(x=alt.X("p50_low_ms:Q"), x2="p50_high_ms:Q", y=y, color=colour)
    upright = bar.encode(x=x, y=alt.Y("top1_low:Q"), y2="top1_high:Q", color=colour)
    points = alt.Chart().mark_point(filled=True, size=80, opacity=0.95).encode(x=x, y=y, color=colour, shape=shapes, tooltip=_TOOLTIP)
    labels = alt.Chart().mark_text(align="left", dx=7, dy=-6, fontSize=10).encode(x=x, y=y, text="label:N")
    data = frame.with_columns(pl.Series("label", joint_labels(frame))).select(
        *("label", "row", "weights", "weights_family", "attention", "adaptation", "execution", "mean_ms", "p50_ms", "p50_low_ms"),
        *("p50_high_ms", "top1", "top1_low", "top1_high", "records"),
    )
    name = f"batch {frame.item(0, 'batch_size')}"
    return alt.layer(across, upright, points, labels, data=data).properties(
        width=WIDTH - 60, height=240, title=alt.Title(name, anchor="start", fontSize=12)
    )


def joint_labels(frame: pl.DataFrame) -> list[str]:
    """Numbers that would be printed over each other are joined at the first of their points; a crowd goes without."""
    if frame.height > MOST_ARMS:
        return [""] * frame.height
    x, y = np.log(frame.get_column("p50_ms").to_numpy()), frame.get_column("top1").to_numpy()
    # Pixels, in a panel as a phone shows it; a panel of equal values has no extent.
    across = _PANEL[0] / max(float(np.ptp(x)) + 0.3, 0.4) * x
    down = _PANEL[1] / max(float(np.ptp(frame.select(pl.col("top1_low", "top1_high").fill_null(pl.col("top1"))).to_numpy())), 0.5) * y
    groups = [[index] for index in range(frame.height)]

    def apart(one: list[int], other: list[int]) -> bool:
        left, right = sorted((one, other), key=lambda group: across[group[0]])
        between = across[right[0]] - across[left[0]]
        return bool(between > _LETTER * len(_joint(frame, left)) or abs(down[one[0]] - down[other[0]]) > _HEIGHT)

    while (pair := next(((one, other) for one, other in combinations(groups, 2) if not apart(one, other)), None)) is not None:
        pair[0].extend(pair[1])
        groups.remove(pair[1])
    first = {group[0]: _joint(frame, group) for group in groups}
    return [first.get(index, "") for index in range(frame.height)]


def _joint(frame: pl.DataFrame, group: Sequence[int]) -> str:
    numbers = [str(frame.item(index, "number")) for index in sorted(group)]
    return " ".join(numbers if len(numbers) <= _MOST_NUMBERS else [*numbers[: _MOST_NUMBERS - 1], f"+{len(numbers) - _MOST_NUMBERS + 1}"])


# ------------------------------------------------------------------------------------------------------- size and memory


def size_and_memory(table: pl.DataFrame) -> dict[str, Any] | None:
    """Figure 2: bars of file size and of peak memory, at the largest batch size."""
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


# --------------------------------------------------------------------------------------------------- where the time goes

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
    """Figure 5: stacked bars, one panel a batch size. `frame` has a row for each arm, batch size and class."""
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


# --------------------------------------------------------------------------------------------------------- Pareto fronts


def pareto_fronts(frame: pl.DataFrame) -> dict[str, Any] | None:
    """Figure 6: one panel a pair of axes; `frame` is that of `analysis.pareto.pareto_fronts`.

    Points of the front are filled and joined by a step line: nothing lies above and left of it. Dominated points are hollow.
    """
    if frame.is_empty():
        return None
    # One legend for all panels: each would else bring its own.
    colour = weights_colour(frame)
    panels = [_front(panel, colour) for panel in frame.partition_by("panel", maintain_order=True)]
    return configured(alt.vconcat(*panels, spacing=22))


def _front(frame: pl.DataFrame, colour: alt.Color) -> alt.LayerChart | alt.FacetChart:
    words = frame.row(0, named=True)
    # Less KL is better: its axis is turned round, so that up is better in every panel.
    y_scale = alt.Scale(zero=False, padding=8, reverse=bool(words["less_is_better"]))
    x_scale = alt.Scale(type="log", nice=False, padding=14)
    axis = alt.Axis(format="~g", tickCount=6, labelOverlap=True)
    x = alt.X("x:Q", title=words["x_name"], scale=x_scale, axis=axis)
    y = alt.Y("y:Q", title=words["y_name"], scale=y_scale, axis=alt.Axis(format=".6~g", tickCount=5, minExtent=50))
    tooltip = [
        alt.Tooltip("name:N", title="what"),
        alt.Tooltip("x:Q", title=words["x_name"], format=",.5~g"),
        alt.Tooltip("y:Q", title=words["y_name"], format=".5~g"),
        alt.Tooltip("state:N", title="is"),
    ]
    on_front = alt.datum.state == "on the front"
    # The line in the grey of the axes: it belongs to no format.
    line = alt.Chart().mark_line(interpolate="step-after", color=GREY, strokeDash=[4, 3]).encode(x=x, y=y).transform_filter(on_front)
    dominated = alt.Chart().mark_point(size=70, strokeWidth=1.6, opacity=0.7).encode(x=x, y=y, color=colour, tooltip=tooltip)
    kept = alt.Chart().mark_point(filled=True, size=85, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip)
    layers = [line, kept.transform_filter(on_front)]
    # A layer without a point would make Vega complain of axes without an end.
    if not (frame["state"] == "on the front").all():
        layers.insert(1, dominated.transform_filter(~on_front))
    data = frame.select("name", "x", "y", "state", "weights_family", "records")
    return alt.layer(*layers, data=data).properties(
        width=WIDTH - 60, height=200, title=alt.Title(words["panel"].split(": "), anchor="start", fontSize=12)
    )
