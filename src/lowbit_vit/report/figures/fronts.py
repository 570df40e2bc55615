"""Pareto fronts: what is the most accurate for its bytes or its time, and what is dominated."""

from typing import Any

import altair as alt
import polars as pl

from lowbit_vit.report.figures.style import GREY, WIDTH, configured, weights_colour


def pareto_fronts(frame: pl.DataFrame) -> dict[str, Any] | None:
    """One panel a pair of axes; `frame` is that of `analysis.pareto.pareto_fronts`.

    Points of the front are filled and joined by a step line: nothing lies above and left of it. Dominated points are hollow.
    """
    if frame.is_empty():
        return None
    # One legend for all panels: each would else bring its own.
    colour = weights_colour(frame)
    panels = [_panel(panel, colour) for panel in frame.partition_by("panel", maintain_order=True)]
    return configured(alt.vconcat(*panels, spacing=22))


def _panel(frame: pl.DataFrame, colour: alt.Color) -> alt.LayerChart | alt.FacetChart:
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
