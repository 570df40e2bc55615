"""Two runs compared, arm by arm: accuracy paired where the images are the same, latency only where the card is.

Whatever cannot be compared is left empty and the row says why; nothing is put in its place.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import track

from lowbit_vit.analysis.bootstrap import macro_f1_difference
from lowbit_vit.analysis.latencies import ratio_of_medians
from lowbit_vit.analysis.results import require_same_labels
from lowbit_vit.analysis.sides import Pair, Side, match, other_settings, timing_obstacle
from lowbit_vit.analysis.statistics import compare, compare_unpaired, holm, margin_test
from lowbit_vit.schema.config import Study

PAIRED, UNPAIRED = "paired", "unpaired: other images"

COMPARISON_SCHEMA: dict[str, Any] = {
    "study": pl.String,
    "arm": pl.String,
    "arm_b": pl.String,
    "seed": pl.Int64,
    "status": pl.String,
    "status_b": pl.String,
    "settings_differ": pl.String,
    "same_weights": pl.Boolean,
    "accuracy_test": pl.String,
    "images": pl.Int64,
    "images_b": pl.Int64,
    "top1": pl.Float64,
    "top1_b": pl.Float64,
    "lost": pl.Int64,
    "gained": pl.Int64,
    "difference": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "p_value": pl.Float64,
    "p_holm": pl.Float64,
    "p_inferior": pl.Float64,
    "p_equivalent": pl.Float64,
    "macro_f1": pl.Float64,
    "macro_f1_b": pl.Float64,
    "f1_difference": pl.Float64,
    "f1_low": pl.Float64,
    "f1_high": pl.Float64,
    "weight_bytes": pl.Int64,
    "weight_bytes_b": pl.Int64,
    "batch_size": pl.Int64,
    "p50_ms": pl.Float64,
    "p50_ms_b": pl.Float64,
    "ratio": pl.Float64,
    "ratio_low": pl.Float64,
    "ratio_high": pl.Float64,
    "timing": pl.String,
    "trial_id": pl.String,
    "trial_id_b": pl.String,
}


def compare_sides(first: Side, second: Side, *, studies: Sequence[Study], margin: float) -> pl.DataFrame:
    """One row for each arm and batch size of either side, in the order of the first's profile.

    Differences are the second side less the first, ratios the second over the first. `p_holm` adjusts for all accuracy tests
    of a study. `p_inferior` and `p_equivalent` test the paired difference against `margin`. F1 is compared in `variants` alone.

    Args:
        first: the side that is compared with.
        second: the other one.
        studies: which of them.
        margin: loss of Top-1, as a share, that counts as none.

    Raises:
        DataError: a side holds one arm twice.
    """
    rows: list[dict[str, Any]] = []
    for study in studies:
        pairs = [pair for pair in match(first, second) if pair.trial.study == study]
        # Each F1 takes ten thousand resamples: seconds for thousands of images.
        console = Console(stderr=True)
        shown = track(pairs, description=f"{study}: {len(pairs)} arms", console=console, transient=True, disable=not console.is_terminal)
        compared = [_identity(pair) | _accuracy(pair, margin=margin) for pair in shown]
        adjusted = holm([row.get("p_value") for row in compared])
        for pair, row, p_holm in zip(pairs, compared, adjusted, strict=True):
            rows.extend(row | {"p_holm": p_holm} | timing for timing in _timings(pair))
    return pl.DataFrame(rows, schema=COMPARISON_SCHEMA)


def _identity(pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"study": pair.trial.study, "seed": pair.trial.seed}
    for suffix, result in (("", pair.first), ("_b", pair.second)):
        record = None if result is None else result.record
        row |= {
            f"arm{suffix}": None if record is None else record.trial.label,
            f"status{suffix}": "not in this run" if record is None else record.status,
            f"trial_id{suffix}": None if record is None else record.trial_id,
        }
        if record is not None and record.model is not None:
            row[f"weight_bytes{suffix}"] = record.model.weight_bytes
        if result is not None and (whole := result.whole) is not None:
            row |= {f"images{suffix}": whole.images, f"top1{suffix}": whole.top1, f"macro_f1{suffix}": whole.macro_f1}
    if pair.first is None or pair.second is None:
        return row
    one, two = pair.first.record, pair.second.record
    if one.model is not None and two.model is not None:
        row["same_weights"] = one.model.backbone_sha256 == two.model.backbone_sha256
    return row | {"settings_differ": ", ".join(other_settings(one.trial, two.trial)) or None}


def _accuracy(pair: Pair, *, margin: float) -> dict[str, Any]:
    """Top-1 compared, and macro-F1 where that is worth its resampling; empty where a side has none."""
    if pair.first is None or pair.second is None:
        return {}
    one, two = pair.first.predictions, pair.second.predictions
    if one is None or two is None:
        return {}
    if not require_same_labels(pair.first, pair.second):
        hits = ((int(predictions.right.sum()), len(predictions.right)) for predictions in (one, two))
        apart = compare_unpaired(*hits)
        return {
            "accuracy_test": UNPAIRED,
            "difference": apart.difference,
            "difference_low": apart.interval.low,
            "difference_high": apart.interval.high,
            "p_value": apart.p_value,
        }
    outcome = compare(one.right, two.right)
    test = margin_test(outcome.lost, outcome.gained, images=outcome.images, margin=margin)
    row = {
        "accuracy_test": PAIRED,
        **outcome.columns,
        "p_inferior": test.p_inferior,
        "p_equivalent": test.p_equivalent,
    }
    if pair.trial.study != "variants":
        return row
    f1 = macro_f1_difference(one.label, one.best, two.best)
    return row | {"f1_difference": f1.difference, "f1_low": f1.interval.low, "f1_high": f1.interval.high}


def _timings(pair: Pair) -> list[dict[str, Any]]:
    """One row for each batch size that either side measured; a row without one where neither did."""
    one, two = (result.latency if result is not None else {} for result in (pair.first, pair.second))
    rows = []
    for batch in sorted({*one, *two}):
        row: dict[str, Any] = {"batch_size": batch}
        if batch in one:
            row["p50_ms"] = one[batch].p50_ms
        if batch in two:
            row["p50_ms_b"] = two[batch].p50_ms
        if pair.first is None or pair.second is None or batch not in one or batch not in two:
            rows.append(row | {"timing": "measured on one side alone"})
            continue
        obstacle = timing_obstacle(pair.first.record, pair.second.record)
        if obstacle is not None:
            rows.append(row | {"timing": obstacle})
            continue
        ratio = ratio_of_medians(one[batch].samples_ms, two[batch].samples_ms)
        row |= {"ratio": ratio.value, "timing": "same card"}
        if ratio.interval is not None:
            row |= {"ratio_low": ratio.interval.low, "ratio_high": ratio.interval.high}
        rows.append(row)
    return rows or [{}]
