"""The audit's error rates, both kinds: some drawn tables (benchmarks/audit_errors.py has thousands), and public ones that are sound."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from audit_tables import FAULTS, Planted, can_be_printed, sound, two_splits
from lowbit_vit.analysis.audit import Context, Finding, audit, load_table

ROOT = Path(__file__).parents[3]
PUBLIC = ROOT.parent / "shared" / "tables"
SOUND = 160
PLANTED = 20


def findings(folder: Path, text: str, context: object) -> tuple[Finding, ...]:
    path = folder / "table.csv"
    path.write_text(text)
    return audit(load_table(path), Context.model_validate(context))


@pytest.mark.parametrize("part", range(4))
def test_a_sound_table_has_no_hard_finding_and_rarely_a_doubt(part: int, tmp_path: Path) -> None:
    doubted = 0
    for number in range(part * SOUND // 4, (part + 1) * SOUND // 4):
        chance = random.Random(f"sound {number}")
        table = sound(chance, rows=chance.randint(5, 60))
        found = findings(tmp_path, table.csv, table.context)
        assert [finding for finding in found if finding.hard] == [], table.csv
        doubted += any(finding.fault for finding in found)
    # Asked for: at most 5 %. Six of forty would have a probability below 2 %.
    assert doubted <= 5


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_that_can_be_seen_is_found(plant: Callable[[random.Random], Planted], tmp_path: Path) -> None:
    seen = found = 0
    for number in range(PLANTED):
        planted = plant(random.Random(f"planted {number}"))
        if planted.decidable and len(planted.table.rows) <= 300:
            seen += 1
            said = [finding for finding in findings(tmp_path, planted.table.csv, planted.table.context) if finding.fault]
            named = [finding for finding in said if finding.check in planted.checks]
            found += any(not planted.rows or set(planted.rows) & set(finding.rows) for finding in named)
    assert seen >= 5
    # At least 95 %, which one of few may miss.
    assert found >= seen - max(1, seen // 20)


def test_the_oracle_knows_which_rates_can_be_printed() -> None:
    chance = random.Random(0)
    for _ in range(40):
        table = sound(chance, columns=("top1",), rows=5)
        style = table.styles["top1"]
        assert all(can_be_printed(table.cell("top1", row), table.images[row], style) for row in table.rows)
    table = next(planted.table for planted in map(two_splits, [chance] * 200) if planted.decidable)
    assert len(set(table.images)) == 2


def _public(name: str) -> Path:
    path = PUBLIC / name
    if not path.is_file():
        pytest.skip(f"the public table {name} is not here")
    return path


@pytest.mark.parametrize("images", [None, 50_000])
@pytest.mark.parametrize("name", ["timm-results-imagenet.headings-renamed.csv", "fq_vit_imagenet.csv"])
def test_public_accuracies_of_50000_images_have_nothing_against_them(name: str, images: int | None, tmp_path: Path) -> None:
    found = audit(load_table(_public(name)), Context.model_validate({"claims": {"images": images}}))
    assert [finding for finding in found if finding.fault] == []
    (split,) = (finding for finding in found if finding.check == "split-size")
    # Two decimals of a per cent, as FQ-ViT's, do not tell 50,000 images from others.
    assert split.verdict == ("holds" if name.startswith("timm") else "not checked")


@pytest.mark.parametrize("marked", [True, False])
def test_the_one_speedup_of_fastertransformer_that_does_not_follow_is_found(marked: bool, tmp_path: Path) -> None:
    # In these files a # stands before the columns that were not known once.
    text = _public("fastertransformer_vit_a100_int8_vs_fp16.csv").read_text()
    found = findings(tmp_path, text if marked else text.replace("#", ""), {})
    (wrong,) = (finding for finding in found if finding.fault)
    assert (wrong.check, wrong.verdict, wrong.rows) == ("derived", "contradicts itself", (20, 21))
    assert "1.57 does not follow from 60.99 and 39.43: old / new is 1.547" in wrong.words


@pytest.mark.parametrize("marked", [True, False])
def test_the_improvement_of_bitsandbytes_is_recognized_and_no_fault(marked: bool, tmp_path: Path) -> None:
    text = _public("bitsandbytes_llm_inference.csv").read_text()
    found = findings(tmp_path, text if marked else text.replace("#", ""), {})
    latency, throughput = (finding for finding in found if finding.check == "derived")
    assert (latency.verdict, throughput.verdict, latency.fault) == ("noted", "exact", False)
    assert "Latency Improvement is 1 + (old - new) / old (old " in latency.words
    assert "in 47 of 47 rows: 1.44 where old / new is 1.78" in latency.words
    # With the batch sizes: 0.0478 s x 164.55 samples/s are 7.87 of 8, where 79 other rows agree to the last digit.
    assert [(finding.check, finding.rows) for finding in found if finding.fault] == ([] if marked else [("slipped-digit", (24,))])


def test_timms_raw_results_are_read_without_a_context_and_have_nothing_against_them() -> None:
    table = load_table(_public("timm-results-imagenet.csv"))
    assert set(table.headings) == {"image_size", "top1", "top1_error", "top5", "top5_error", "params"}
    assert table.unread == ("'crop_pct'", "'interpolation'")
    found = audit(table)
    assert [finding for finding in found if finding.fault] == []
    assert [finding.numbers["agree"] for finding in found if finding.check == "error"] == [1_556, 1_556]
    (split,) = (finding for finding in found if finding.check == "split-size")
    assert (split.verdict, split.numbers["images"]) == ("holds", 50_000)
    assert [len(finding.rows) for finding in found if finding.check == "equal-rows"] == [2, 2]  # levit and levit_conv


def test_timms_raw_throughputs_have_nothing_against_them() -> None:
    table = load_table(_public("timm-benchmark-infer-amp-nchw-pt291-cu128-4090.csv"))
    assert set(table.headings) == {"image_size", "throughput", "mean", "batch", "params", "macs"}
    found = audit(table)
    assert [finding for finding in found if finding.fault] == []
    (batch,) = (finding for finding in found if finding.check == "batch-size")
    assert (batch.verdict, batch.numbers["rows"]) == ("holds", len(table.rows))


def test_four_rows_of_10000_images_have_nothing_against_them(tmp_path: Path) -> None:
    text = "Model,Top-1 (%),Top-5 (%)\na,80.920,95.460\nb,80.480,95.020\nc,77.410,94.120\nd,80.900,95.380\n"
    assert [finding for finding in findings(tmp_path, text, {}) if finding.fault] == []


def test_the_page_has_the_numbers_of_the_record() -> None:
    record = json.loads((ROOT / "benchmarks" / "records" / "audit_errors.json").read_text())
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    every = record["sound"]["all"]
    assert f"| all | {every['tables']:,} | {every['hard']:,} | {every['doubted']:,} |" in page
    assert every["hard"] == 0
    assert every["doubted"] <= 0.05 * every["tables"]
    compared = record["compared"]
    assert f"| that compare | {compared['tables']:,} | {compared['hard']:,} | {compared['doubted']:,} |" in page
    assert compared["hard"] == 0
    assert compared["doubted"] <= 0.05 * compared["tables"]
    for fault, counts in record["planted"].items():
        row = " | ".join(f"{counts.get(name, 0):,}" for name in ("decidable", "decidable, found", "decidable, found hard"))
        assert f"| {row} |" in page, fault
        assert counts["decidable, found"] >= 0.95 * counts["decidable"], fault
    assert all(f"{timed['median']} s" in page for timed in record["seconds_of_1556_rows"].values())
