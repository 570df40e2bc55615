"""Figure 8: what was predicted of each mixed plan, and what was measured of it."""

from typing import Any

import altair as alt
import polars as pl

from lowbit_vit.report.figures.mixed import STRATEGIES
from lowbit_vit.report.figures.style import BLUE, GREEN, GREY, WIDTH, configured

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
    panels = [panel for columns in _PANELS if (panel := _panel(frame, *columns)) is not None]
    return configured(alt.vconcat(*panels, spacing=22)) if panels else None


def _panel(frame: pl.DataFrame, predicted: str, measured: str, title: str) -> alt.LayerChart | alt.FacetChart | None:
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
