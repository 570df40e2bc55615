"""What is printed of choosing formats from data: how cheap estimates rank, who wins at equal bytes, whether losses add up, what it cost."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from lowbit_vit.report.cells import DASH, milliseconds, nats, number, percent, probability
from lowbit_vit.report.grids import Cell, Grid, Row, latency_cell
from lowbit_vit.schema.record import Record


def estimator_grid(frame: pl.DataFrame) -> Grid:
    """Kendall's tau of each estimator with what was measured, its interval below."""
    rows = []
    for _, lines in frame.group_by("weights", "direction", "units", maintain_order=True):
        found = {row["estimator"]: row for row in lines.to_dicts()}
        first = next(iter(found.values()))
        direction = "quantized alone" if first["direction"] == "only" else "spared alone"
        name = (Cell(first["weights"]), Cell(f"{first['number']} {first['units']}, each {direction}"))
        rows.append(Row((*name, *(_tau(row) for row in found.values()))))
    estimators = frame.get_column("estimator").unique(maintain_order=True).to_list()
    return Grid(headings=("weights", "measured", *estimators), rows=tuple(rows), words=frozenset({0, 1}))


def _tau(row: dict[str, Any]) -> Cell:
    interval = "" if row["tau_low"] is None else f"{number(row['tau_low'])} to {number(row['tau_high'])}"
    return Cell(number(row["kendall_tau"]), interval)


def contest_grid(frame: pl.DataFrame) -> Grid:
    """Each choice at equal bytes: flips and KL, its rank among random plans, and the paired contest with the heuristic."""
    rows = []
    for row in frame.to_dicts():
        against = DASH if row["flips_ratio"] is None else f"{number(row['flips_ratio'])} x"
        least = "" if row["detectable_flips"] is None else f", {row['detectable_flips']:.0f} could have been seen"
        note = "" if row["p_flips_holm"] is None else f"Holm p {probability(row['p_flips_holm'])}{least}"
        difference = row["kl_difference"]
        interval = "" if difference is None else f"{row['kl_difference_low']:.3g} to {row['kl_difference_high']:.3g}"
        cells = (
            Cell(str(row["k"])),
            Cell(row["strategy"]),
            Cell(str(row["flips"]), f"random plans: median {number(row['random_median_flips'], 1)}"),
            Cell(probability(row["rank_p_flips"])),
            Cell(f"{row['kl']:.3g}", f"random plans: median {nats(row['random_median_kl'])}"),
            Cell(probability(row["rank_p_kl"])),
            Cell(against, note),
            Cell(DASH if difference is None else f"{difference:.3g}", interval),
        )
        rows.append(Row(cells, records=row["trial_id"]))
    headings = (
        "k",
        "blocks chosen by",
        "flips",
        "rank p, flips",
        "KL, nats",
        "rank p, KL",
        "flips against first+last",
        "KL against first+last",
    )
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({1}), name=1)


def timed_grid(frame: pl.DataFrame) -> Grid:
    """Plans that were timed, and the uniform arms that their latency is predicted from."""
    rows = []
    for row in frame.to_dicts():
        cells = (
            Cell(row["plan"], "arm" if row["study"] == "variants" else ""),
            Cell(str(row["batch_size"])),
            Cell(number(row["weight_mib"], 3)),
            Cell(number(row["file_mib"], 3)),
            latency_cell(row),
            Cell(milliseconds(row["predicted_ms"])),
            Cell(number(row["ratio"])),
            Cell(number(row["peak_memory_mib"], 1), row["memory_is"] or ""),
            Cell(percent(row["top1"])),
        )
        rows.append(Row(cells, records=row["trial_id"]))
    headings = (
        "plan",
        "batch",
        "weights MiB",
        "file MiB",
        "P50 ms",
        "predicted, ms",
        "measured / predicted",
        "peak MiB",
        "Top-1 %, report half",
    )
    return Grid(headings=headings, rows=tuple(rows), words=frozenset({0}))


def additivity_words(fits: pl.DataFrame) -> str:
    """Whether what was measured block by block predicts whole plans; empty where no plan was run."""
    found = {row["quantity"]: row for row in fits.to_dicts()}
    parts = []
    kl, by_kl, summed = (found.get(quantity) for quantity in ("kl", "flips_per_1000 from KL", "flips_per_1000"))
    if kl is not None and kl["r2_line"] is not None:
        parts.append(f"KL: R2 {number(kl['r2_line'])}, measured {number(kl['median_ratio'])} times the sum over blocks (median)")
    if by_kl is not None and summed is not None:
        r2 = "" if by_kl["r2_identity"] is None else f"R2 {number(by_kl['r2_identity'])}, "
        parts.append(
            f"flips read off the summed KL: {r2}off by {number(by_kl['mean_error'], 1)} in 1,000 images (mean); "
            f"flips summed over blocks: off by {number(summed['mean_error'], 1)}"
        )
    return f"Predicted against measured, {fits.item(0, 'plans')} plans: {'; '.join(parts)}." if parts else ""


def pair_words(frame: pl.DataFrame) -> str:
    """Whether blocks interact, two by two; empty where no pair was run."""
    if frame.is_empty():
        return ""
    sure = frame.filter((pl.col("interaction_low") > 0) | (pl.col("interaction_high") < 0)).height
    share = frame.select((pl.col("interaction") / pl.col("summed_kl")).abs().max()).item()
    return (
        f"{frame.height} pairs of the most sensitive blocks: together they cost up to {100 * share:.0f} % more or less KL than their sum; "
        f"{sure} surely differ from it (95 % for all pairs together)."
    )


def scan_words(records: Sequence[Record], depth: int) -> str:
    """What a study's cells cost in passes of the plain model; empty where none says."""
    costs = [
        record.evaluation.block_evaluations
        for record in records
        if record.evaluation is not None and record.evaluation.block_evaluations is not None
    ]
    if not costs:
        return ""
    return f"{len(costs)} cells cost {sum(costs):,} block evaluations = {sum(costs) / depth:.1f} passes of the plain model."
