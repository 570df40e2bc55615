"""The sections' headings: each says what its section found, or names its subject where there is nothing to find it in."""

import polars as pl

from lowbit_vit.analysis.tables import Tables
from lowbit_vit.report.figures.style import FORMAT_NAMES
from lowbit_vit.report.verdict import pick_arms


def headings(tables: Tables, *, arms: int) -> dict[str, str]:
    """Heading by section; `arms` is how many the profile declares."""
    return {
        "arms": _arms(tables.paper_table, arms),
        "time": _time(tables),
        "fronts": _fronts(tables.fronts),
        "blocks": _blocks(tables.sensitivity),
        "mixed": _mixed(tables.beats_random),
    }


def _arms(table: pl.DataFrame, arms: int) -> str:
    done = table.filter(pl.col("status") == "success").get_column("row").n_unique()
    return f"Every arm: {done} of {arms} finished"


def _time(tables: Tables) -> str:
    rows = [row for row in pick_arms(tables.paper_table).low if row["wall_us"]]
    if not rows:
        return "Where the time goes"
    row = rows[0]
    if row["idle_us"] is not None:
        return f"The card waits for {100 * row['idle_us'] / row['wall_us']:.0f} % of {row['arm']} at batch {row['batch_size']}"
    same = (pl.col("arm") == row["arm"]) & (pl.col("batch_size") == row["batch_size"])
    spent = tables.kernel_classes.filter(same & (pl.col("class") == "quantize")).get_column("us").sum()
    share = 100 * spent / row["kernel_us"] if row["kernel_us"] else 0
    return f"Quantizing and dequantizing take {share:.0f} % of {row['arm']} at batch {row['batch_size']}"


def _fronts(frame: pl.DataFrame) -> str:
    panels = frame.filter(pl.col("panel").str.starts_with("arms:") & pl.col("panel").str.contains("latency"))
    if panels.is_empty():
        return "Pareto fronts"
    first = panels.filter(pl.col("panel") == panels.item(0, "panel"))
    kept = first.filter(pl.col("state") == "on the front").height
    batch = panels.item(0, "panel").rpartition(" ")[2]
    return f"{kept} of {first.height} arms {'is' if kept == 1 else 'are'} on the front of accuracy and latency at batch {batch}"


def _blocks(frame: pl.DataFrame) -> str:
    alone = frame.filter((pl.col("direction") == "only") & pl.col("kl_mean").is_not_null())
    worst = alone.sort("kl_mean", descending=True).unique("weights", keep="first", maintain_order=True)
    if worst.is_empty():
        return "Which blocks are sensitive"
    parts = [f"block {row['block']} to {FORMAT_NAMES.get(row['weights'], row['weights'])}" for row in worst.to_dicts()]
    return f"Most sensitive: {', '.join(parts)}"


def _mixed(frame: pl.DataFrame) -> str:
    chosen = frame.filter((pl.col("strategy") == "first+last") & pl.col("beaten_kl").is_not_null()).sort("k")
    if chosen.is_empty():
        return "Which blocks to spare"
    row = chosen.row(0, named=True)
    return f"Sparing first and last beats {row['beaten_kl']:g} of {row['random_plans']} random plans (KL, k = {row['k']})"
