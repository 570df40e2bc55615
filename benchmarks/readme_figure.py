"""Accuracy against latency: docs/accuracy-latency.svg, the README's figure, from reports/reference/h200-fast. Needs no GPU.

python benchmarks/readme_figure.py
"""

import re
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import vl_convert

from lowbit_vit.analysis.tables import find
from lowbit_vit.report.figures.style import BLUE, GREY, ORANGE, configured
from lowbit_vit.schema.config import load_profile
from lowbit_vit.schema.record import write_atomic
from lowbit_vit.schema.workspace import Workspace

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "reports" / "reference" / "h200-fast"
FIGURE = ROOT / "docs" / "accuracy-latency.svg"
OURS = ("w8a8", "fp8", "nf4-fused", "nf4-fused-int8", "nf4-fused-fp8")
COLOURS = {"this project": BLUE, "bitsandbytes": ORANGE, "16 and 32 bits": GREY}


def main() -> None:
    """Draw the figure."""
    profile = load_profile(ROOT / "profiles" / "scratch.yaml")
    arms = find(profile, Workspace(root=ROOT, profile=profile.name, elsewhere=REFERENCE)).tables.paper_table
    frame = arms.filter(pl.col("status") == "success").with_columns(
        pl.when(pl.col("weights") == "none")
        .then(pl.lit("16 and 32 bits"))
        .when(pl.col("weights").is_in(OURS))
        .then(pl.lit("this project"))
        .otherwise(pl.lit("bitsandbytes"))
        .alias("kernels"),
        pl.col("top1", "top1_low", "top1_high") * 100,
    )
    fastest = pl.col("p50_ms").filter(pl.col("batch_size") == 32).first().over("arm")
    frame = frame.with_columns(fastest.alias("rank"))
    panels = [
        _panel(frame.filter(batch_size=32), "top1", "Top-1, %, with 95 % intervals", names=True),
        *(_panel(frame.filter(batch_size=batch), "p50_ms", f"median latency, batch {batch}, ms") for batch in (1, 32)),
    ]
    specification = configured(alt.hconcat(*panels, spacing=12))
    svg: str = vl_convert.vegalite_to_svg({**specification, "padding": 8, "background": "white"})
    write_atomic(FIGURE, re.sub(r' (aria-[a-z]+|role)="[^"]*"', "", svg).encode())  # the README has the alternative text
    print(FIGURE)


def _panel(frame: pl.DataFrame, column: str, title: str, *, names: bool = False) -> Any:
    """A row an arm, the fastest at batch 32 first; latencies on a log scale with their numbers."""
    rated = column == "top1"
    times: list[float] = frame["p50_ms"].to_list()
    scale = alt.Scale(zero=False) if rated else alt.Scale(type="log", domain=[0.8 * min(times), 1.9 * max(times)])
    colour = alt.Color("kernels:N", scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())), legend=alt.Legend(title=None))
    axis = alt.Axis(title=None, labelLimit=300) if names else None
    base = alt.Chart(frame.select("arm", "kernels", "p50_ms", "top1", "top1_low", "top1_high", "rank"))
    y = alt.Y("arm:N", sort=alt.EncodingSortField("rank"), axis=axis)
    x = alt.X(f"{column}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=4, format="~g"))
    points = base.mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, color=colour)
    if rated:
        beside = base.mark_rule(opacity=0.6).encode(x=alt.X("top1_low:Q", title=title, scale=scale), x2="top1_high:Q", y=y, color=colour)
    else:
        beside = base.mark_text(align="left", dx=8).encode(x=x, y=y, text=alt.Text("p50_ms:Q", format=".3~r"))
    return alt.layer(beside, points).properties(width=175, height=190)


if __name__ == "__main__":
    main()
