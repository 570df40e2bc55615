"""The numbers worth comparing between runs, as reports/PROFILE/metrics.json has them."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from lowbit_vit.analysis.tables import Findings
from lowbit_vit.schema.config import STUDIES


def metrics(findings: Findings) -> dict[str, Any]:
    """The numbers worth comparing between runs, for `dvc metrics show`: nested by study, arm or strategy; null for no result."""
    tables = findings.tables
    variants: dict[str, dict[str, Any]] = {}
    for row in tables.paper_table.to_dicts():
        arm = variants.setdefault(row["arm"], {"status": row["status"]})
        if row["status"] == "success":
            suffix = "" if row["batch_size"] is None else f"_batch{row['batch_size']}"
            arm |= {name: _rounded(row[name]) for name in ("top1", "top5", "macro_f1", "file_mib")}
            arm |= {f"{name}{suffix}": _rounded(row[name]) for name in ("mean_ms", "p50_ms", "images_per_s", "peak_memory_mib")}
    agreement: dict[str, Any] = {
        f"{row['weights']} {row['direction']}": _rounded(row["kendall_tau"]) for row in tables.draw_agreement.to_dicts()
    }
    chosen = tables.mixed.filter(pl.col("strategy") != "random").to_dicts()
    mixed = {
        row["strategy"] if row["k"] is None else f"{row['strategy']} k={row['k']}": {name: _rounded(row[name]) for name in ("top1", "kl")}
        for row in chosen
    }
    random = {
        f"random k={row['k']} {row['metric']}": _rounded(row["median"] / (100 if row["metric"] == "top1" else 1))
        for row in tables.random_bands.to_dicts()
    }
    statuses = {study: dict(status_counts([record.status for record in findings.records[study]])) for study in STUDIES}
    return {
        "trials": statuses,
        "variants": variants,
        "sensitivity": {"kendall_tau": agreement},
        "mixed": {"report_half": mixed, "random_median": random},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def status_counts(statuses: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """The statuses that occur, with how often."""
    order = ("success", "skipped", "failed", "oom", "timeout")
    return tuple((status, statuses.count(status)) for status in order if status in statuses)
