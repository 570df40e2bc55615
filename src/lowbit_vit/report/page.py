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
import polars as pl
from markupsafe import Markup

from lowbit_vit.analysis.claims import gather, judge, load_claims
from lowbit_vit.analysis.tables import Findings, find, read_paper_table, write_tables
from lowbit_vit.report import run_description
from lowbit_vit.report.allocation_tables import (
    additivity_words,
    agreement_table,
    block_table,
    contest_table,
    estimator_table,
    mixed_table,
    pair_words,
    scan_words,
    timed_table,
)
from lowbit_vit.report.columns import Table, escape_markdown, to_latex, to_markdown
from lowbit_vit.report.figure_list import all_figures
from lowbit_vit.report.figures.document import Figure, draw, javascript
from lowbit_vit.report.ledger import SIGNS, TONES, claims_frame, command, counts, counts_table, sections, source_address
from lowbit_vit.report.metrics import metrics, status_counts
from lowbit_vit.report.missing import Missing, not_run
from lowbit_vit.report.paper_comparison import Beside, beside_paper, paper_table
from lowbit_vit.report.roofline_tables import (
    execution_table,
    graph_table,
    graph_words,
    invariance_table,
    memory_table,
    roofline_table,
)
from lowbit_vit.report.tables import MOST_CLASSES, class_table, class_words, result_table, time_table
from lowbit_vit.report.verdict import Sentence, headings, headline, sentences
from lowbit_vit.schema.claim import VERDICT_MEANS, Judged
from lowbit_vit.schema.config import STUDIES, Profile, Study
from lowbit_vit.schema.packed import is_packed
from lowbit_vit.schema.record import write_atomic
from lowbit_vit.schema.workspace import Workspace

log = logging.getLogger(__name__)

# More lines than this nobody reads in a pull request; the page has them all.
MOST_MISSING = 12


@dataclass(frozen=True)
class Content:
    """All that the report is made of."""

    profile: Profile
    findings: Findings
    paper: pl.DataFrame
    judged: tuple[Judged, ...]

    @property
    def beside(self) -> list[Beside]:
        """The paper's table beside ours, a batch size each."""
        return beside_paper(self.findings.tables.paper_table, self.paper, self.judged)

    @property
    def printed(self) -> dict[str, Table]:
        """The printed tables, by name."""
        tables = self.findings.tables
        return {
            "arms": result_table(tables.paper_table, self.findings.records["variants"]),
            "lost": class_table(tables),
            "twins": execution_table(tables.paper_table),
            "graphs": graph_table(tables.graphs),
            "rooflines": roofline_table(tables.rooflines),
            "memory": memory_table(tables.memory_parts),
            "invariance": invariance_table(tables.invariance),
            "agreement": agreement_table(tables),
            "blocks": block_table(tables.sensitivity),
            "estimators": estimator_table(tables.estimators),
            "mixed": mixed_table(tables),
            "contests": contest_table(tables.contests),
            "timed": timed_table(tables.timed_plans),
            "times": time_table(self.findings.all_records),
        }


def build_report(profile: Profile, workspace: Workspace) -> Path:
    """Write everything for people below the profile's reports folder; returns the page.

    A study without records is shown as not run. Needs neither torch nor a network.

    Raises:
        ConfigError: paper/claims.yaml is missing or wrong.
        DataError: a record, a predictions file or the paper's table is damaged or missing.
    """
    paper = read_paper_table(workspace.root)
    findings = find(profile, workspace)
    judged = judge(load_claims(workspace.root), gather(profile, findings.results, root=workspace.root))
    return write_report(Content(profile=profile, findings=findings, paper=paper, judged=judged), workspace.reports)


def write_report(content: Content, folder: Path) -> Path:
    """Write tables/, figures/, metrics.json, report.md and report.html below `folder`; returns the page."""
    beside, printed = content.beside, content.printed
    _write_tables(content, beside, printed, folder / "tables")
    write_atomic(folder / "metrics.json", (json.dumps(metrics(content.findings), indent=1) + "\n").encode())
    write_atomic(folder / "report.md", _markdown(content, printed["arms"]).encode())
    drawn = []
    for figure in all_figures(content.findings.tables):
        log.info("drawing %s: %s", figure.name, figure.title)
        drawn.append((figure, draw(figure, folder / "figures")))
    page = folder / "report.html"
    packed = [study for study in STUDIES if is_packed(folder / "records" / study)]
    write_atomic(page, _render(content, beside, printed, drawn, packed=packed).encode())
    return page


def _write_tables(content: Content, beside: Sequence[Beside], printed: dict[str, Table], folder: Path) -> None:
    """Tidy CSV, and the printed tables as LaTeX."""
    write_tables(content.findings.tables, folder)
    if content.judged:
        write_atomic(folder / "claims.csv", claims_frame(content.judged).write_csv().encode())
    for compared in beside:
        name = "paper" if compared.batch_size is None else f"paper_batch{compared.batch_size}"
        write_atomic(folder / f"{name}.tex", to_latex(paper_table(compared)).encode())
    for name, table in printed.items():
        write_atomic(folder / f"{name}.tex", to_latex(table).encode())


def _markdown(content: Content, arms: Table) -> str:
    return report_markdown(
        title=content.profile.description,
        headline=headline(content.judged),
        sentences=sentences(content.findings, content.judged),
        counts=to_markdown(counts_table(content.judged)) if content.judged else "",
        arms=to_markdown(arms) if arms.rows else "",
        missing=not_run(content.profile, content.findings, content.judged),
    )


def report_markdown(*, title: str, headline: str, sentences: Sequence[Sentence], counts: str, arms: str, missing: Sequence[Missing]) -> str:
    """The page of Markdown, short enough for a pull request; `counts` and `arms` are tables in Markdown already."""
    parts = [f"# {escape_markdown(headline or title)}", escape_markdown(title) if headline else ""]
    parts.append("\n".join(f"- **{sentence.about}:** {escape_markdown(sentence.text)}" for sentence in sentences))
    parts += [counts.rstrip(), arms.rstrip()]
    if missing:
        shown = [f"- {escape_markdown(item.what)}: {escape_markdown(item.why)}" for item in missing[:MOST_MISSING]]
        more = len(missing) - MOST_MISSING
        parts.append("\n".join(["Not run:", "", *shown, *([f"- and {more} more, in report.html"] if more > 0 else [])]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _render(
    content: Content,
    beside: Sequence[Beside],
    printed: dict[str, Table],
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
    to_places = run_description.places(content.findings.all_records)
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
        specifications={
            figure.name: run_description.with_places(figure.specification, to_places) for figure, _ in drawn if figure.specification
        },
        packed=packed,
        provenance=run_description.provenance_document(content.findings.all_records, packed=packed),
        vega=Markup(javascript()),  # noqa: S704  (a constant of the vl-convert package)
    )


def _scope(content: Content) -> dict[str, Any]:
    """What was run, on what."""
    profile, records = content.profile, content.findings.all_records
    return {
        "profile": profile,
        "model": run_description.model_words(profile),
        "images": run_description.image_words(profile, records),
        "accuracy": run_description.accuracy_words(profile, records),
        "class_words": class_words(content.findings.records["variants"]),
        "most_classes": MOST_CLASSES,
        "adaptation": run_description.adaptation_words(profile),
        "studies": [(study, status_counts([record.status for record in content.findings.records[study]])) for study in STUDIES],
        "machines": run_description.machines(records),
        "alone": run_description.exclusive_words(records),
        "hashes": run_description.weight_hashes(records),
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
