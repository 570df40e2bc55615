"""ARTIFACT.md is what the code makes of the ledger and the committed runs; the ledger's other forms keep text as text."""

import json
from pathlib import Path

import pytest
from rich.console import Console

import synthetic
from lowbit_vit.analysis.claims.ledger import Judged
from lowbit_vit.errors import DataError
from lowbit_vit.report.artifact import artifact_markdown, load_references
from lowbit_vit.report.columns import escape_markdown, to_terminal
from lowbit_vit.report.ledger import claims_json, claims_markdown, claims_table, counts_line

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def judged() -> tuple[Judged, ...]:
    """The ledger on the demo's committed run."""
    return next(reference.judged for reference in load_references(ROOT)[1] if reference.profile == "demo")


def test_the_committed_artifact_is_what_the_code_writes() -> None:
    committed = (ROOT / "ARTIFACT.md").read_text(encoding="utf-8")
    assert artifact_markdown(ROOT) == committed, "lowbit-vit artifact writes it anew"


def test_the_artifact_names_every_claim_once_with_its_command_and_cost() -> None:
    text = (ROOT / "ARTIFACT.md").read_text(encoding="utf-8")
    for claim in synthetic.paper().ledger.claims:
        assert text.count(f"| {claim.id}: ") == 1, claim.id
        assert f"`{claim.command}`: {claim.cost.minutes:g} min" in text, claim.id


def test_every_line_of_a_table_has_the_cells_of_its_heading() -> None:
    width = 0
    for line in (ROOT / "ARTIFACT.md").read_text(encoding="utf-8").splitlines():
        cells = line.replace("\\|", "").count("|") if line.startswith("|") else 0
        assert not (cells and width) or cells == width, line
        width = cells


def test_a_project_without_reference_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no reference run"):
        load_references(tmp_path)


def test_all_forms_hold_every_claim(judged: tuple[Judged, ...]) -> None:
    assert [item["claim"]["id"] for item in json.loads(claims_json(judged))] == [item.claim.id for item in judged]
    markdown = claims_markdown(judged)
    assert all(f"| {escape_markdown(item.claim.id)} |" in markdown for item in judged)
    assert to_terminal(claims_table(judged)).row_count == len(judged)


def test_counts_add_up(judged: tuple[Judged, ...]) -> None:
    counts = [int(part.split()[0]) for part in counts_line(judged).split(": ")[1].split(", ")]
    assert sum(counts) == len(judged)


def test_a_quote_is_not_read_as_markup(judged: tuple[Judged, ...]) -> None:
    item = judged[0].model_copy(update={"words": "[red]so it stays[/red]"})
    console = Console(width=200)
    with console.capture() as captured:
        console.print(to_terminal(claims_table([item])))
    assert "[red]" in captured.get()
