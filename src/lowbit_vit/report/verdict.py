"""What came out, in a headline, a few sentences and the sections' headings, every number in them from the records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from lowbit_vit.analysis.claims.ledger import Judged
from lowbit_vit.analysis.latencies import ratio_of_rows
from lowbit_vit.analysis.programme import Budget
from lowbit_vit.analysis.recommendation import Recommendation
from lowbit_vit.analysis.results import Result
from lowbit_vit.analysis.statistics import compare
from lowbit_vit.analysis.tables import Findings, Tables
from lowbit_vit.report.figures.style import FORMAT_NAMES
from lowbit_vit.report.ledger import TONE_WORDS, tone_counts
from lowbit_vit.report.number_format import percent, points, process_range
from lowbit_vit.report.recommendation import Sentence, evidence, sentence, why_none, without_mixed
from lowbit_vit.schema.config import Profile


@dataclass(frozen=True)
class Trio:
    """The arms that the verdict compares: one in high precision, one in 4 bit, one in 8 bit, as far as they finished."""

    high: dict[str, Any] | None
    low: tuple[dict[str, Any], ...]


def headline(judged: Sequence[Judged], recommended: Recommendation | None) -> str:
    """How the paper's statements fare, or without a paper the recommendation; empty where there is neither."""
    if not judged:
        return "" if recommended is None else sentence(recommended)
    tones = tone_counts(judged)
    decided = tones["agrees"] + tones["fails"]
    return f"Of {len(judged)} statements, {tones['agrees']} agree, {tones['fails']} fail, {len(judged) - decided} stay undecided"


def sentences(profile: Profile, findings: Findings, judged: Sequence[Judged], recommended: Recommendation | None) -> list[Sentence]:
    """Claims where there is a paper, else the recommendation's evidence; accuracy, speed. What is missing is said in its sentence."""
    trio = pick_arms(findings.tables.paper_table)
    if judged:
        first = [Sentence("Claims", _claims(judged))]
    elif recommended is None:
        first = [Sentence("Recommended", why_none(profile))]
    else:
        first = evidence(profile, recommended, Budget("flips", 1000 * profile.statistics.margin))
        first += [] if findings.results["sensitivity"] else [without_mixed(profile)]
        first.append(Sentence("Another budget", f"lowbit-vit recommend {profile.name} --budget-mib, --budget-ms or --max-flips"))
    return [*first, Sentence("Accuracy", _accuracy(trio, findings.results["variants"])), Sentence("Speed", _speed(trio))]


def pick_arms(table: pl.DataFrame) -> Trio:
    """Of each family of weights the first finished eager arm, those that repeat a row of the paper's table first.

    Each arm is given by its row at the smallest batch size.
    """
    good = table.filter((pl.col("status") == "success") & (pl.col("execution") == "eager"))
    good = good.sort("paper_row", "order", "batch_size", nulls_last=True)

    def first(family: str) -> dict[str, Any] | None:
        return next(good.filter(pl.col("weights_family") == family).iter_rows(named=True), None)

    low = (first("NF4"), first("int8"))
    return Trio(high=first("floating point"), low=tuple(row for row in low if row is not None))


def _claims(judged: Sequence[Judged]) -> str:
    tones = tone_counts(judged)
    parts = [f"{count} {TONE_WORDS[tone]}" for tone, count in tones.items()]
    return f"of the {len(judged)} checkable statements, {_listed(parts)}."


def _accuracy(trio: Trio, results: Sequence[Result]) -> str:
    if trio.high is None or not trio.low:
        return _missing(trio)
    parts = []
    for row in trio.low:
        outcome = _paired(trio.high["arm"], row["arm"], results)
        if outcome is None:
            parts.append(f"{row['arm']} has {percent(row['top1'])} % (not the same images: no paired test)")
        else:
            difference, low, high = outcome
            parts.append(f"{row['arm']} differs by {points(difference)} points (95 % interval {points(low)} to {points(high)})")
    sizes = _listed([f"{row['file_mib'] / trio.high['file_mib']:.2f}" for row in trio.low])
    head = f"against {trio.high['arm']}, {percent(trio.high['top1'])} % of {trio.high['images']:,} test images, {_listed(parts)}"
    return f"{head}, at {sizes} times the file size."


def _paired(first: str, second: str, results: Sequence[Result]) -> tuple[float, float, float] | None:
    """Difference in Top-1 of the first seed that both arms have, with its 95 % interval; None where no seed has both."""
    found = {(result.record.trial.label, result.record.trial.seed): result for result in results if result.predictions is not None}
    for seed in sorted({seed for label, seed in found if label == first}):
        pair = [found.get((label, seed)) for label in (first, second)]
        arrays = [result.predictions for result in pair if result is not None and result.predictions is not None]
        if len(arrays) == 2:
            right = [predictions.right for predictions in arrays]
            outcome = compare(right[0], right[1])
            return outcome.difference, outcome.interval.low, outcome.interval.high
    return None


def _speed(trio: Trio) -> str:
    if trio.high is None or not trio.low:
        return _missing(trio)
    timed = [row for row in trio.low if row["p50_ms"] is not None]
    if trio.high["p50_ms"] is None or not timed:
        return "no latency was measured."
    if trio.high["host_bound"] and any(row["host_bound"] for row in timed):
        ranges = _listed([f"{row['arm']} {process_range(row)}" for row in (trio.high, *timed)])
        return f"at batch {trio.high['batch_size']} the host sets the pace, and processes differ ({ranges} ms): medians decide nothing."
    ratios = [f"{row['arm']} takes {ratio_of_rows(trio.high, row).value:.2f}" for row in timed]
    of = " (one process each)" if min(row["processes"] for row in (trio.high, *timed)) == 1 else ""
    text = f"at batch {trio.high['batch_size']}, {_listed(ratios)} times the median latency of {trio.high['arm']}{of}"
    waiting = [row for row in timed if row["idle_us"] is not None]
    if waiting and trio.high["kernel_us"]:
        kernels = _listed([f"{row['kernel_us'] / trio.high['kernel_us']:.2f}" for row in waiting])
        idle = _listed([f"{100 * row['idle_us'] / row['wall_us']:.0f}" for row in waiting])
        text += f", while the kernels take {kernels} times as long and the GPU is idle for {idle} % of the forward"
    return f"{text}."


def _missing(trio: Trio) -> str:
    what = "no arm in high precision" if trio.high is None else "no arm with low-bit weights"
    return f"{what} has finished, so there is nothing to compare."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def headings(tables: Tables, *, arms: int) -> dict[str, str]:
    """Each section's heading says what the section found, or names its subject where there is nothing to find it in.

    `arms` is how many the profile declares.
    """
    return {
        "arms": _arms_heading(tables.paper_table, arms),
        "time": _time_heading(tables),
        "fronts": _fronts_heading(tables.fronts),
        "blocks": _blocks_heading(tables.sensitivity),
        "mixed": _mixed_heading(tables.beats_random),
    }


def _arms_heading(table: pl.DataFrame, arms: int) -> str:
    done = table.filter(pl.col("status") == "success").get_column("row").n_unique()
    return f"Every arm: {done} of {arms} finished"


def _time_heading(tables: Tables) -> str:
    rows = [row for row in pick_arms(tables.paper_table).low if row["wall_us"]]
    if not rows:
        return "Where the time goes"
    row = rows[0]
    if row["idle_us"] is not None:
        return f"The GPU waits for {100 * row['idle_us'] / row['wall_us']:.0f} % of {row['arm']} at batch {row['batch_size']}"
    same = (pl.col("arm") == row["arm"]) & (pl.col("batch_size") == row["batch_size"])
    spent = tables.kernel_classes.filter(same & (pl.col("class") == "quantize")).get_column("us").sum()
    share = 100 * spent / row["kernel_us"] if row["kernel_us"] else 0
    return f"Quantizing and dequantizing take {share:.0f} % of {row['arm']} at batch {row['batch_size']}"


def _fronts_heading(frame: pl.DataFrame) -> str:
    panels = frame.filter(pl.col("panel").str.starts_with("arms:") & pl.col("panel").str.contains("latency"))
    if panels.is_empty():
        return "Pareto fronts"
    first = panels.filter(pl.col("panel") == panels.item(0, "panel"))
    kept = first.filter(pl.col("state") == "on the front").height
    batch = panels.item(0, "panel").rpartition(" ")[2]
    return f"{kept} of {first.height} arms {'is' if kept == 1 else 'are'} on the front of accuracy and latency at batch {batch}"


def _blocks_heading(frame: pl.DataFrame) -> str:
    alone = frame.filter((pl.col("direction") == "only") & pl.col("kl_mean").is_not_null())
    worst = alone.sort("kl_mean", descending=True).unique("weights", keep="first", maintain_order=True)
    if worst.is_empty():
        return "Which blocks are sensitive"
    parts = [f"block {row['block']} to {FORMAT_NAMES.get(row['weights'], row['weights'])}" for row in worst.to_dicts()]
    return f"Most sensitive: {', '.join(parts)}"


def _mixed_heading(frame: pl.DataFrame) -> str:
    chosen = frame.filter((pl.col("strategy") == "first+last") & pl.col("beaten_kl").is_not_null()).sort("k")
    if chosen.is_empty():
        return "Which blocks to spare"
    row = chosen.row(0, named=True)
    return f"Sparing first and last beats {row['beaten_kl']:g} of {row['random_plans']} random plans (KL, k = {row['k']})"
