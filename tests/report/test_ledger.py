"""The ledger's tones and counts leave no claim out, and what links to it links only to public addresses."""

from pathlib import Path

import pytest

import synthetic
import synthetic_claims
from lowbit_vit.analysis.claims.ledger import Judged
from lowbit_vit.analysis.tables import Findings, find
from lowbit_vit.report import ledger
from lowbit_vit.report.missing import not_run
from lowbit_vit.report.paper_comparison import beside_paper
from lowbit_vit.report.verdict import headline, sentences
from lowbit_vit.schema.claim import VERDICTS

DEMO = synthetic.load_profile(synthetic.PROJECT / "profiles" / "demo.yaml")


@pytest.fixture(scope="module")
def findings() -> Findings:
    return synthetic.findings("variants")


@pytest.fixture(scope="module")
def judged(findings: Findings) -> list[Judged]:
    return synthetic_claims.judged(synthetic.paper(), findings.all_records)


def test_every_verdict_has_a_tone_and_every_tone_a_sign_and_words() -> None:
    assert set(ledger.TONES) == set(VERDICTS)
    assert set(ledger.TONES.values()) == set(ledger.TONE_WORDS)
    assert len({ledger.SIGNS[tone] for tone in ledger.TONE_WORDS}) == 4


def test_counts_add_up_in_the_order_of_the_verdicts(judged: list[Judged]) -> None:
    found = ledger.counts(judged)
    assert sum(found.values()) == len(judged) == sum(ledger.tone_counts(judged).values())
    assert list(found) == list(VERDICTS)
    assert headline(judged, None).startswith(f"Of {len(judged)} statements, ")
    assert headline([], None) == ""


def test_every_cell_of_the_papers_table_stands_beside_ours_with_its_claim(findings: Findings, judged: list[Judged]) -> None:
    paper = synthetic.paper().table
    first, second = beside_paper(findings.tables.paper_table, paper, judged)
    assert (first.batch_size, second.batch_size) == (1, 32)
    cells = [cell for row in first.rows for cell in row.cells]
    assert [cell.printed for cell in cells] == [
        cell.text if (cell := paper.cell(row, quantity)) else "N/A" for row in paper.rows for quantity in paper.headings
    ]
    assert all((cell.tone == "unjudged") == (cell.printed == "N/A") for cell in cells)
    assert [row.missing for row in first.rows] == [None, None, None, "skipped: needs CUDA", "skipped: needs CUDA"]
    told = first.rows[0].cells[0].explanation
    assert told[0].startswith("Model Size (MB): the paper prints 1157.4; ours is ")
    assert told[1].startswith("Reproduced: ")


def test_without_records_the_papers_table_stands_alone(findings: Findings) -> None:
    (alone,) = beside_paper(findings.tables.paper_table.clear(), synthetic.paper().table, [])
    assert alone.batch_size is None
    assert {row.missing for row in alone.rows} == {"not run"}


@pytest.mark.parametrize("address", ["javascript:alert(1)", "http://example.org", "a book"])
def test_only_public_addresses_become_links(judged: list[Judged], address: str) -> None:
    other = next(item for item in judged if item.claim.source)
    changed = other.model_copy(update={"claim": other.claim.model_copy(update={"source": address})})
    assert ledger.source_address(other) == "https://example.org/numbers"
    assert ledger.source_address(changed) is None


def test_commands_name_the_profile(judged: list[Judged]) -> None:
    assert {ledger.command(item) for item in judged} == {"lowbit-vit variants demo"}


def test_what_was_not_run_names_studies_claims_and_trials(findings: Findings, judged: list[Judged]) -> None:
    found = not_run(DEMO, findings, judged)
    assert [item.what for item in found[:2]] == ["the sensitivity study", "the mixed study"]
    waiting = [item for item in found if item.claims]
    assert sum(len(item.claims) for item in waiting) == sum(item.verdict == "not run" for item in judged)
    assert found[-1].why == "skipped: needs CUDA"
    assert len(found[-1].records.split()) == 3


def test_the_verdict_says_accuracy_and_speed_of_the_papers_rows(findings: Findings, judged: list[Judged]) -> None:
    claims, accuracy, speed = sentences(DEMO, findings, judged, None)
    assert claims.text.startswith(f"of the {len(judged)} checkable statements")
    assert "against Baseline ViT" in accuracy.text
    assert accuracy.text.count("95 % interval") == 2
    # By the synthetic formula: 1.7 and 2.6 times.
    ratios = "4-bit + SDPA takes 1.70 and 8-bit + SDPA takes 2.60 times the median latency of Baseline ViT"
    assert speed.text == f"at batch 1, {ratios} (one process each)."


def test_the_verdict_says_what_is_missing(tmp_path: Path) -> None:
    empty = find(*synthetic.fill(tmp_path / "root", studies=()))
    recommended, *others = sentences(DEMO, empty, [], None)
    assert "lowbit-vit variants demo" in recommended.text
    assert [sentence.text for sentence in others] == [
        "no arm in high precision has finished, so there is nothing to compare.",
        "no arm in high precision has finished, so there is nothing to compare.",
    ]
