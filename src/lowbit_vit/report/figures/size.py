"""Figure 2: size on disk and peak memory of each arm."""

from typing import Any

import altair as alt
import polars as pl

from lowbit_vit.report.figures.style import WIDTH, finished, first_arms, named_bars, rows, weights_colour


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
