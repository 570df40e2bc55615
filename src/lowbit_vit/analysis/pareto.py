"""Pareto fronts: among the arms, and among the plans of the mixed study, what nothing else beats in both bytes or time and loss.

A point is dominated if another is at least as good in both and better in one; of equal points none dominates the other.
"""

from collections.abc import Iterable

import polars as pl


def undominated(points: Iterable[tuple[float, ...]]) -> set[tuple[float, ...]]:
    """Those that no other one dominates: at least as good in everything and better in something; less is better."""
    front: list[tuple[float, ...]] = []
    # In this order what dominates a point comes before it, and is on the front itself or dominated by what is.
    for point in sorted(set(points)):
        if not any(all(mine <= its for mine, its in zip(peer, point, strict=True)) for peer in reversed(front)):
            front.append(point)
    return set(front)


def pareto_fronts(paper_table: pl.DataFrame, mixed: pl.DataFrame, timed_plans: pl.DataFrame) -> pl.DataFrame:
    """Every panel's points: arms by file size and by median latency at each batch size; plans by bytes of weights, and by latency.

    `paper_table` needs its columns `row`, `weights_family` and `records`; `mixed` is of the report half. Plans lose KL and flips;
    their latency is that of the largest batch, of those that were timed.
    """
    arms = paper_table.filter(pl.col("status") == "success")
    percent = (100 * pl.col("top1")).alias("y")
    arm = ("row", "weights_family", "records")
    sized = arms.unique("row", keep="first", maintain_order=True)
    panels = [_panel(sized.select(*arm, percent, x="file_mib"), "arms: Top-1 against file size", "model file, MiB")]
    for batch in arms.get_column("batch_size").drop_nulls().unique().sort():
        timed = arms.filter(pl.col("batch_size") == batch).select(*arm, percent, x="p50_ms")
        panels.append(_panel(timed, f"arms: Top-1 against latency, batch {batch}", "median latency, ms"))
    name = pl.when(pl.col("k").is_null()).then("strategy").otherwise(pl.format("{}, k = {}, blocks {}", "strategy", "k", "blocks"))
    family = pl.when(pl.col("strategy") == "high precision").then(pl.lit("floating point")).otherwise(pl.lit("mixed"))
    largest = timed_plans.filter(pl.col("batch_size") == pl.col("batch_size").max()).select("trial_id", "p50_ms", "batch_size")
    latency = f"median latency, ms, batch {largest.item(0, 'batch_size')}" if largest.height else ""
    plans = mixed.join(largest, on="trial_id", how="left", maintain_order="left").select(
        "kl", "flips_per_1000", "weight_mib", "p50_ms", row=name, weights_family=family, records="trial_id"
    )
    for x, what, x_name in (("weight_mib", "bytes of weights", "weights, MiB"), ("p50_ms", "latency", latency)):
        for y, y_name in (("kl", "KL, nats"), ("flips_per_1000", "flips in 1,000 images")):
            points = plans.select(*arm, x=x, y=y)
            panels.append(
                _panel(points, f"mixed plans: {y_name.removesuffix(', nats')} against {what}", x_name, y_name=y_name, less_is_better=True)
            )
    return pl.concat(panels)


def _panel(points: pl.DataFrame, panel: str, x_name: str, *, y_name: str = "Top-1, %", less_is_better: bool = False) -> pl.DataFrame:
    points = points.drop_nulls(["x", "y"]).filter(pl.col("x") > 0)
    words = {"panel": pl.lit(panel), "x_name": pl.lit(x_name), "y_name": pl.lit(y_name), "less_is_better": pl.lit(less_is_better)}
    places = points.select("x", pl.col("y") if less_is_better else -pl.col("y")).rows()
    best = undominated(places)
    front = pl.Series([place in best for place in places], dtype=pl.Boolean)
    state = pl.when(front).then(pl.lit("on the front")).otherwise(pl.lit("dominated"))
    return points.select(**words, name="row", weights_family="weights_family", x="x", y="y", state=state, records="records")
