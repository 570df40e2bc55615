"""Records -> tables, figures, metrics and one HTML page that opens without a network; equal records give equal files."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jinja2
import polars as pl
from markupsafe import Markup

from lowbit_vit.analysis.tables import Findings, Tables, find, read_paper_table, write_tables
from lowbit_vit.report import facts, figures, grids
from lowbit_vit.schema.config import STUDIES, Profile
from lowbit_vit.schema.record import write_atomic
from lowbit_vit.schema.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyState:
    """How far one study is."""

    name: str
    counts: tuple[tuple[str, int], ...]
    command: str


def build_report(profile: Profile, workspace: Workspace) -> Path:
    """Write tables/, figures/, metrics.json and report.html below the profile's reports folder; returns the page.

    A study without records is shown as not run. Needs neither torch nor a network.

    Raises:
        DataError: a record, a predictions file or the paper's table is damaged or missing.
    """
    paper = read_paper_table(workspace.root)
    findings = find(profile, workspace)
    folder = workspace.reports
    write_tables(findings.tables, folder / "tables")
    write_atomic(folder / "metrics.json", (json.dumps(metrics(findings), indent=1) + "\n").encode())
    drawn = []
    for figure in _figures(findings.tables):
        log.info("drawing %s: %s", figure.name, figure.title)
        drawn.append((figure, figures.draw(figure, folder / "figures")))
    page = folder / "report.html"
    write_atomic(page, _render(profile, findings, paper, drawn).encode())
    return page


def metrics(findings: Findings) -> dict[str, Any]:
    """The numbers worth comparing between runs, for `dvc metrics show`: nested by study, arm or strategy; null for no result."""
    tables = findings.tables
    names = ("top1", "top5", "macro_f1", "file_mib", "mean_ms", "p50_ms", "images_per_s", "peak_memory_mib")
    variants: dict[str, dict[str, Any]] = {}
    for row in tables.paper_table.to_dicts():
        arm = variants.setdefault(row["arm"], {"status": row["status"]})
        if row["status"] == "success":
            suffix = "" if row["batch_size"] is None else f"_batch{row['batch_size']}"
            for name in names:
                once = name in ("top1", "top5", "macro_f1", "file_mib")
                arm[name if once else f"{name}{suffix}"] = _rounded(row[name])
    agreement: dict[str, Any] = {
        f"{row['weights']} {row['direction']}": _rounded(row["kendall_tau"]) for row in tables.draw_agreement.to_dicts()
    }
    chosen = tables.mixed.filter(pl.col("strategy") != "random").to_dicts()
    mixed = {
        row["strategy"] if row["k"] is None else f"{row['strategy']} k={row['k']}": {
            "top1": _rounded(row["top1"]),
            "kl": _rounded(row["kl"]),
        }
        for row in chosen
    }
    random = {
        f"random k={row['k']} {row['metric']}": _rounded(row["median"] / (100 if row["metric"] == "top1" else 1))
        for row in tables.random_bands.to_dicts()
    }
    statuses = {study: dict(_counts([record.status for record in findings.records[study]])) for study in STUDIES}
    return {
        "trials": statuses,
        "variants": variants,
        "sensitivity": {"kendall_tau": agreement},
        "mixed": {"report_half": mixed, "random_median": random},
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _counts(statuses: Sequence[str]) -> tuple[tuple[str, int], ...]:
    order = ("success", "skipped", "failed", "oom", "timeout")
    return tuple((status, statuses.count(status)) for status in order if status in statuses)


def _figures(tables: Tables) -> list[figures.Figure]:
    return [
        figures.Figure(
            "figure1",
            "Top-1 against mean latency",
            "Each point is a row of the result table, by its number; bars are 95 % Wilson intervals over test images. The paper's Fig. 1.",
            figures.accuracy_against_latency(tables.paper_table),
            "No arm of the variants study has finished.",
        ),
        figures.Figure(
            "figure2",
            "Size on disk and peak memory",
            "The saved file with its quantization constants and adapters, and the peak while one batch ran. A resident set holds the whole "
            "process, libraries included, so on a CPU it hardly depends on the weights. The paper's Fig. 2.",
            figures.size_and_memory(tables.paper_table),
            "No arm of the variants study has finished.",
        ),
        figures.Figure(
            "figure3",
            "Layer-wise sensitivity",
            "Mean KL from the high-precision model's predictions over draws of images from the selection half; bars span the draws, which "
            "share images. Panels differ in scale. The paper's Fig. 3 shows one unnamed measure for 4-bit only.",
            figures.sensitivity(tables.sensitivity),
            "The sensitivity study has no complete set of cells.",
        ),
        figures.Figure(
            "figure4",
            "First and last blocks, the data's choice, and chance",
            f"k blocks kept in high precision. {grids.byte_words(tables.mixed)} Ticks are random plans; the band is their range, its "
            "darker part their middle half. Blocks were chosen on the selection half; this is the report half. The paper's Fig. 4 has "
            "only the first two rows, for k = 2.",
            figures.mixed(tables.mixed, tables.random_bands),
            "The mixed study has no finished cell.",
        ),
        figures.Figure(
            "figure5",
            "Where the time goes",
            "One profiled forward by class: kernels on a GPU, with idle (wall minus busy) beside them; operators on a CPU. Not in the "
            "paper.",
            figures.time_by_class(tables.kernel_classes),
            "No arm has a kernel trace.",
        ),
    ]


def _render(profile: Profile, findings: Findings, paper: pl.DataFrame, drawn: Sequence[tuple[figures.Figure, str | None]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lowbit_vit.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    tables = findings.tables
    batches = tables.paper_table.get_column("batch_size").drop_nulls().unique().sort().to_list()
    records = findings.all_records
    return environment.get_template("page.html.jinja").render(
        profile=profile,
        model=facts.model_words(profile),
        images=facts.image_words(profile),
        accuracy=facts.accuracy_words(profile, records),
        adaptation=facts.adaptation_words(profile),
        studies=[
            StudyState(study, _counts([record.status for record in findings.records[study]]), f"lowbit-vit {study} {profile.name}")
            for study in STUDIES
        ],
        result=grids.result_grid(tables.paper_table),
        paper_grids=[(batch, grids.paper_grid(tables.paper_table, paper, batch_size=batch)) for batch in batches or [None]],
        agreement=grids.agreement_grid(tables),
        blocks=grids.block_grid(tables.sensitivity),
        mixed=grids.mixed_grid(tables),
        missing=grids.missing_grid(tables.not_successful),
        times=grids.time_grid(records),
        # The SVG is Vega's own output, which escapes every text that comes from a record.
        figures={figure.name: (figure, Markup(svg) if svg else None) for figure, svg in drawn},  # noqa: S704
        specifications={figure.name: figure.specification for figure, _ in drawn if figure.specification is not None},
        machines=facts.machines(records),
        hashes=facts.weight_hashes(records),
        table_files=[f"{field.name}.csv" for field in fields(tables)],
        vega=Markup(figures.javascript()),  # noqa: S704  (a constant of the vl-convert package)
    )
