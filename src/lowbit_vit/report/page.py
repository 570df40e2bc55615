"""Records -> tables, figures, metrics, one HTML page that opens without a network, and a page of Markdown.

Equal records give equal files.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import jinja2
from markupsafe import Markup

from lowbit_vit.analysis.archive import is_archived
from lowbit_vit.analysis.claims.ledger import Judged, Paper, gather, judge, load_paper
from lowbit_vit.analysis.programme import Budget
from lowbit_vit.analysis.recommendation import Recommendation, choose, measured_models
from lowbit_vit.analysis.tables import Findings, find, write_tables
from lowbit_vit.report import allocation_tables, ledger, roofline_tables, run_description, tables, verdict
from lowbit_vit.report.columns import Table, escape_markdown, to_latex, to_markdown
from lowbit_vit.report.figure_list import all_figures
from lowbit_vit.report.figures.document import Figure, draw, javascript
from lowbit_vit.report.metrics import metrics, status_counts
from lowbit_vit.report.missing import Missing, not_run
from lowbit_vit.report.number_format import process_words
from lowbit_vit.report.paper_comparison import Beside, beside_paper, paper_table
from lowbit_vit.report.recommendation import Sentence
from lowbit_vit.schema.claim import VERDICT_MEANS
from lowbit_vit.schema.config import STUDIES, Profile
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
    paper: Paper | None
    judged: tuple[Judged, ...]

    @cached_property
    def recommended(self) -> Recommendation | None:
        """Of the models that were run, as small as the profile's margin allows; None where none was run beside high precision."""
        models = measured_models(self.profile, self.findings.results)
        if not any(model.low_bit for model in models):
            return None
        return choose(models, Budget("flips", 1000 * self.profile.statistics.margin))


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
    frames, judged = content.findings.tables, content.judged
    beside = [] if content.paper is None else beside_paper(frames.paper_table, content.paper.table, judged)
    printed = printed_tables(content.findings)
    write_tables(frames, folder / "tables")
    if judged:
        write_atomic(folder / "tables" / "claims.csv", ledger.claims_frame(judged).write_csv().encode())
    compared = {"paper" if table.batch_size is None else f"paper_batch{table.batch_size}": paper_table(table) for table in beside}
    for name, table in (compared | printed).items():
        write_atomic(folder / "tables" / f"{name}.tex", to_latex(table).encode())
    write_atomic(folder / "metrics.json", (json.dumps(metrics(content.findings), indent=1) + "\n").encode())
    markdown = report_markdown(
        title=content.profile.description,
        headline=verdict.headline(judged, content.recommended),
        sentences=verdict.sentences(content.profile, content.findings, judged, content.recommended),
        tables=[table for table in (ledger.counts_table(judged), printed["arms"]) if table.rows],
        missing=not_run(content.profile, content.findings, judged),
    )
    write_atomic(folder / "report.md", markdown.encode())
    drawn = []
    for figure in all_figures(frames, {} if content.paper is None else content.paper.ledger.notes.figures):
        log.info("drawing %s: %s", figure.name, figure.title)
        drawn.append((figure, draw(figure, folder / "figures")))
    page = folder / "report.html"
    packed = is_archived(folder / "records")
    write_atomic(page, _render(content, beside, printed, drawn, packed=packed).encode())
    return page


def printed_tables(findings: Findings) -> dict[str, Table]:
    """The tables of the page and below tables/, by name."""
    frames = findings.tables
    return {
        "arms": tables.result_table(frames.paper_table, findings.results["variants"]),
        "lost": tables.class_table(frames),
        "twins": roofline_tables.execution_table(frames.paper_table),
        "graphs": roofline_tables.graph_table(frames.graphs),
        "rooflines": roofline_tables.roofline_table(frames.rooflines),
        "memory": roofline_tables.memory_table(frames.memory_parts),
        "invariance": roofline_tables.invariance_table(frames.invariance),
        "agreement": allocation_tables.agreement_table(frames),
        "blocks": allocation_tables.block_table(frames.sensitivity),
        "estimators": allocation_tables.estimator_table(frames.estimators),
        "mixed": allocation_tables.mixed_table(frames),
        "contests": allocation_tables.contest_table(frames.contests),
        "timed": allocation_tables.timed_table(frames.timed_plans),
        "times": tables.time_table(findings.all_records),
    }


def report_markdown(
    *, title: str, headline: str, sentences: Sequence[Sentence], tables: Sequence[Table], missing: Sequence[Missing]
) -> str:
    """The page of Markdown, short enough for a pull request: verdict, tables, what was not run."""
    parts = [f"# {escape_markdown(headline or title)}", escape_markdown(title) if headline else ""]
    parts.append("\n".join(f"- **{sentence.about}:** {escape_markdown(sentence.text)}" for sentence in sentences))
    parts += [to_markdown(table).rstrip() for table in tables]
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
    packed: bool,
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
    profile, findings, judged = content.profile, content.findings, content.judged
    frames, records = findings.tables, findings.all_records
    to_places = run_description.places(records)
    environment.filters |= {"places": to_places, "short": "{:.4g}".format}
    environment.globals |= {
        "tones": ledger.TONES,
        "signs": ledger.SIGNS,
        "means": VERDICT_MEANS,
        "command_of": ledger.command,
        "address_of": ledger.source_address,
    }
    return environment.get_template("page.html.jinja").render(
        **printed,
        # What came out.
        headline=verdict.headline(judged, content.recommended),
        sentences=verdict.sentences(profile, findings, judged, content.recommended),
        headings=verdict.headings(frames, arms=len(profile.variants.arms)),
        beside=beside,
        claims=judged,
        counts=ledger.counts(judged),
        sections=ledger.sections(judged),
        missing=not_run(profile, findings, judged),
        # What was run, on what.
        profile=profile,
        paper=None if content.paper is None else content.paper.ledger,
        model=run_description.model_words(profile),
        images=run_description.image_words(profile, records),
        accuracy=run_description.accuracy_words(profile, findings.all_results),
        adaptation=run_description.adaptation_words(profile),
        studies=[(study, status_counts([record.status for record in findings.records[study]])) for study in STUDIES],
        machines=run_description.machines(records),
        timing=process_words(frames.paper_table["processes"]),
        alone=run_description.exclusive_words(records),
        hashes=run_description.weight_hashes(records),
        table_files=[f"{field.name}.csv" for field in fields(frames)],
        packed=packed,
        # What is said below a table.
        most_classes=tables.MOST_CLASSES,
        graph_words=roofline_tables.graph_words(frames.graphs),
        additivity=allocation_tables.additivity_words(frames.additivity_fits),
        pairs=allocation_tables.pair_words(frames.pairs),
        scan_cost={study: allocation_tables.scan_words(findings.records[study], profile.backbone.depth) for study in STUDIES},
        # The SVG is Vega's own output, which escapes every text that comes from a record.
        figures={figure.name: (figure, Markup(svg) if svg else None) for figure, svg in drawn},  # noqa: S704
        specifications={
            figure.name: run_description.with_places(figure.specification, to_places) for figure, _ in drawn if figure.specification
        },
        provenance=run_description.provenance_document(records, packed=packed),
        vega=Markup(javascript()),  # noqa: S704  (a constant of the vl-convert package)
    )
