"""Figure 4: each way to choose k blocks that stay in high precision; the random plans of equal bytes are ticks in their band."""

from typing import Any

import altair as alt
import polars as pl

from lowbit_vit.report.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, WIDTH, YELLOW, named_bars, rows, unique

STRATEGIES = {
    "fully quantized": GREEN,
    "first+last": ORANGE,
    "last": YELLOW,
    "most sensitive": RED,
    "gradient": YELLOW,
    "milp": PURPLE,
    "random": GREY,
    "high precision": BLUE,
}
_VALUE_SCALE = alt.Scale(zero=False, padding=8)


def mixed(frame: pl.DataFrame, bands: pl.DataFrame) -> dict[str, Any] | None:
    """Points for the chosen plans, ticks for the random ones, their range and middle half as a band."""
    with_result = frame.filter(pl.col("top1").is_not_null()).with_columns(pl.col("trial_id").alias("records"))
    plans = with_result.filter(pl.col("k").is_not_null())
    if plans.is_empty():
        return None
    # The two ends stand in every panel: nothing spared and nothing quantized.
    ends = (
        with_result.filter(pl.col("k").is_null())
        .drop("k")
        .join(plans.select("k").unique(maintain_order=True), how="cross")
        .select(plans.columns)
    )
    names = {
        "top1": "Top-1 %, more is better",
        "kl": "KL in nats, less is better",
        "flips_per_1000": "flips in 1,000 images, less is better",
    }
    values = pl.concat([plans, ends]).with_columns(pl.col("top1") * 100)
    index = ["k", "strategy", "blocks", "records"]
    long = values.unpivot(index=index, on=list(names), variable_name="metric", value_name="value").drop_nulls("value")
    panel = pl.format("k = {}: {}", "k", pl.col("metric").replace_strict(names)).alias("panel")
    long = long.join(bands, on=["k", "metric"], how="left", maintain_order="left").with_columns(panel)
    order = unique(long.sort("k", pl.col("metric").cast(pl.Enum(list(names)))), "panel")
    long, y, height = named_bars(long.drop("metric", "plans", "median"), "strategy", list(STRATEGIES))
    chart = alt.layer(*_band(), *_plans(y), data=long).properties(width=WIDTH - 120, height=height)
    return rows(chart, column="panel", order=order, independent=("x",)) | {"usermeta": {"columns": len(names)}}


def _band() -> list[alt.Chart]:
    """The random plans' whole range, and its middle half darker."""
    rectangle = alt.Chart().mark_rect(color=GREY)
    edges = (("least", "greatest", 0.14), ("quarter", "three_quarters", 0.22))
    return [
        rectangle.encode(x=alt.X(f"mean({low}):Q", scale=_VALUE_SCALE, title=None), x2=f"mean({high}):Q", opacity=alt.value(opacity))
        for low, high, opacity in edges
    ]


def _plans(y: alt.Y) -> list[alt.Chart]:
    random = alt.datum.strategy == "random"
    colour = alt.Color("strategy:N", legend=None, scale=alt.Scale(domain=list(STRATEGIES), range=list(STRATEGIES.values())))
    points = alt.Chart().encode(
        x=alt.X("value:Q", title=None, scale=_VALUE_SCALE, axis=alt.Axis(format=".6~g", tickCount=5)),
        y=y,
        color=colour,
        tooltip=["strategy:N", alt.Tooltip("blocks:N", title="blocks spared"), alt.Tooltip("value:Q", title="value", format=".5~g")],
    )
    ticks = points.mark_tick(thickness=2, size=13, opacity=0.75).transform_filter(random)
    return [ticks, points.mark_point(filled=True, size=90, opacity=1).transform_filter(~random)]
