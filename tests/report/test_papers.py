"""A profile's paper is data: another table, other rows and columns, or none at all; nothing in the code knows which."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

import synthetic
from command_line import call
from lowbit_vit.schema.config import load_profile

TABLE = """\
method,top-1 (%),latency [s],size_kb,# remark
plain,93.0,0.0131,1700,first
small,N/A,0.0225,900,second
"""
CONTEXT = "reference: plain\n"
CLAIMS = """\
title: Tiny
setup:
  words: a small ViT on digits
  architecture: {value: vit_b_16, name: ViT-B/16}
  images: {value: digits, name: the digits}
  weights: {value: scratch, name: trained from scratch}
  gpu: {value: V100, name: a V100}
  batch_size: 32
notes: {table: A synthetic note., audit: nothing, figures: {"2": Like their figure 9.}}
sections: {T: The table, Q: Sentences}
stated: {seed: null}
.shared: &shared
  tolerance: {within: any, reason: synthetic}
  command: lowbit-vit variants PROFILE
  cost: {minutes: 1, hardware: a laptop, basis: estimated}
  transfer: nowhere
claims:
  - <<: *shared
    id: top1
    quote: "93.0"
    place: row 0
    section: T
    kind: cell
    says: the rate
    cell: {row: 0, column: top-1 (%)}
    tests: [{check: cell, within: 0.5}]
  - <<: *shared
    id: smaller
    quote: about half the size
    place: the text
    section: Q
    kind: conclusion
    says: half
    tests: [{check: table, column: size_kb, of_row: 1, to_row: 0, at_most: 0.55}]
  - <<: *shared
    id: seeded
    quote: a seed
    place: the text
    section: Q
    kind: method
    says: which seed
    tests: [{check: stated, what: method, needs: [seed]}]
"""


def _project(root: Path, paper: str) -> Path:
    """The demo's variants with rows 0 and 1 of another paper, or with none."""
    text = (synthetic.PROJECT / "profiles" / "demo.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^paper: .*$", f"paper: {paper}", text, flags=re.MULTILINE)
    text = re.sub(r", paper_row: \d" if paper == "null" else r", paper_row: [2-4]", "", text)
    (root / "profiles").mkdir(parents=True)
    (root / "profiles" / "demo.yaml").write_text(text, encoding="utf-8")
    synthetic.fill(root, profile=load_profile(root / "profiles" / "demo.yaml"), studies=("variants",))
    return root


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = _project(tmp_path_factory.mktemp("tiny") / "root", "tiny")
    (root / "papers" / "tiny").mkdir()
    for name, text in (("table.csv", TABLE), ("context.yaml", CONTEXT), ("claims.yaml", CLAIMS)):
        (root / "papers" / "tiny" / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def none(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _project(tmp_path_factory.mktemp("none") / "root", "null")


def test_claims_are_those_of_the_profiles_paper(tiny: Path) -> None:
    found = {item["claim"]["id"]: item for item in json.loads(call("claims", "demo", "--root", str(tiny), "--json").stdout)}
    assert {name: item["verdict"] for name, item in found.items()} == {
        "top1": "not comparable",
        "smaller": "holds",
        "seeded": "underspecified",
    }
    assert found["top1"]["words"] == "The model is a small ViT, not ViT-B/16."
    assert found["smaller"]["words"] == "size_kb: 900 / 1700 = 0.529, within at most 0.55."


def test_the_report_sets_its_rows_and_columns_beside_ours(tiny: Path) -> None:
    assert call("report", "demo", "--root", str(tiny)).returncode == 0
    tables = tiny / "reports" / "demo" / "tables"
    assert pl.read_csv(tables / "claims.csv").get_column("id").to_list() == ["top1", "smaller", "seeded"]
    heading, *rows = [line for line in (tables / "paper_batch1.tex").read_text().splitlines() if line.endswith(r" \\")]
    assert heading == r"Model &  & top-1 (\%) & latency [s] & size\_kb \\"
    assert rows[0] == r"plain & paper & 93.0 & 0.0131 & 1700 \\"
    assert re.fullmatch(r" & ours & 0\.\d{4} \(of 1\) & \d+\.\d+ ms & \d\.\d\d MiB \\\\", rows[1]), rows[1]
    assert rows[2].startswith("small & paper & N/A & ")
    page = (tiny / "reports" / "demo" / "report.html").read_text(encoding="utf-8")
    assert "the paper, a small ViT on digits." in page
    assert "A synthetic note." in page
    assert "Like their figure 9." in page


def test_without_a_paper_there_is_a_report_and_no_ledger(none: Path) -> None:
    assert call("report", "demo", "--root", str(none)).returncode == 0
    folder = none / "reports" / "demo"
    assert not list((folder / "tables").glob("paper_batch*.tex"))
    assert not (folder / "tables" / "claims.csv").exists()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="paper"' not in page
    shown = page[: page.index("<script")].partition("</style>")[2]
    for word in ("ledger", "statements", "verdict<", "Verdict"):
        assert word not in shown, word
    heading = re.search(r'<h1 id="verdict-title">(.*?)</h1>', shown)
    assert heading is not None
    assert re.match(r".*: [\d.]+ MiB", heading[1]), "own results come first"
    order = [shown.index(f'id="{place}"') for place in ("verdict", "arms", "figure1", "blocks", "figure3", "size", "missing")]
    assert order == sorted(order)
    variants = pl.read_csv(folder / "tables" / "variants.csv")
    assert variants.filter(pl.col("difference").is_not_null()).height > 0, "arms are compared with the first one"
    assert variants.filter(pl.col("difference").is_not_null()).get_column("order").min() == 1


@pytest.mark.parametrize(
    ("project", "message"),
    [
        ("none", "demo.yaml: key paper is null, so there are no claims to judge; in papers/ there are: vit-quantization-2025"),
        ("unknown", "papers/missing: no such paper; there are: vit-quantization-2025"),
    ],
)
def test_claims_without_a_paper_say_what_is_missing(tmp_path: Path, request: pytest.FixtureRequest, project: str, message: str) -> None:
    root = request.getfixturevalue("none") if project == "none" else _project(tmp_path / "root", "missing")
    shown = call("claims", "demo", "--root", str(root))
    assert shown.returncode == 2
    assert message in " ".join(shown.stderr.split())
    assert len(shown.stderr.splitlines()) == 1
