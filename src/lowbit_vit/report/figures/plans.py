"""What plans cost and give: each way to choose k blocks that stay in high precision, and what was predicted of each plan."""

from typing import Any

import altair as alt
import polars as pl

from lowbit_vit.report.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, WIDTH, YELLOW, configured, named_bars, rows, unique

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
    """Figure 4: points for the chosen plans, ticks for the random ones, their range and middle half as a band."""
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


# As the table names its strategies: a plan that spares nothing is "none", one of a file "plan"; high precision predicts nothing.
_ENDS = ("fully quantized", "high precision")
_COLOURS = {"none": GREEN, **{name: colour for name, colour in STRATEGIES.items() if name not in _ENDS}, "plan": BLUE}
_PANELS = (
    ("predicted_kl", "kl", "KL, nats: summed over blocks"),
    ("expected_flips_per_1000", "flips_per_1000", "flips in 1,000 images: read off the summed KL"),
    ("predicted_flips_per_1000", "flips_per_1000", "flips in 1,000 images: summed over blocks"),
    ("predicted_ms", "p50_ms", "median latency, ms: from the uniform arms"),
)


def calibration(frame: pl.DataFrame) -> dict[str, Any] | None:
    """One panel a quantity; `frame` is that of `analysis.additivity.additivity`. On the line, the prediction is right."""
    panels = [panel for columns in _PANELS if (panel := _quantity(frame, *columns)) is not None]
    return configured(alt.vconcat(*panels, spacing=22)) if panels else None


def _quantity(frame: pl.DataFrame, predicted: str, measured: str, title: str) -> alt.LayerChart | alt.FacetChart | None:
    intervals = (pl.col("expected_flips_low"), pl.col("expected_flips_high")) if predicted == "expected_flips_per_1000" else ()
    points = frame.select("plan", "strategy", *intervals, x=predicted, y=measured, records="trial_id").drop_nulls(["x", "y"])
    if points.is_empty():
        return None
    scale = alt.Scale(zero=True, nice=True)
    axis = alt.Axis(format=".4~g", tickCount=5)
    x = alt.X("x:Q", title="predicted", scale=scale, axis=axis)
    y = alt.Y("y:Q", title="measured", scale=scale, axis=alt.Axis(format=".4~g", tickCount=5, minExtent=34))
    colour = alt.Color("strategy:N", title=None, scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())))
    tooltip = [
        alt.Tooltip("plan:N"),
        alt.Tooltip("x:Q", title="predicted", format=".4~g"),
        alt.Tooltip("y:Q", title="measured", format=".4~g"),
    ]
    # The line where both are equal, drawn through the points' own values: no second data set.
    line = alt.Chart().mark_line(color=GREY, strokeDash=[4, 3]).encode(x=x, y=alt.Y("x:Q", scale=scale))
    layers: list[alt.Chart] = [line]
    if intervals:
        bars = alt.Chart().mark_rule(color=GREY, strokeWidth=1, opacity=0.35)
        layers.append(bars.encode(x=x, y=alt.Y("expected_flips_low:Q", scale=scale), y2="expected_flips_high:Q"))
    layers.append(alt.Chart().mark_point(filled=True, size=70, opacity=0.9).encode(x=x, y=y, color=colour, tooltip=tooltip))
    return alt.layer(*layers, data=points).properties(width=WIDTH - 60, height=200, title=alt.Title(title, anchor="start", fontSize=12))
