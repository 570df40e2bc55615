"""Records -> tables, figures, metrics, one HTML page that opens without a network, and a page of Markdown.

Equal records give equal files.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from lowbit_vit.analysis.claims.ledger import Judged, Paper, gather, judge, load_paper
from lowbit_vit.analysis.tables import Findings, find, write_tables
from lowbit_vit.report import facts, grids
from lowbit_vit.report.beside import Beside, beside_paper
from lowbit_vit.report.choices import additivity_words, contest_grid, estimator_grid, pair_words, scan_words, timed_grid
from lowbit_vit.report.classes import MOST, class_words, lost_grid
from lowbit_vit.report.figures.document import Figure, draw, javascript
from lowbit_vit.report.gallery import all_figures
from lowbit_vit.report.graphs import graph_grid, graph_words
from lowbit_vit.report.headings import headings
from lowbit_vit.report.latex import beside_latex, grid_latex
from lowbit_vit.report.ledger import SIGNS, TONES, claims_frame, command, counts, sections, source_address
from lowbit_vit.report.limits import invariance_grid, memory_grid, roofline_grid
from lowbit_vit.report.markdown import report_markdown
from lowbit_vit.report.metrics import metrics, status_counts
from lowbit_vit.report.missing import not_run
from lowbit_vit.report.provenance import places, provenance_document, with_places
from lowbit_vit.report.terminal import result_markdown
from lowbit_vit.report.verdict import headline, sentences
from lowbit_vit.schema.claim import VERDICT_MEANS
from lowbit_vit.schema.config import STUDIES, Profile, Study
from lowbit_vit.schema.packed import is_packed
from lowbit_vit.schema.record import write_atomic
from lowbit_vit.schema.workspace import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Content:
    """All that the report is made of."""

    profile: Profile
    findings: Findings
    paper: Paper | None
    judged: tuple[Judged, ...]

    @property
    def beside(self) -> list[Beside]:
        """The paper's table beside ours, a batch size each; none without a paper."""
        return [] if self.paper is None else beside_paper(self.findings.tables.paper_table, self.paper.table, self.judged)

    @property
    def printed(self) -> dict[str, grids.Grid]:
        """The tables that people read, by name."""
        tables = self.findings.tables
        return {
            "arms": grids.result_grid(tables.paper_table),
            "lost": lost_grid(tables),
            "twins": grids.twin_grid(tables.paper_table),
            "graphs": graph_grid(tables.graphs),
            "rooflines": roofline_grid(tables.rooflines),
            "memory": memory_grid(tables.memory_parts),
            "invariance": invariance_grid(tables.invariance),
            "agreement": grids.agreement_grid(tables),
            "blocks": grids.block_grid(tables.sensitivity),
            "estimators": estimator_grid(tables.estimators),
            "mixed": grids.mixed_grid(tables),
            "contests": contest_grid(tables.contests),
            "timed": timed_grid(tables.timed_plans),
            "times": grids.time_grid(self.findings.all_records),
        }


def build_report(profile: Profile, workspace: Workspace) -> Path:
    """Write everything for people below the profile's reports folder; returns the page.

    A study without records is shown as not run. Needs neither torch nor a network.

    Raises:
        ConfigError: there is no such paper, or its claims or context are missing or wrong.
        DataError: a record, a predictions file or the paper's table is damaged or missing.
    """
    paper = None if profile.paper is None else load_paper(workspace.root, profile.paper)
    findings = find(profile, workspace)
    judged = () if paper is None else judge(paper.ledger.claims, gather(profile, findings.results, paper))
    return write_report(Content(profile=profile, findings=findings, paper=paper, judged=judged), workspace.reports)


def write_report(content: Content, folder: Path) -> Path:
    """Write tables/, figures/, metrics.json, report.md and report.html below `folder`; returns the page."""
    beside, printed = content.beside, content.printed
    _write_tables(content, beside, printed, folder / "tables")
    write_atomic(folder / "metrics.json", (json.dumps(metrics(content.findings), indent=1) + "\n").encode())
    write_atomic(folder / "report.md", _markdown(content).encode())
    drawn = []
    for figure in all_figures(content.findings.tables, {} if content.paper is None else content.paper.ledger.notes.figures):
        log.info("drawing %s: %s", figure.name, figure.title)
        drawn.append((figure, draw(figure, folder / "figures")))
    page = folder / "report.html"
    packed = [study for study in STUDIES if is_packed(folder / "records" / study)]
    write_atomic(page, _render(content, beside, printed, drawn, packed=packed).encode())
    return page


def _write_tables(content: Content, beside: Sequence[Beside], printed: dict[str, grids.Grid], folder: Path) -> None:
    """Tidy CSV, and the printed tables as LaTeX."""
    write_tables(content.findings.tables, folder)
    if content.judged:
        write_atomic(folder / "claims.csv", claims_frame(content.judged).write_csv().encode())
    for table in beside:
        name = "paper" if table.batch_size is None else f"paper_batch{table.batch_size}"
        write_atomic(folder / f"{name}.tex", beside_latex(table).encode())
    for name, grid in printed.items():
        write_atomic(folder / f"{name}.tex", grid_latex(grid).encode())


def _markdown(content: Content) -> str:
    records = content.findings.records["variants"]
    arms = [arm.label for arm in content.profile.variants.arms]
    return report_markdown(
        title=content.profile.description,
        headline=headline(content.judged),
        sentences=sentences(content.findings, content.judged),
        counts=counts(content.judged),
        arms=result_markdown(records, arms=arms) if records else "",
        missing=not_run(content.profile, content.findings, content.judged),
    )


def _render(
    content: Content,
    beside: Sequence[Beside],
    printed: dict[str, grids.Grid],
    drawn: Sequence[tuple[Figure, str | None]],
    *,
    packed: Sequence[Study],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lowbit_vit.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # `tojson` escapes what could end a script element; compact, because the page carries every figure's numbers.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    to_places = places(content.findings.all_records)
    environment.filters |= {"places": to_places, "short": "{:.4g}".format}
    return environment.get_template("page.html.jinja").render(
        **_scope(content),
        **_ledger(content),
        **printed,
        additivity=additivity_words(content.findings.tables.additivity_fits),
        graph_words=graph_words(content.findings.tables.graphs),
        pairs=pair_words(content.findings.tables.pairs),
        scan_cost={study: scan_words(content.findings.records[study], content.profile.backbone.depth) for study in STUDIES},
        beside=beside,
        headings=headings(content.findings.tables, arms=len(content.profile.variants.arms)),
        missing=not_run(content.profile, content.findings, content.judged),
        # The SVG is Vega's own output, which escapes every text that comes from a record.
        figures={figure.name: (figure, Markup(svg) if svg else None) for figure, svg in drawn},  # noqa: S704
        specifications={figure.name: with_places(figure.specification, to_places) for figure, _ in drawn if figure.specification},
        packed=packed,
        provenance=provenance_document(content.findings.all_records, packed=packed),
        vega=Markup(javascript()),  # noqa: S704  (a constant of the vl-convert package)
    )


def _scope(content: Content) -> dict[str, Any]:
    """What was run, on what."""
    profile, records = content.profile, content.findings.all_records
    return {
        "profile": profile,
        "paper": None if content.paper is None else content.paper.ledger,
        "model": facts.model_words(profile),
        "images": facts.image_words(profile, records),
        "accuracy": facts.accuracy_words(profile, records),
        "class_words": class_words(content.findings.records["variants"]),
        "most_classes": MOST,
        "adaptation": facts.adaptation_words(profile),
        "studies": [(study, status_counts([record.status for record in content.findings.records[study]])) for study in STUDIES],
        "machines": facts.machines(records),
        "alone": facts.exclusive_words(records),
        "hashes": facts.weight_hashes(records),
        "table_files": [f"{field.name}.csv" for field in fields(content.findings.tables)],
    }


def _ledger(content: Content) -> dict[str, Any]:
    """The verdict, its counts, and every claim."""
    judged = content.judged
    return {
        "headline": headline(judged),
        "sentences": sentences(content.findings, judged),
        "counts": counts(judged),
        "claims": judged,
        "sections": sections(judged),
        "tones": TONES,
        "signs": SIGNS,
        "means": VERDICT_MEANS,
        "command_of": command,
        "address_of": source_address,
    }
