"""The paper's table: exactly these findings, with the numbers worked out by hand from the text and the table."""

from pathlib import Path

import pytest

from lowbit_vit.analysis.audit import Finding, audit, load_context, load_table

PAPER = Path(__file__).parents[3] / "papers" / "vit-quantization-2025"
FINDINGS = audit(load_table(PAPER / "table.csv"), load_context(PAPER / "context.yaml"))

EXPECTED: list[tuple[str, str, tuple[int, ...]]] = [
    ("missing", "not checked", (1, 2, 3, 4)),
    ("zero", "impossible", (1, 2)),
    ("batch-size", "suspicious", (0, 2, 3, 4)),
    ("slipped-digit", "contradicts itself", (1,)),
    ("percentile-order", "impossible", (1,)),
    ("split-size", "not checked", (0, 1, 2, 3, 4)),
    ("whole-image", "exact", (0, 2)),
    ("resolution", "holds", (0, 1)),
    ("resolution", "underpowered", (0, 2)),
    ("resolution", "holds", (0, 3)),
    ("resolution", "underpowered", (0, 4)),
    ("negligible-gain", "underpowered", ()),
    ("frontier", "underpowered", (2,)),
    ("frontier", "underpowered", (4,)),
    ("f1-beside-top1", "suspicious", (2, 4)),
    ("f1-beside-top1", "not supported", (0, 2)),
    ("published-accuracy", "suspicious", (0,)),
    ("size", "exact", (0,)),
    ("size", "exact", (1,)),
    ("size-constants", "understated", (1,)),
    ("size", "exact", (2,)),
    ("size-constants", "understated", (2,)),
    ("size", "exact", (3,)),
    ("size-constants", "understated", (3,)),
    ("size", "exact", (4,)),
    ("size-constants", "understated", (4,)),
    ("megabytes", "understated", (0, 1, 2, 3, 4)),
    ("size-reduction", "holds", (0, 1)),
    ("vram-weights", "underspecified", (1,)),
    ("vram-batch", "suspicious", (0,)),
    ("vram-batch", "suspicious", (1,)),
    ("twin-memory", "suspicious", (1, 3)),
    ("twin-memory", "suspicious", (2, 4)),
    ("resident-models", "suspicious", (2,)),
    ("resident-models", "suspicious", (3,)),
    ("resident-models", "suspicious", (4,)),
    ("fits-already", "not supported", (0,)),
    ("kernel-flop", "impossible", (0,)),
    ("kernel-flop", "impossible", (1,)),
    ("kernel-flop", "impossible", (3,)),
    ("kernel-bytes", "impossible", (0,)),
    ("kernel-unit", "suspicious", (0,)),
    ("kernel-unit", "suspicious", (1,)),
    ("kernel-unit", "suspicious", (3,)),
    ("batch-flop", "suspicious", (0,)),
    ("batch-flop", "suspicious", (0,)),
    ("kernel-share", "not supported", (0, 1)),
    ("kernel-share", "not supported", (0, 2)),
    ("kernel-share", "not supported", (0, 3)),
    ("kernel-share", "not supported", (0, 4)),
    ("attention-flop", "suspicious", (3,)),
    ("attention-flop", "suspicious", (4,)),
    ("attention-gain", "confounded", (0, 1, 3)),
    ("attention-gain", "confounded", (0, 2, 4)),
    ("same-kernel", "suspicious", (3, 4)),
    ("twin-latency", "not supported", (1, 3)),
    ("twin-latency", "not supported", (2, 4)),
    ("missing-baseline", "confounded", (1, 2, 3, 4)),
]

# Check, rows, then numbers to as many digits as they were worked out by hand.
NUMBERS: list[tuple[str, tuple[int, ...], dict[str, float]]] = [
    ("batch-size", (0, 2, 3, 4), {"batch": 1, "least_images": 0.9995, "most_images": 1.0003}),
    ("slipped-digit", (1,), {"latency_for_throughput": 56.72, "throughput_for_latency": 17.03, "images": 1.0352}),
    ("size", (0,), {"plain_mib": 1157.40}),
    ("size", (2,), {"plain_mib": 290.70, "constants_mib": 0.84}),
    ("size", (1,), {"plain_mib": 146.70, "constants_mib": 18.00, "double_mib": 4.57}),
    ("size-constants", (1,), {"adapter_mib": 0.19}),
    ("size-reduction", (0, 1), {"reduction": 0.873, "reduction_with_constants": 0.858}),
    ("kernel-flop", (0,), {"tflops": 518, "peak_tflops": 156, "least_us": 789}),
    ("kernel-bytes", (0,), {"gb_s": 5110}),
    ("kernel-unit", (0,), {"tflops": 16.6, "batch": 32, "share_of_peak": 0.11}),
    ("attention-flop", (4,), {"tflops": 303, "us_each": 0.53}),
    ("attention-gain", (0, 1, 3), {"implied_plain_us": 16.96, "gain_over_twin": 0.080, "gain_over_reference": 0.58}),
    ("attention-gain", (0, 2, 4), {"implied_plain_us": 13.61, "gain_over_twin": 0.074, "gain_over_reference": 0.66}),
    ("same-kernel", (3, 4), {"ratio": 1.24}),
    (
        "kernel-share",
        (0, 1),
        {"latency_ratio": 3.59, "kernel_ratio": 1.10, "share": 0.0045, "reference_share": 0.0145, "explained": 0.0006},
    ),
    ("kernel-share", (0, 4), {"latency_ratio": 6.96, "kernel_ratio": 1.11}),
    # 8,180 of all 8,189 images, without a last batch of 10 or 20: one of many readings, and no evidence.
    ("split-size", (0, 1, 2, 3, 4), {"images": 8180, "rates": 10, "p": 1}),
    ("whole-image", (0, 2), {"least_images": 3334}),
    (
        "resolution",
        (0, 2),
        {"difference_points": 0.02, "rate_half_width_points": 1.23, "unpaired_half_width_points": 1.73, "paired_half_width_points": 0.56},
    ),
    ("resolution", (0, 4), {"difference_points": 0.26}),
    ("f1-beside-top1", (2, 4), {"f1_points": 2.22, "top1_points": 0.24}),
    ("f1-beside-top1", (0, 2), {"f1_points": -1.43, "top1_points": 0.02}),
    ("published-accuracy", (0,), {"least_points_below": 30, "most_points_below": 40}),
    ("twin-memory", (1, 3), {"more_mib": 148.84}),
    ("twin-memory", (2, 4), {"more_mib": 149.41}),
    ("resident-models", (2,), {"remainder_1_mib": 21.0}),
    ("resident-models", (3,), {"remainder_1_mib": 29.3}),
    ("resident-models", (4,), {"remainder_2_mib": 23.7}),
    ("vram-batch", (0,), {"room_mib": 19.99, "output_mib": 98.5}),
    ("vram-batch", (1,), {"room_mib": 27.18, "output_mib": 49.25}),
    ("vram-weights", (1,), {"needed_mib": 174.24, "needed_double_mib": 160.81}),
    ("megabytes", (0, 1, 2, 3, 4), {"mb": 1213.6}),
    ("fits-already", (0,), {"share": 0.072}),
    ("twin-latency", (1, 3), {"ratio": 1.056, "kernel_saved_us": 1.36}),
    ("twin-latency", (2, 4), {"ratio": 1.044, "kernel_saved_us": 1.00}),
]


def test_the_papers_table_has_exactly_these_findings() -> None:
    assert [(finding.check, finding.verdict, finding.rows) for finding in FINDINGS] == EXPECTED


def _finding(check: str, rows: tuple[int, ...]) -> Finding:
    return next(finding for finding in FINDINGS if finding.check == check and finding.rows == rows)


@pytest.mark.parametrize(("check", "rows", "numbers"), NUMBERS, ids=lambda value: str(value) if isinstance(value, str) else "")
def test_numbers_are_those_worked_out_by_hand(check: str, rows: tuple[int, ...], numbers: dict[str, float]) -> None:
    found = _finding(check, rows).numbers
    for name, value in numbers.items():
        # Within half of the last digit that is written above.
        text = f"{value:.10f}".rstrip("0")
        assert found[name] == pytest.approx(value, abs=0.51 * 10.0 ** -len(text.partition(".")[2])), name


def test_the_claimed_batch_is_too_fast_for_the_gpu_and_for_the_host() -> None:
    gpu, host = (finding.numbers for finding in FINDINGS if finding.check == "batch-flop")
    assert gpu["tflops"] == pytest.approx(240.9, abs=0.1)
    assert host["tflops"] == pytest.approx(12.0, abs=0.1)
    assert host["tflops_of_one"] == pytest.approx(0.375, abs=0.001)


def test_the_slip_names_both_cells_that_one_digit_would_mend() -> None:
    words = _finding("slipped-digit", (1,)).words
    assert "58.72 -> 56.72 or 17.63 -> 17.03" in words


def test_two_readings_of_the_last_peak_are_both_given() -> None:
    words = _finding("resident-models", (4,)).words
    assert "290.7 + 290.7 + 26.4 or 290.7 + 146.7 + 146.7 + 23.7" in words


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: f"{finding.check} {finding.rows}")
def test_columns_are_headings_of_the_table(finding: Finding) -> None:
    headings = (PAPER / "table.csv").read_text().splitlines()[0].split(",")
    assert set(finding.columns) <= set(headings)
    assert "\n" not in finding.words
