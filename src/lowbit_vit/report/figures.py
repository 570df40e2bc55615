"""The paper's four figures, in its order and meaning, and a fifth that says where the time goes.

1: Top-1 against mean latency. 2: size on disk and peak memory. 3: layer-wise sensitivity. 4: keeping the first and last
blocks in high precision, against the data's choice and random choices of as many blocks. Each is one Vega-Lite document:
drawn interactively in the page, and written as SVG and PNG.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import polars as pl
import vl_convert

from lowbit_vit.schema.record import write_atomic

# Colours that read on white and on near-black; the order is the order of the legend.
WEIGHTS = {"floating point": "#5b8fd6", "int8": "#e8853a", "NF4": "#23a47f", "mixed": "#b07cc6"}
KERNEL_CLASSES = {
    "gemm": "#5b8fd6",
    "quantize": "#e8853a",
    "attention": "#23a47f",
    "norm_elementwise": "#b07cc6",
    "copy": "#d9b23c",
    "other": "#9a9fa8",
    "idle": "#d65c5c",
}
NEUTRAL = "#8a909a"
STRATEGIES = {
    "fully quantized": WEIGHTS["NF4"],
    "first+last": "#e8853a",
    "last": "#d9b23c",
    "most sensitive": "#d65c5c",
    "random": NEUTRAL,
    "high precision": WEIGHTS["floating point"],
}
WIDTH = 620
FONT = "Helvetica, Arial, Liberation Sans, sans-serif"


@dataclass(frozen=True)
class Figure:
    """One figure. `specification` is null where the study that it shows has no finished trial; `missing` then says so."""

    name: str
    title: str
    caption: str
    specification: dict[str, Any] | None
    missing: str | None = None


def draw(figure: Figure, folder: Path) -> str | None:
    """Write `<name>.svg` and `<name>.png` (2 x, white background); returns the SVG's text with a clear background for the page.

    A figure without a specification leaves no files, not even old ones, and returns None.
    """
    if figure.specification is None:
        for stale in (folder / f"{figure.name}.svg", folder / f"{figure.name}.png"):
            stale.unlink(missing_ok=True)
        return None
    clear = vl_convert.vegalite_to_svg({**figure.specification, "background": None})
    printed = vl_convert.vegalite_to_svg({**figure.specification, "background": "white"})
    write_atomic(folder / f"{figure.name}.svg", printed.encode())
    write_atomic(folder / f"{figure.name}.png", vl_convert.svg_to_png(printed, scale=2))
    return clear


def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that needs no network; it sets `window.vegaEmbed`."""
    # The type stub misses the default. With a snippet the bundle is made anew, which takes 8 s instead of none.
    return vl_convert.javascript_bundle()  # type: ignore[call-arg]


def accuracy_against_latency(table: pl.DataFrame) -> dict[str, Any] | None:
    """Figure 1: one point an arm, one panel a batch size; the number beside a point is the row of the result table."""
    frame = _finished(table).filter(pl.col("mean_ms").is_not_null())
    if frame.is_empty():
        return None
    frame = frame.with_columns((100 * pl.col(name)).alias(name) for name in ("top1", "top1_low", "top1_high"))
    panels = [_accuracy_panel(panel) for panel in frame.sort("batch_size", "order").partition_by("batch_size", maintain_order=True)]
    return _configured(alt.vconcat(*panels, spacing=22))


def _accuracy_panel(frame: pl.DataFrame) -> alt.LayerChart | alt.FacetChart:
    latencies = frame.get_column("mean_ms")
    # Room for the numbers beside the outermost points.
    domain = [0.9 * float(latencies.to_numpy().min()), 1.2 * float(latencies.to_numpy().max())]
    title = alt.Axis(tickCount=6, format="~g", labelOverlap=True)
    x = alt.X(
        "mean_ms:Q", title="mean latency of one call, ms (log scale)", axis=title, scale=alt.Scale(type="log", nice=False, domain=domain)
    )
    y = alt.Y("top1:Q", title="Top-1, % of test images", scale=alt.Scale(zero=False), axis=alt.Axis(minExtent=24))
    colour = _weights_colour(frame)
    grey = alt.Legend(symbolFillColor=NEUTRAL, symbolStrokeColor=NEUTRAL)
    shapes = alt.Shape("attention:N", title="attention kernel", legend=grey)
    bars = alt.Chart().mark_rule(opacity=0.4).encode(x=x, y=alt.Y("top1_low:Q"), y2="top1_high:Q", color=colour)
    points = alt.Chart().mark_point(filled=True, size=80, opacity=0.95).encode(x=x, y=y, color=colour, shape=shapes, tooltip=_ARM_TOOLTIP)
    labels = alt.Chart().mark_text(align="left", dx=7, dy=-6, fontSize=10).encode(x=x, y=y, text="label:N")
    data = frame.with_columns(pl.Series("label", _joint_labels(frame))).select(_ARM_COLUMNS)
    name = f"batch {frame.item(0, 'batch_size')}"
    return alt.layer(bars, points, labels, data=data).properties(
        width=WIDTH - 60, height=240, title=alt.Title(name, anchor="start", fontSize=12)
    )


def _joint_labels(frame: pl.DataFrame) -> list[str]:
    """Numbers of points too close to be labelled apart are joined at the first of them."""
    x = np.log(frame.get_column("mean_ms").to_numpy())
    y = frame.get_column("top1").to_numpy()
    # Shares of the panel that a two-digit label takes; a panel of equal values has no extent.
    near_x = 0.05 * max(float(np.ptp(x)), 0.1)
    near_y = 0.06 * max(float(np.ptp(y)), 0.5)
    labels: list[list[str]] = []
    for index, number in enumerate(frame.get_column("number")):
        twin = next((i for i in range(index) if labels[i] and abs(x[i] - x[index]) < near_x and abs(y[i] - y[index]) < near_y), None)
        labels.append([] if twin is not None else [str(number)])
        if twin is not None:
            labels[twin].append(str(number))
    return [" ".join(numbers) for numbers in labels]


def size_and_memory(table: pl.DataFrame) -> dict[str, Any] | None:
    """Figure 2: file size and peak memory of each arm. The arms' memory at the largest batch size is shown."""
    frame = _finished(table)
    if frame.is_empty():
        return None
    largest = max(frame.get_column("batch_size").drop_nulls(), default=None)
    memory_is = " / ".join(frame.get_column("memory_is").drop_nulls().unique(maintain_order=True))
    names = {"file_mib": "model file, MiB", "peak_memory_mib": f"{memory_is or 'peak memory'}, batch {largest}, MiB"}
    shown = frame.filter(pl.col("batch_size").eq_missing(largest)).select("row", "weights_family", *names)
    long = shown.unpivot(index=["row", "weights_family"], on=list(names), variable_name="panel", value_name="mib").drop_nulls("mib")
    long = long.with_columns(pl.col("panel").replace_strict(names))
    y = alt.Y("row:N", title=None, sort=_unique(frame, "row"), axis=alt.Axis(labelLimit=190))
    x = alt.X("mib:Q", title=None, scale=alt.Scale(zero=True))
    tooltip = [alt.Tooltip("row:N", title="arm"), alt.Tooltip("mib:Q", title="MiB", format=",.2f")]
    bars = alt.Chart().mark_bar(height=alt.RelativeBandSize(0.7)).encode(x=x, y=y, color=_weights_colour(frame), tooltip=tooltip)
    numbers = alt.Chart().mark_text(align="left", dx=3, fontSize=10).encode(x=x, y=y, text=alt.Text("mib:Q", format=",.4~r"))
    chart = alt.layer(bars, numbers, data=long).properties(width=WIDTH - 200, height=alt.Step(17))
    return _rows(chart, column="panel", order=[name for name in names.values() if name in set(long["panel"])], independent=("x",))


def sensitivity(frame: pl.DataFrame) -> dict[str, Any] | None:
    """Figure 3: what quantizing one block costs, and what sparing one block leaves; bars span the draws of images."""
    scored = frame.filter(pl.col("kl_mean").is_not_null() & pl.col("block").is_not_null())
    if scored.is_empty():
        return None
    words = {"only": "only this block quantized", "all_but": "all but this block quantized"}
    panel = pl.format(
        "{}: {}", pl.col("weights").replace_strict(_FORMAT_NAMES, default=pl.col("weights")), pl.col("direction").replace_strict(words)
    )
    scored = scored.with_columns(panel.alias("panel"), pl.col("weights_family"))
    x = alt.X("block:O", title="encoder block", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("kl_mean:Q", title="KL, nats", scale=alt.Scale(zero=True), axis=alt.Axis(format="~g", tickCount=4, minExtent=44))
    colour = _weights_colour(scored)
    tooltip = [
        alt.Tooltip("block:O"),
        alt.Tooltip("kl_mean:Q", title="KL, mean of draws", format=".3~e"),
        alt.Tooltip("kl_low:Q", title="least draw", format=".3~e"),
        alt.Tooltip("kl_high:Q", title="greatest draw", format=".3~e"),
        alt.Tooltip("flips_mean:Q", title="flipped predictions, mean of draws", format=".1f"),
        alt.Tooltip("draw_images:Q", title="images in a draw"),
    ]
    spread = alt.Chart().mark_rule(strokeWidth=2, opacity=0.55).encode(x=x, y=alt.Y("kl_low:Q"), y2="kl_high:Q", color=colour)
    points = alt.Chart().mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=colour, tooltip=tooltip)
    chart = alt.layer(spread, points, data=scored.drop("reason", "trial_id")).properties(width=WIDTH - 60, height=120)
    return _rows(chart, column="panel", order=_unique(scored, "panel"), independent=("y",))


def mixed(frame: pl.DataFrame, bands: pl.DataFrame) -> dict[str, Any] | None:
    """Figure 4: each way to choose k blocks; the random plans of equal bytes are ticks, their range and middle half a band."""
    finished = frame.filter(pl.col("top1").is_not_null())
    plans = finished.filter(pl.col("k").is_not_null())
    if plans.is_empty():
        return None
    # The two ends stand in every panel: nothing spared and nothing quantized.
    ends = (
        finished.filter(pl.col("k").is_null())
        .drop("k")
        .join(plans.select("k").unique(maintain_order=True), how="cross")
        .select(plans.columns)
    )
    names = {"top1": "Top-1 %, more is better", "kl": "KL in nats, less is better"}
    values = pl.concat([plans, ends]).with_columns(pl.col("top1") * 100)
    long = values.unpivot(index=["k", "strategy", "blocks"], on=list(names), variable_name="metric", value_name="value").drop_nulls("value")
    panel = pl.format("k = {}: {}", "k", pl.col("metric").replace_strict(names)).alias("panel")
    long = long.join(bands, on=["k", "metric"], how="left", maintain_order="left").with_columns(panel)
    chart = alt.layer(*_band(), *_plans(), data=long).properties(width=WIDTH - 120, height=alt.Step(19))
    return _rows(chart, column="panel", order=_unique(long.sort("k", pl.col("metric") == "kl"), "panel"), independent=("x",))


_VALUE_SCALE = alt.Scale(zero=False, padding=8)


def _band() -> list[alt.Chart]:
    """The random plans' whole range, and its middle half darker."""
    rectangle = alt.Chart().mark_rect(color=NEUTRAL)
    edges = (("least", "greatest", 0.14), ("quarter", "three_quarters", 0.22))
    return [
        rectangle.encode(x=alt.X(f"mean({low}):Q", scale=_VALUE_SCALE, title=None), x2=f"mean({high}):Q", opacity=alt.value(opacity))
        for low, high, opacity in edges
    ]


def _plans() -> list[alt.Chart]:
    """Ticks for the random plans, points for the chosen ones."""
    random = alt.datum.strategy == "random"
    colour = alt.Color("strategy:N", legend=None, scale=alt.Scale(domain=list(STRATEGIES), range=list(STRATEGIES.values())))
    points = alt.Chart().encode(
        x=alt.X("value:Q", title=None, scale=_VALUE_SCALE, axis=alt.Axis(format=".6~g", tickCount=5)),
        y=alt.Y("strategy:N", title=None, sort=list(STRATEGIES)),
        color=colour,
        tooltip=["strategy:N", alt.Tooltip("blocks:N", title="blocks spared"), alt.Tooltip("value:Q", title="value", format=".5~g")],
    )
    ticks = points.mark_tick(thickness=2, size=13, opacity=0.75).transform_filter(random)
    return [ticks, points.mark_point(filled=True, size=90, opacity=1).transform_filter(~random)]


def time_by_class(frame: pl.DataFrame) -> dict[str, Any] | None:
    """Figure 5: one forward's time by kernel class, and idle time on a GPU; one panel a batch size."""
    if frame.is_empty():
        return None
    used = [name for name in KERNEL_CLASSES if name in set(frame["class"])]
    frame = frame.with_columns(
        (pl.col("us") / 1000).alias("ms"),
        pl.format("batch {}, ms", "batch_size").alias("panel"),
        pl.col("class").replace_strict({name: index for index, name in enumerate(KERNEL_CLASSES)}, default=99).alias("rank"),
    )
    colour = alt.Color(
        "class:N", title=None, scale=alt.Scale(domain=used, range=[KERNEL_CLASSES[name] for name in used]), legend=alt.Legend(columns=4)
    )
    chart = (
        alt.Chart(frame)
        .mark_bar(height=alt.RelativeBandSize(0.7))
        .encode(
            x=alt.X("ms:Q", title=None, stack=True, axis=alt.Axis(tickCount=7)),
            y=alt.Y("row:N", title=None, sort=_unique(frame, "row"), axis=alt.Axis(labelLimit=190)),
            color=colour,
            order="rank:Q",
            tooltip=[alt.Tooltip("row:N", title="arm"), "class:N", alt.Tooltip("ms:Q", format=",.3f")],
        )
        .properties(width=WIDTH - 160, height=alt.Step(17))
    )
    return _rows(chart, column="panel", order=_in_order(frame, "panel", by="batch_size"), independent=("x",))


_FORMAT_NAMES = {"nf4": "NF4", "nf4-dq": "NF4, double quantization", "int8-0": "int8, threshold 0", "int8-6": "int8, threshold 6"}
_ARM_COLUMNS = (
    "label",
    "row",
    "weights",
    "weights_family",
    "attention",
    "adaptation",
    "execution",
    "mean_ms",
    "p50_ms",
    "top1",
    "top1_low",
    "top1_high",
)
_ARM_TOOLTIP = [
    alt.Tooltip("row:N", title="arm"),
    alt.Tooltip("weights:N"),
    alt.Tooltip("attention:N"),
    alt.Tooltip("adaptation:N"),
    alt.Tooltip("execution:N"),
    alt.Tooltip("mean_ms:Q", title="mean, ms", format=".3f"),
    alt.Tooltip("top1:Q", title="Top-1, %", format=".2f"),
    alt.Tooltip("top1_low:Q", title="95 % from", format=".2f"),
    alt.Tooltip("top1_high:Q", title="95 % to", format=".2f"),
]


def _finished(table: pl.DataFrame) -> pl.DataFrame:
    return table.filter(pl.col("status") == "success")


def _unique(frame: pl.DataFrame, column: str) -> list[str]:
    return frame.get_column(column).unique(maintain_order=True).to_list()


def _in_order(frame: pl.DataFrame, column: str, *, by: str) -> list[str]:
    return _unique(frame.sort(by), column)


def _weights_colour(frame: pl.DataFrame) -> alt.Color:
    used = [name for name in WEIGHTS if name in set(frame["weights_family"])]
    scale = alt.Scale(domain=used, range=[WEIGHTS[name] for name in used])
    return alt.Color("weights_family:N", title="weights", scale=scale, legend=alt.Legend(columns=4, symbolOpacity=1))


def _rows(
    chart: alt.LayerChart | alt.FacetChart | alt.Chart, *, column: str, order: Sequence[str], independent: Sequence[str]
) -> dict[str, Any]:
    """Panels below each other, so that a phone shows them as well as a desk does."""
    header = alt.Header(title=None, labelOrient="top", labelAnchor="start", labelFontWeight="bold", labelPadding=4)
    scales: dict[str, Any] = dict.fromkeys(independent, "independent")
    return _configured(chart.facet(row=alt.Row(f"{column}:N", sort=list(order), header=header), spacing=18).resolve_scale(**scales))


def _configured(chart: alt.FacetChart | alt.VConcatChart) -> dict[str, Any]:
    """One look for all figures; the page's style sheet recolours text and grid in the dark."""
    grey = "#dfe3e8"
    configured = (
        chart.configure(background="transparent", font=FONT, padding=4)
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=11, titleFontSize=11, titleFontWeight="normal", gridColor=grey, domainColor=NEUTRAL, tickColor=NEUTRAL
        )
        .configure_legend(orient="bottom", labelFontSize=11, titleFontSize=11, titleFontWeight="normal", symbolLimit=20)
        .configure_header(labelFontSize=12)
    )
    result: dict[str, Any] = configured.to_dict()
    return result
