"""Figure 1: Top-1 against latency, both with their 95 % intervals; one point an arm, one panel a batch size."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from lowbit_vit.report.figures.style import GREY, MOST_ARMS, WIDTH, configured, finished, weights_colour

_COLUMNS = (
    "label",
    "row",
    "weights",
    "weights_family",
    "attention",
    "adaptation",
    "execution",
    "mean_ms",
    "p50_ms",
    "p50_low_ms",
    "p50_high_ms",
    "top1",
    "top1_low",
    "top1_high",
    "records",
)
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
    """The figure of the arms' table; the number beside a point is the row of the result table."""
    frame = finished(table).filter(pl.col("p50_ms").is_not_null())
    if frame.is_empty():
        return None
    frame = frame.with_columns((100 * pl.col(name)).alias(name) for name in ("top1", "top1_low", "top1_high"))
    batches = frame.sort("batch_size", "order").partition_by("batch_size", maintain_order=True)
    panels = [_panel(batch, weights_colour(frame)) for batch in batches]
    return configured(alt.vconcat(*panels, spacing=22))


def _panel(frame: pl.DataFrame, colour: alt.Color) -> alt.LayerChart | alt.FacetChart:
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
    data = frame.with_columns(pl.Series("label", joint_labels(frame))).select(_COLUMNS)
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
