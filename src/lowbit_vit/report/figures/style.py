"""One look for all figures: colours that the colour-blind tell apart, on white and on near-black, and panels below each other."""

import textwrap
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import altair as alt
import polars as pl

from lowbit_vit.schema.plan import FAMILIES

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), its blue and grey lightened to read on near-black too.
BLUE, ORANGE, GREEN, PURPLE, YELLOW, RED, GREY = "#4f93d1", "#e69f00", "#009e73", "#cc79a7", "#d6c52e", "#d55e00", "#8a909a"
WEIGHTS = dict(zip(FAMILIES, cycle((BLUE, ORANGE, GREEN, YELLOW, RED, GREY)), strict=False)) | {"mixed": PURPLE}
FORMAT_NAMES = {"nf4": "NF4", "nf4-dq": "NF4, double quantization", "int8-0": "int8, threshold 0", "int8-6": "int8, threshold 6"}
WIDTH = 620
# Bars of more arms than this would make a figure nobody reads; the caption says so, and the table has them all.
MOST_ARMS = 40
# Arms by their place, and not by a list of their names: Vega compiles such a list into code, and a name may hold anything.
BY_ORDER = alt.EncodingSortField(field="order", op="min", order="ascending")
# A longer name would leave a phone's screen no room for the bars beside it.
_LINE = 28
FONT = "Helvetica, Arial, Liberation Sans, sans-serif"


def finished(table: pl.DataFrame) -> pl.DataFrame:
    """The arms with a result."""
    return table.filter(pl.col("status") == "success")


def first_arms(frame: pl.DataFrame) -> pl.DataFrame:
    """At most `MOST_ARMS` arms, in the profile's order; the frame has a column `order`."""
    kept = frame.get_column("order").unique().sort().head(MOST_ARMS)
    return frame.filter(pl.col("order").is_in(kept.implode()))


def named_bars(
    frame: pl.DataFrame, column: str, sort: alt.EncodingSortField | list[str] = BY_ORDER
) -> tuple[pl.DataFrame, alt.Y, alt.Step]:
    """The frame with a column's names broken into lines, their axis, and the height of a bar beside the most lines."""
    lines = frame.with_columns(pl.col(column).map_elements(lambda name: "\n".join(textwrap.wrap(name, _LINE)), return_dtype=pl.String))
    most = max((name.count("\n") for name in lines.get_column(column)), default=0)
    axis = alt.Axis(labelLimit=0, labelExpr="split(datum.label, '\\n')")
    return lines, alt.Y(f"{column}:N", title=None, sort=sort, axis=axis), alt.Step(17 + 13 * most)


def cut_words(frame: pl.DataFrame) -> str:
    """Which arms a figure of bars leaves out; empty if none."""
    arms = frame.get_column("order").n_unique()
    return f" The first {MOST_ARMS} of {arms} arms are shown." if arms > MOST_ARMS else ""


def unique(frame: pl.DataFrame, column: str) -> list[str]:
    """A column's values in the order of their first row."""
    return frame.get_column(column).unique(maintain_order=True).to_list()


def weights_colour(frame: pl.DataFrame) -> alt.Color:
    """Colour by the family of the weights' format, with only the used ones in the legend."""
    used = [name for name in WEIGHTS if name in set(frame["weights_family"])]
    scale = alt.Scale(domain=used, range=[WEIGHTS[name] for name in used])
    return alt.Color("weights_family:N", title="weights", scale=scale, legend=alt.Legend(columns=4, symbolOpacity=1))


def rows(
    chart: alt.LayerChart | alt.FacetChart | alt.Chart, *, column: str, order: Sequence[str], independent: Sequence[str]
) -> dict[str, Any]:
    """Panels below each other, so that a phone shows them as well as a desk does."""
    header = alt.Header(title=None, labelOrient="top", labelAnchor="start", labelFontWeight="bold", labelPadding=4)
    scales: dict[str, Any] = dict.fromkeys(independent, "independent")
    return configured(chart.facet(row=alt.Row(f"{column}:N", sort=list(order), header=header), spacing=18).resolve_scale(**scales))


def configured(chart: alt.FacetChart | alt.HConcatChart | alt.VConcatChart | alt.LayerChart) -> dict[str, Any]:
    """The specification with the common look; the page's style sheet recolours text and grid in the dark."""
    grey = "#dfe3e8"
    small: dict[str, Any] = {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}
    # In one call: each one copies the chart with its data.
    with_look = chart.configure(
        background="transparent",
        font=FONT,
        padding=4,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(**small, gridColor=grey, domainColor=GREY, tickColor=GREY),
        legend=alt.LegendConfig(**small, orient="bottom", symbolLimit=20),
        header=alt.HeaderConfig(labelFontSize=12),
    )
    result: dict[str, Any] = with_look.to_dict()
    result["datasets"] = {name: [_rounded(row) for row in data] for name, data in result["datasets"].items()}
    return result


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Six significant digits: a pixel shows fewer, and the page carries every figure's numbers."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}
