"""Two runs compared, arm by arm: accuracy paired where the images are the same, latency only where the processor (GPU or CPU) is.

Whatever cannot be compared is left empty and the row says why; nothing is put in its place.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import track

from lowbit_vit.analysis.bootstrap import macro_f1_difference
from lowbit_vit.analysis.frames import trial_row, typed
from lowbit_vit.analysis.latencies import latency_ratio
from lowbit_vit.analysis.results import require_same_labels
from lowbit_vit.analysis.runs import Pair, Run, match, other_settings, timing_obstacle
from lowbit_vit.analysis.statistics import compare, compare_unpaired, holm
from lowbit_vit.schema.config import Study

PAIRED, UNPAIRED = "paired", "unpaired: other images"

_SIDE = ("arm", "status", "trial_id", "images", "top1", "macro_f1", "weight_bytes")
_F1 = ("f1_difference", "f1_low", "f1_high")
COLUMNS = (
    *("study", "arm", "arm_b", "seed", "status", "status_b", "settings_differ", "same_weights", "accuracy_test", "images", "images_b"),
    *("top1", "top1_b", "lost", "gained", "difference", "difference_low", "difference_high", "p_value", "p_holm", "p_inferior"),
    *("p_equivalent", "macro_f1", "macro_f1_b", *_F1, "weight_bytes", "weight_bytes_b"),
    *("batch_size", "p50_ms", "p50_ms_b", "processes", "processes_b", "ratio", "ratio_low", "ratio_high", "timing"),
    *("trial_id", "trial_id_b"),
)


def compare_runs(first: Run, second: Run, *, studies: Sequence[Study], margin: float) -> pl.DataFrame:
    """One row for each arm and batch size of either run, in the order of the first's profile.

    Differences are the second run less the first, ratios the second over the first. `p_holm` adjusts for all accuracy tests
    of a study. `p_inferior` and `p_equivalent` test the paired difference against `margin`. F1 is compared in `variants` alone.

    Args:
        first: the run that is compared with.
        second: the other one.
        studies: which of them.
        margin: loss of Top-1, as a share, that counts as none.
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
    return typed(rows, *COLUMNS)


def _identity(pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"study": pair.trial.study, "seed": pair.trial.seed}
    for suffix, result in (("", pair.first), ("_b", pair.second)):
        found = {"status": "not in this run"} if result is None else trial_row(result)
        row |= {f"{name}{suffix}": found.get(name) for name in _SIDE}
    if pair.first is None or pair.second is None:
        return row
    one, two = pair.first.record, pair.second.record
    if one.model is not None and two.model is not None:
        row["same_weights"] = one.model.backbone_sha256 == two.model.backbone_sha256
    return row | {"settings_differ": ", ".join(other_settings(one.trial, two.trial)) or None}


def _accuracy(pair: Pair, *, margin: float) -> dict[str, Any]:
    """Top-1 compared, and macro-F1 where that is worth its resampling; empty where a run has none."""
    if pair.first is None or pair.second is None:
        return {}
    one, two = pair.first.predictions, pair.second.predictions
    if one is None or two is None:
        return {}
    if not require_same_labels(pair.first, pair.second):
        hits = ((int(predictions.right.sum()), len(predictions.right)) for predictions in (one, two))
        apart = compare_unpaired(*hits)
        interval = {"difference_low": apart.interval.low, "difference_high": apart.interval.high}
        return {"accuracy_test": UNPAIRED, "difference": apart.difference, **interval, "p_value": apart.p_value}
    row = {"accuracy_test": PAIRED, **compare(one.right, two.right).columns(margin)}
    if pair.trial.study == "variants":
        f1 = macro_f1_difference(one.label, one.best, two.best)
        row |= dict(zip(_F1, (f1.difference, f1.interval.low, f1.interval.high), strict=True))
    return row


def _timings(pair: Pair) -> list[dict[str, Any]]:
    """One row for each batch size that either run measured; a row without one where neither did."""
    one, two = (result.latency if result is not None else {} for result in (pair.first, pair.second))
    rows: list[dict[str, Any]] = []
    for batch in sorted({*one, *two}):
        row: dict[str, Any] = {"batch_size": batch} | {
            f"{name}{suffix}": getattr(found[batch], name)
            for suffix, found in (("", one), ("_b", two))
            for name in ("p50_ms", "processes")
            if batch in found
        }
        obstacle: str | None = "measured on one side alone"
        if pair.first is not None and pair.second is not None and batch in one and batch in two:
            obstacle = timing_obstacle(pair.first.record, pair.second.record)
        if obstacle is None:
            ratio = latency_ratio(one[batch], two[batch], one_run=False)
            row["ratio"] = ratio.value
            if ratio.interval is not None:
                row |= {"ratio_low": ratio.interval.low, "ratio_high": ratio.interval.high}
        rows.append(row | {"timing": obstacle or "same processor"})
    return rows or [{}]
