"""The tables of the sensitivity and mixed studies: sensitive blocks, plans, cheap estimates, contests at equal bytes, timed plans."""

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from lowbit_vit.analysis.tables import Tables
from lowbit_vit.report.columns import Column, Table
from lowbit_vit.report.number_format import (
    DASH,
    decimals,
    image_changes,
    milliseconds,
    number,
    percent,
    points,
    probability,
    significant,
    within,
)
from lowbit_vit.report.tables import latency_column, unfinished
from lowbit_vit.schema.record import Record

Row = dict[str, Any]


def agreement_table(tables: Tables) -> Table:
    """For each format and direction: the blocks that cost most, and how well the draws agree."""

    def ranked(row: Row) -> str:
        cells = tables.sensitivity.filter((pl.col("weights") == row["weights"]) & (pl.col("direction") == row["direction"]))
        # Sparing the most sensitive block leaves the least KL.
        worst = cells.sort("kl_mean", "block", descending=[row["direction"] == "only", False]).head(4)
        return ", ".join(map(str, worst.get_column("block")))

    words = {"only": "only this block quantized", "all_but": "all but this block quantized"}
    columns = (
        Column("weights", "weights", kind="name"),
        Column("cells", lambda row: words[row["direction"]], kind="words"),
        Column("most sensitive blocks, worst first", ranked, kind="words"),
        Column("Kendall's tau between draws", "kendall_tau", number),
        Column("draws", "draws"),
    )
    return Table("Agreement between draws", columns, tables.draw_agreement.to_dicts())


def block_table(frame: pl.DataFrame) -> Table:
    """Every cell of the sensitivity study."""
    words = {"reference": "nothing quantized", "all": "all blocks", "only": "only", "all_but": "all but"}
    columns = (
        Column("weights", lambda row: row["weights"] or "high precision", kind="name"),
        Column("quantized", lambda row: words[row["direction"]], kind="words"),
        Column("block", "block"),
        Column("KL, nats (range of draws)", _block_kl, significant, within("kl_low", "kl_high", significant)),
        Column("flipped images a draw", "flips_mean", decimals(1)),
        Column("Top-1 %, report half", "top1", percent),
        Column("against high precision", _or_reason("difference"), points, _paired_note),
    )
    return Table("Every cell of the sensitivity study", columns, frame.to_dicts(), records="trial_id", missing=unfinished)


def _block_kl(row: Row) -> float | None:
    kl: float | None = row["kl"] if row["kl_mean"] is None else row["kl_mean"]
    return kl


def _or_reason(name: str) -> Callable[[Row], Any]:
    """The value of a finished trial, else its status and reason."""
    return lambda row: f"{row['status']}: {row['reason']}" if unfinished(row) else row[name]


def _paired_note(row: Row) -> str:
    if row["difference"] is None:
        return ""
    interval = within("difference_low", "difference_high", points)(row)
    return f"{interval}; {image_changes(row)} images, p {probability(row['p_value'])}"


def mixed_table(tables: Tables) -> Table:
    """Each way to choose the blocks; the random plans of one k are one line with their range."""
    frame = tables.mixed
    beaten = {(row["k"], row["strategy"]): f"{row['beaten_top1']:g} of {row['random_plans']}" for row in tables.beats_random.to_dicts()}
    rows: list[Row] = []
    for k in [None, *frame.get_column("k").drop_nulls().unique().sort()]:
        of_k = frame.filter(pl.col("k").eq_missing(k))
        chosen = of_k.filter(pl.col("strategy") != "random").to_dicts()
        rows += [row | {"beaten": beaten.get((k, row["strategy"]), None if k else "")} for row in chosen]
        rows += _random_row(of_k.filter(pl.col("strategy") == "random"), tables.random_bands.filter(pl.col("k").eq_missing(k)))
    columns = (
        Column("k", "k"),
        Column("blocks chosen by", "strategy", kind="name"),
        Column("blocks spared", "blocks", kind="words"),
        Column("weights MiB", "weight_mib", decimals(3)),
        Column("Top-1 %, report half", "top1", percent, _top1_note),
        Column("against fully quantized", "difference", points, _paired_note),
        Column("KL, nats", "kl", significant, lambda row: row.get("kl_note")),
        Column("random plans beaten", _or_reason("beaten")),
    )
    return Table("Mixed precision", columns, rows, records="trial_id", missing=unfinished)


def _top1_note(row: Row) -> str:
    return row.get("top1_note") or within("top1_low", "top1_high", lambda rate: percent(rate, 1))(row)


def _random_row(random: pl.DataFrame, bands: pl.DataFrame) -> list[Row]:
    """The random plans of one k as one row of the table: medians, with their ranges as notes."""
    band = {row["metric"]: row for row in bands.to_dicts()}
    if "top1" not in band:
        return []
    top1, kl = band["top1"], band.get("kl")
    failed = random.filter(pl.col("status") != "success").height
    missing = f"; {failed} without a result" if failed else ""
    sizes = random.get_column("weight_mib").drop_nulls().unique().sort().to_list()
    row = {
        "k": top1["k"],
        "strategy": f"random, {top1['plans']} plans{missing}",
        "blocks": "see tables/mixed.csv",
        "weight_mib": " to ".join(number(size, 3) for size in dict.fromkeys([*sizes[:1], *sizes[-1:]])),
        "top1": number(top1["median"]),
        "top1_note": f"median; {within('least', 'greatest', number)(top1)}",
        "kl": kl and kl["median"],
        "kl_note": kl and within("least", "greatest", significant)(kl),
        "trial_id": " ".join(random.get_column("trial_id")),
        "status": "success",
    }
    return [dict.fromkeys(random.columns) | {"beaten": None} | row]


def byte_words(frame: pl.DataFrame) -> str:
    """Whether the plans of each k really weigh the same, and those chosen within their bytes no more, counted on the models."""
    within = pl.col("strategy").is_in(["gradient", "milp"])
    counted = frame.filter(pl.col("k").is_not_null()).drop_nulls("weight_mib")
    sizes = counted.filter(~within).group_by("k").agg(pl.col("weight_mib").n_unique()).sort("k")
    most = counted.filter(~within).group_by("k").agg(pl.col("weight_mib").max().alias("most"))
    heavier = counted.filter(within).join(most, on="k").filter(pl.col("weight_mib") > pl.col("most"))
    unequal = [str(k) for k, count in sizes.iter_rows() if count > 1]
    if sizes.is_empty():
        return "No plan's bytes were counted."
    if not heavier.is_empty():
        return f"The plan {heavier.item(0, 'strategy')} of k = {heavier.item(0, 'k')} is larger than its budget: compare it with care."
    if unequal:
        return f"The plans of k = {', '.join(unequal)} do not weigh the same: compare them with care."
    chosen = " (milp and gradient: at most as much)" if counted.filter(within).height else ""
    return f"All plans of one k weigh the same to the byte{chosen}, as counted on the models."


def estimator_table(frame: pl.DataFrame) -> Table:
    """Kendall's tau of each estimator with what was measured, its interval below."""
    estimators = frame.get_column("estimator").unique(maintain_order=True).to_list()
    rows = [
        {**lines.row(0, named=True), **dict.fromkeys(estimators), **{row["estimator"]: row for row in lines.to_dicts()}}
        for _, lines in frame.group_by("weights", "direction", "units", maintain_order=True)
    ]
    words = {"only": "quantized alone", "all_but": "spared alone"}
    columns = (
        Column("weights", "weights", kind="name"),
        Column("measured", lambda row: f"{row['number']} {row['units']}, each {words[row['direction']]}", kind="words"),
        *map(_tau_column, estimators),
    )
    return Table("Kendall's tau of cheap estimates with what was measured", columns, rows)


def _tau_column(estimator: str) -> Column:
    tau_range = within("tau_low", "tau_high", number)
    return Column(estimator, lambda row: (row[estimator] or {}).get("kendall_tau"), number, lambda row: tau_range(row[estimator]))


def contest_table(frame: pl.DataFrame) -> Table:
    """Each choice at equal bytes: flips and KL, its rank among random plans, and the paired contest with the heuristic."""
    columns = (
        Column("k", "k"),
        Column("blocks chosen by", "strategy", kind="name"),
        Column("flips", "flips", note=lambda row: f"random plans: median {number(row['random_median_flips'], 1)}"),
        Column("rank p, flips", "rank_p_flips", probability),
        Column("KL, nats", "kl", significant, lambda row: f"random plans: median {significant(row['random_median_kl'])}"),
        Column("rank p, KL", "rank_p_kl", probability),
        Column("flips against first+last", _flips_ratio, note=_flips_note),
        Column("KL against first+last", "kl_difference", significant, within("kl_difference_low", "kl_difference_high", significant)),
    )
    return Table("Who wins at equal bytes", columns, frame.to_dicts(), records="trial_id")


def _flips_ratio(row: Row) -> str:
    return DASH if row["flips_ratio"] is None else f"{number(row['flips_ratio'])} x"


def _flips_note(row: Row) -> str:
    least = "" if row["detectable_flips"] is None else f", {row['detectable_flips']:.0f} could have been seen"
    return "" if row["p_flips_holm"] is None else f"Holm p {probability(row['p_flips_holm'])}{least}"


def timed_table(frame: pl.DataFrame) -> Table:
    """Plans that were timed, and the uniform arms that their latency is predicted from."""
    columns = (
        Column("plan", "plan", note=lambda row: "arm" if row["study"] == "variants" else "", kind="name"),
        Column("batch", "batch_size"),
        Column("weights MiB", "weight_mib", decimals(3)),
        Column("file MiB", "file_mib", decimals(3)),
        latency_column("P50 ms"),
        Column("predicted, ms", "predicted_ms", milliseconds),
        Column("measured / predicted", "ratio", number),
        Column("peak MiB", "peak_memory_mib", decimals(1), "{memory_is}"),
        Column("Top-1 %, report half", "top1", percent),
    )
    return Table("Plans that were timed, beside the arms of one format", columns, frame.to_dicts(), records="trial_id")


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
