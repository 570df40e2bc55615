"""Figure 3 and its heat map: what quantizing one block costs, and what sparing one block leaves, for each number format."""

from typing import Any

import altair as alt
import polars as pl

from lowbit_vit.report.figures.style import FORMAT_NAMES, WIDTH, configured, rows, unique, weights_colour

_DIRECTIONS = {"only": "only this block quantized", "all_but": "all but this block quantized"}
_TOOLTIP = [
    alt.Tooltip("panel:N", title="cells"),
    alt.Tooltip("block:O"),
    alt.Tooltip("kl_mean:Q", title="KL, mean of draws", format=".3~e"),
    alt.Tooltip("kl_low:Q", title="least draw", format=".3~e"),
    alt.Tooltip("kl_high:Q", title="greatest draw", format=".3~e"),
    alt.Tooltip("interval_low:Q", title="95 % interval, low", format=".3~e"),
    alt.Tooltip("interval_high:Q", title="95 % interval, high", format=".3~e"),
    alt.Tooltip("flips_mean:Q", title="flipped predictions, mean of draws", format=".1f"),
    alt.Tooltip("draw_images:Q", title="images in a draw"),
]
_COLUMNS = (
    "panel",
    "block",
    "kl_mean",
    "kl_low",
    "kl_high",
    "interval_low",
    "interval_high",
    "sensitive",
    "flips_mean",
    "draw_images",
    "weights_family",
    "records",
)


def _scored(frame: pl.DataFrame) -> pl.DataFrame:
    """The cells of one block that have scores, with their panel's name and their record."""
    weights = pl.col("weights").replace_strict(FORMAT_NAMES, default=pl.col("weights"))
    panel = pl.format("{}: {}", weights, pl.col("direction").replace_strict(_DIRECTIONS))
    cells = frame.filter(pl.col("kl_mean").is_not_null() & pl.col("block").is_not_null())
    return cells.with_columns(panel.alias("panel"), pl.col("trial_id").alias("records")).select(_COLUMNS)


def sensitivity(frame: pl.DataFrame) -> dict[str, Any] | None:
    """Figure 3: KL of each block, one panel a format and direction; bars are 95 % intervals, diamonds the sensitive blocks."""
    scored = _scored(frame)
    if scored.is_empty():
        return None
    x = alt.X("block:O", title="encoder block", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("kl_mean:Q", title="KL, nats", scale=alt.Scale(zero=True), axis=alt.Axis(format="~g", tickCount=4, minExtent=54))
    colour = weights_colour(scored)
    spread = alt.Chart().mark_rule(strokeWidth=2, opacity=0.55).encode(x=x, y=alt.Y("interval_low:Q"), y2="interval_high:Q", color=colour)
    shape = alt.condition(alt.datum.sensitive, alt.value("diamond"), alt.value("circle"))
    size = alt.condition(alt.datum.sensitive, alt.value(110), alt.value(60))
    mark = alt.Chart().mark_point(filled=True, opacity=1)
    points = mark.encode(x=x, y=y, color=colour, shape=shape, size=size, tooltip=_TOOLTIP)
    chart = alt.layer(spread, points, data=scored).properties(width=WIDTH - 60, height=120)
    return rows(chart, column="panel", order=unique(scored, "panel"), independent=("y",))


def heat_map(frame: pl.DataFrame) -> dict[str, Any] | None:
    """Block x format and direction; colour is KL as a share of its line's greatest, so that lines of any scale can be read."""
    scored = _scored(frame)
    if scored.is_empty():
        return None
    greatest = pl.col("kl_mean").max().over("panel")
    shares = scored.with_columns(pl.when(greatest > 0).then(pl.col("kl_mean") / greatest).otherwise(0.0).alias("share"))
    # Cividis reads the same with and without colour vision; its dark end is the least.
    scale = alt.Scale(scheme="cividis", domain=[0, 1])
    legend = alt.Legend(title="share of the line's greatest KL", format=".0%", gradientLength=160)
    two_lines = alt.Axis(labelExpr="split(datum.label, ': ')", labelLimit=0)
    chart = (
        alt.Chart(shares)
        .mark_rect(stroke="#8a909a", strokeWidth=0.5)
        .encode(
            x=alt.X("block:O", title="encoder block", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("panel:N", title=None, sort=unique(shares, "panel"), axis=two_lines),
            color=alt.Color("share:Q", scale=scale, legend=legend),
            tooltip=[*_TOOLTIP, alt.Tooltip("share:Q", title="of the line's greatest", format=".0%")],
        )
        .properties(width=WIDTH - 160, height=alt.Step(38))
    )
    return configured(alt.layer(chart))
