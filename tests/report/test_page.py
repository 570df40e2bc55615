"""The page: whole with any part missing, safe for any text, free of the network, the same for the same records."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import synthetic
import synthetic_claims
from lowbit_vit.analysis.runs import pack_records
from lowbit_vit.analysis.tables import find
from lowbit_vit.errors import DataError
from lowbit_vit.report.metrics import metrics
from lowbit_vit.report.number_format import DASH
from lowbit_vit.report.page import build_report
from lowbit_vit.report.tables import result_table
from lowbit_vit.schema.config import Study
from lowbit_vit.schema.workspace import Workspace

HOSTILE = synthetic_claims.HOSTILE
FIGURES = [f"figure{number}.{suffix}" for number in range(1, 9) for suffix in ("png", "svg")]


class Outline(HTMLParser):
    """Text by tag, external addresses, and whether every element was closed."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0
        self.addresses: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.scripts += tag == "script"
        self.addresses += [value for name, value in attrs if name in ("src", "action", "data", "poster") and value]
        self.links += [value for name, value in attrs if name == "href" and value]
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def page(whole: Workspace) -> str:
    return (whole.reports / "report.html").read_text()


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_it_writes_page_metrics_tables_and_figures(whole: Workspace) -> None:
    written = {str(path.relative_to(whole.reports)) for path in whole.reports.rglob("*") if path.is_file()}
    assert {"report.html", "report.md", "metrics.json", *(f"figures/{name}" for name in FIGURES)} <= written
    tables = {name.removeprefix("tables/") for name in written if name.startswith("tables/")}
    assert {"claims.csv", "fronts.csv", "paper_table.csv"} <= tables
    assert {"arms.tex", "paper_batch1.tex", "paper_batch32.tex", "mixed.tex"} <= tables


def test_the_page_is_well_formed_and_under_5_megabytes(page: str, outline: Outline) -> None:
    assert outline.open == []
    assert len(page.encode()) < 5_000_000


def test_the_page_needs_no_network(page: str, outline: Outline) -> None:
    assert outline.addresses == []
    # What a reader may click: a place in the page, or the source of somebody else's number.
    assert {link for link in outline.links if not link.startswith("#")} == {"https://example.org/numbers"}
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_every_link_inside_the_page_has_its_target_and_every_id_is_one_element(outline: Outline) -> None:
    assert len(outline.ids) == len(set(outline.ids))
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    assert {"claim-t1-r0-0", "claim-iv-s0", "verdict", "paper", "ledger", "missing", "figure7"} <= set(outline.ids)


def test_the_first_screen_is_the_verdict_the_counts_and_the_papers_table(outline: Outline) -> None:
    text = re.sub(r"\s+", " ", " ".join(outline.text))
    head = text[: text.index("Every arm")]
    places = [head.index(words) for words in ("Of 79 statements", "Claims:", "Accuracy:", "Speed:", "contradicts itself", "Baseline ViT")]
    assert places[:5] == sorted(places[:5])
    assert "weights trained from scratch for this run, not pretrained" in head
    assert "scikit-learn's 8 x 8 scanned digits" in head
    assert "ours: skipped: needs CUDA" in head


def test_every_arm_and_what_accuracy_is_measured_on_are_said(outline: Outline) -> None:
    text = " ".join(outline.text)
    assert "n = 600 images" in text
    for arm in ("Baseline ViT", "4-bit + SDPA", "8-bit + FlashAttn2", "NF4, CUDA graph"):
        assert arm in text


def test_what_is_not_measured_is_said_to_be_missing(outline: Outline) -> None:
    text = " ".join(outline.text)
    assert "no arm finished both eager and as a CUDA graph" in text


def test_latencies_stand_over_their_rooflines_and_batch_sizes_side_by_side(outline: Outline) -> None:
    text = " ".join(outline.text)
    assert "P50 / roofline" in text
    assert "What the memory peaks are made of" not in text  # the parts are of a GPU's allocator


def test_the_papers_numbers_stand_as_printed(outline: Outline) -> None:
    for printed in ("1157.4", "0.5330", "237.506149", "0.000000", "109.00"):
        assert printed in outline.text


def test_building_again_gives_the_same_bytes(whole: Workspace, write_page: Callable[..., Path], tmp_path: Path) -> None:
    profile = synthetic.load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    shutil.copytree(whole.root, tmp_path / "root")
    again = dataclasses.replace(whole, root=tmp_path / "root")
    names = ["report.html", "report.md", "metrics.json", "figures/figure1.svg", "figures/figure4.png", "tables/arms.tex"]
    before = [(whole.reports / name).read_bytes() for name in names]
    write_page(profile, again)
    assert [(again.reports / name).read_bytes() for name in names] == before


def test_metrics_are_nested_numbers_by_arm_and_strategy(whole: Workspace) -> None:
    content = json.loads((whole.reports / "metrics.json").read_text())
    assert content["trials"]["variants"] == {"success": 10, "skipped": 3}
    assert content["variants"]["4-bit + FlashAttn2"] == {"status": "skipped"}
    assert content["variants"]["Baseline ViT"]["p50_ms_batch32"] > content["variants"]["Baseline ViT"]["p50_ms_batch1"]
    assert set(content["mixed"]["report_half"]) >= {"fully quantized", "high precision", "first+last k=2", "most sensitive k=4"}
    assert set(content["sensitivity"]["kendall_tau"]) == {"nf4 only", "nf4 all_but", "int8-0 only", "int8-0 all_but"}


def test_the_page_of_packed_records_leads_to_their_files(write_page: Callable[..., Path], tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=("variants", "sensitivity"))
    there = dataclasses.replace(workspace, elsewhere=tmp_path / "to")
    pack_records(profile, workspace, there.reports)
    page = write_page(profile, there).read_text()
    known = re.search(r'<script type="application/json" id="records">(.*?)</script>', page)
    assert known is not None
    assert json.loads(known[1])["packed"] is True
    assert "Parquet files of trials, raw samples and per-image predictions" in page


def test_text_of_a_record_cannot_become_markup(write_page: Callable[..., Path], tmp_path: Path) -> None:
    demo = synthetic.load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")
    label = HOSTILE.replace("\u2028", "")  # a line end, which no label may hold
    profile = synthetic.relabel(synthetic.relabel(demo, "Baseline ViT", label), "NF4, CUDA graph", f"{label} skipped")
    profile, workspace = synthetic.fill(tmp_path / "root", profile=profile, studies=("variants",))
    page = write_page(profile, workspace, quote=HOSTILE).read_text()
    outline = Outline(page)
    assert "<script>alert" not in page
    assert "\u2028" not in page[page.index('<script type="application/json"') :]
    assert outline.open == []
    # The figures' data, the records', Vega, and the page's own script.
    assert outline.scripts == 4
    assert HOSTILE in "".join(outline.text)
    assert label in "".join(outline.text)
    assert "<script>alert" not in (workspace.reports / "figures" / "figure2.svg").read_text()
    assert "<script>" not in (workspace.reports / "report.md").read_text()
    assert r"\textless{}script\textgreater{}" in (workspace.reports / "tables" / "arms.tex").read_text()


@pytest.mark.parametrize("studies", [(), ("variants",), ("sensitivity",)])
def test_missing_studies_are_shown_as_missing(page_of: Callable[..., Workspace], studies: tuple[Study, ...]) -> None:
    workspace = page_of(*studies)
    text = " ".join(Outline((workspace.reports / "report.html").read_text()).text)
    for study in ("variants", "sensitivity", "mixed"):
        assert (f"the {study} study" in text) == (study not in studies)
    drawn = {path.stem for path in (workspace.reports / "figures").glob("*.svg")}
    assert ("figure1" in drawn) == ("variants" in studies)
    assert ("figure3" in drawn) == ("sensitivity" in studies)
    assert "figure4" not in drawn


def test_failures_are_shown_with_their_reason_and_never_as_numbers(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=("variants",))
    path = next(path for path in workspace.records("variants").glob("*.json") if '"bf16"' in path.read_text())
    trial = synthetic.read_record(path).trial
    synthetic.write_record(synthetic.unfinished(trial, "oom", "4.2 GiB of 3 GiB"), path.parent)
    path.with_suffix(".npz").unlink()
    findings = find(profile, workspace)
    assert metrics(findings)["variants"]["bf16"] == {"status": "oom"}
    table = result_table(findings.tables.paper_table, findings.results["variants"])
    line = next(line for line in table.lines("html") if line.cells[1].text == "bf16")
    assert line.missing
    assert line.cells[-1].text == "oom: 4.2 GiB of 3 GiB"
    assert {cell.text for cell in line.cells[2:-1]} == {DASH}


def test_without_the_papers_table_there_is_no_page(tmp_path: Path) -> None:
    profile, workspace = synthetic.fill(tmp_path / "root", studies=())
    (tmp_path / "root" / "papers" / synthetic.PAPER.name / "table.csv").unlink()
    with pytest.raises(DataError, match=r"table.csv: no such table"):
        build_report(profile, workspace)
